"""What raykube plans is what KubeRay runs: nothing but kubectl stands between them."""

import json

import pytest

import raykube as rk
from tests.cluster import kubectl, layout, namespaces, workloads
from tests.support import DIGITS, plain_digits, run

pytestmark = pytest.mark.cluster


@pytest.fixture
def preset(tmp_path):
    """Give the path of a cluster manifest."""
    path = tmp_path / "house.yaml"
    path.write_text(workloads.manifest("house"))
    return path


def weights(text):
    return next(line.split()[1] for line in text.splitlines() if line.startswith("weights"))


@pytest.mark.long
def test_training_ends_with_the_same_weights_here_and_on_two_pods(namespace, preset, monkeypatch):
    kubectl.apply(workloads.manifest("claim"), namespace=namespace)
    monkeypatch.chdir(layout.PROJECT)
    here = plain_digits()
    monkeypatch.setenv("KUBECONFIG", namespaces.least(namespace))
    options = ("--on", str(preset), "--name", "digits", "--env", "RAYKUBE_TRACKING=off")
    there = run("raykube", "job", "submit", *options, "--", *DIGITS, "--data", "/shared", timeout=300)
    assert there.returncode == 0, there.stderr
    assert weights(there.stdout) == weights(here)
    result = json.loads(run("raykube", "job", "result", "--on", str(preset), "--json", "digits").stdout)
    assert result["checkpoint"].startswith("/shared/digits/train-1/")


@pytest.mark.parametrize("name", ["cpu-small", "cpu-autoscale", "gpu-t4", "gpu-8xh100"])
def test_plan_on_a_preset_passes_the_servers_strict_validation(namespace, name, tmp_path):
    (tmp_path / "train.py").write_text("print('trained')\n")
    plan = rk.plan(rk.Job(entrypoint="python train.py", working_dir=tmp_path, name="checked"), on=name)
    words = ("apply", "--server-side", "--validate=strict", "--dry-run=server", "-f", "-")
    assert "rayjob.ray.io/checked" in kubectl.kubectl(*words, stdin=plan.yaml(), namespace=namespace)
