"""What raykube plans is what KubeRay runs: nothing but kubectl stands between them."""

import json

import pytest
import yaml

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


@pytest.fixture
def dry(tmp_path, monkeypatch):
    """Return what has a command of the command line checked by the server, on pods that are to be made otherwise."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hello.py").write_text("print('hello')\n")

    def dry(kind, name, *words, change=lambda _spec: None, then="--dry-run=server"):
        made = yaml.safe_load(workloads.manifest("house"))
        change(made["spec"])
        (tmp_path / "house.yaml").write_text(yaml.safe_dump(made))
        named = (name,) if kind != "job" else ("--name", name)
        verb = {"job": "submit", "service": "deploy", "cluster": "create"}[kind]
        return run("raykube", kind, verb, "--on", "house.yaml", then, *named, *words)

    return dry


WORK = {"job": ("--", "python", "hello.py"), "service": ("hello:app",), "cluster": ()}


@pytest.mark.usefixtures("least")
@pytest.mark.parametrize("kind", WORK)
def test_dry_run_by_the_server_names_all_that_it_has_against_the_pods(dry, kind):
    def change(spec):
        head, worker = (group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]))
        head["containers"][0]["resources"]["requests"]["memory"] = "64Gi"
        worker["serviceAccountName"] = "nobody"

    done = dry(kind, "a", *WORK[kind], change=change)
    assert done.returncode == 2
    place = {"job": "rayClusterSpec.", "service": "rayClusterConfig.", "cluster": ""}[kind]
    head, worker = (f"spec.{place}{group}.template" for group in ("headGroupSpec", "workerGroupSpecs[0]"))
    assert f'{head}.spec.containers[0].resources.requests: Invalid value: "64Gi"' in done.stderr
    assert f"- {worker}: " in done.stderr
    assert 'serviceaccount "nobody" not found' in done.stderr
    assert dry(kind, "a", "-o", "name", *WORK[kind]).stdout == "a\n"


def test_dry_run_by_the_server_refuses_the_names_that_a_start_would(dry, cluster, monkeypatch):  # noqa: ARG001
    with namespaces.fresh("plans", quota={"pods": "0"}) as namespace:
        monkeypatch.setenv("KUBECONFIG", namespaces.least(namespace))
        theirs = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": "theirs"}}
        spec = {"rayClusterConfig": workloads.head_alone(storage=False)["spec"], "serveConfigV2": "applications: []"}
        kubectl.apply(yaml.safe_dump({**theirs, "spec": spec}), namespace=namespace)
        assert dry("job", "ours", *WORK["job"], then="--no-wait").returncode == 0
        other = dry("job", "ours", "--", "python", "hello.py", "again")
        assert other.returncode == 2
        assert "spec.entrypoint: " in other.stderr
        taken = dry("service", "theirs", *WORK["service"])
        assert "taken by a RayService that raykube did not make" in taken.stderr
        assert "the name 'theirs' is taken by a service" in dry("job", "theirs", *WORK["job"]).stderr
        full = dry("job", "another", *WORK["job"])
        assert full.stderr.count("exceeded quota: quota, requested: pods=1") == 2
        assert "a quota may have room later" in full.stderr
        assert dry("job", "ours", "-o", "name", *WORK["job"]).stdout == "ours\n"  # it would be joined
