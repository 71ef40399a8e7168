"""What raykube plans is what KubeRay runs: nothing but kubectl stands between them."""

import json
import subprocess

import pytest

import raykube as rk
from tests.cluster import kubectl, layout, workloads

pytestmark = pytest.mark.cluster


@pytest.fixture
def preset(tmp_path):
    """Give the path of a cluster manifest."""
    path = tmp_path / "house.yaml"
    path.write_text(workloads.manifest("house"))
    return path


def applied(text, namespace):
    words = ("apply", "--server-side", "--validate=strict", "-f", "-")
    return kubectl.kubectl(*words, stdin=text, namespace=namespace)


def test_planned_training_runs_on_two_pods_and_leaves_its_result(namespace, preset):
    kubectl.apply(workloads.manifest("claim"), namespace=namespace)
    words = [
        "job",
        "submit",
        "--on",
        str(preset),
        "--name",
        "digits",
        "--workers",
        "2",
        "--dry-run=client",
        "-o",
        "yaml",
    ]
    script = ["python", "-m", "jobs.digits", "--epochs", "3", "--data", "/shared"]
    command = ["raykube", *words, "--", *script]
    planned = subprocess.run(command, cwd=layout.PROJECT, capture_output=True, text=True, check=True)
    applied(planned.stdout, namespace)
    job = workloads.finished_job(namespace, "digits", timeout_s=300)
    head = workloads.ready_head(namespace)
    # Inside the head, where Ray finds the cluster's token by itself.
    command = ["ray", "job", "logs", "--address", "http://127.0.0.1:8265", job["status"]["jobId"]]
    assert "run         digits" in kubectl.kubectl("exec", head, "--", *command, namespace=namespace)
    path = "/shared/digits/train-1/result.json"
    result = json.loads(kubectl.kubectl("exec", head, "--", "cat", path, namespace=namespace))
    assert result["run"] == "digits"
    assert result["metrics"]["accuracy"] > 0.5
    assert rk.Result.from_json(json.dumps(result)).checkpoint.startswith("/shared/digits/train-1/")


@pytest.mark.parametrize("name", ["cpu-small", "cpu-autoscale", "gpu-t4", "gpu-8xh100"])
def test_plan_on_a_preset_passes_the_servers_strict_validation(namespace, name, tmp_path):
    (tmp_path / "train.py").write_text("print('trained')\n")
    plan = rk.plan(rk.Job(entrypoint="python train.py", working_dir=tmp_path, name="checked"), on=name)
    words = ("apply", "--server-side", "--validate=strict", "--dry-run=server", "-f", "-")
    assert "rayjob.ray.io/checked" in kubectl.kubectl(*words, stdin=plan.yaml(), namespace=namespace)
