"""The ways in which code that is too large for a ConfigMap reaches its cluster, and a cluster that is there already."""

import json
import os

import pytest
import yaml

import raykube as rk
from tests.cluster import kubectl, workloads
from tests.cluster.shell import until
from tests.support import run

pytestmark = pytest.mark.cluster


@pytest.fixture
def manifest(namespace, least):  # noqa: ARG001
    """Return a RayCluster that is a head alone, with a volume, in a namespace of the least rights."""
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "words"},
        "stringData": {"word": "of a Secret"},
    }
    kubectl.apply(workloads.manifest("claim"), secret, namespace=namespace)
    manifest = workloads.head_alone()
    variable = {"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "words", "key": "word"}}}
    manifest["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0].setdefault("env", []).append(variable)
    return manifest


@pytest.fixture
def large(tmp_path):
    """Return a working directory with a file that no zip makes smaller."""
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "noise.bin").write_bytes(os.urandom(2 * 2**20))
    (folder / "size.py").write_text(
        "import os; print('size', os.stat('noise.bin').st_size)\n"
        "print('word', os.environ['WORD'])\n"
        "if os.path.isdir('/shared'): print('kept of', *sorted(os.listdir('/shared')))\n"
    )
    return folder


def loaded(manifest, tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(manifest))
    return rk.Cluster.load(path)


def test_large_code_goes_to_the_storage_and_with_its_run(manifest, large, tmp_path, namespace):
    run_ = rk.submit(rk.Job(entrypoint="python size.py", name="first", working_dir=large), loaded(manifest, tmp_path))
    lines = list(run_.wait(timeout_s=120).logs())
    assert {f"size {2 * 2**20}", "kept of first", "word of a Secret"} <= set(lines)
    run_.delete()
    assert workloads.pods(namespace) == [] or all(
        "storage" not in pod["metadata"]["name"] for pod in workloads.pods(namespace)
    )
    kubectl.apply(workloads.manifest("claimer", NAME="looks"), namespace=namespace)
    workloads.running(namespace, "looks")
    assert kubectl.kubectl("exec", "looks", "--", "ls", "-A", "/shared", namespace=namespace) == ""


def test_large_code_without_storage_is_uploaded_to_the_head(manifest, large, tmp_path):
    del manifest["metadata"]["annotations"]
    plan = rk.plan(rk.Job(entrypoint="python size.py", name="up", working_dir=large), loaded(manifest, tmp_path))
    assert any("uploaded to the head" in note for note in plan.notes)
    run_ = rk.submit(rk.Job(entrypoint="python size.py", name="up", working_dir=large), loaded(manifest, tmp_path))
    assert f"size {2 * 2**20}" in list(run_.wait(timeout_s=120).logs())


def state(name, namespace):
    done = run("raykube", "job", "status", name, "--json", "-n", namespace, timeout=60)
    return json.loads(done.stdout)["state"]


def noted(name, namespace):
    return kubectl.get("rayjob", name, namespace).get("status", {}).get("rayJobInfo", {}).get("startTime")


def test_run_on_a_long_lived_cluster_has_its_log_and_its_end_when_the_cluster_is_gone(manifest, tmp_path, namespace):
    loaded(manifest, tmp_path)
    in_ = ["-n", namespace]
    on = ["--on", str(tmp_path / "cluster.yaml")]
    assert run("raykube", "cluster", "create", "brief", *on, *in_, timeout=180).returncode == 0
    lost = ["--cluster", "brief", "--name", "lost", *in_, "--no-wait", "--", "sleep", "600"]
    assert run("raykube", "job", "submit", *lost, timeout=120).returncode == 0
    words = ["--cluster", "brief", "--name", "kept", *in_, "--", "sh", "-c", "echo one; echo two >&2; exit 3"]
    assert run("raykube", "job", "submit", *words, timeout=120).returncode == 1
    ended = run("raykube", "cluster", "delete", "brief", *in_, timeout=120)
    assert (ended.returncode, "ended with it: lost\n" in ended.stderr) == (0, True), ended.stderr
    shown = run("raykube", "job", "logs", "kept", *in_, timeout=120)
    assert shown.stdout.splitlines() == ["one", "two"], shown.stderr
    status = json.loads(run("raykube", "job", "status", "kept", "--json", *in_, timeout=60).stdout)
    assert (status["state"], status["failure"]["exit_code"]) == ("FAILED", 3)
    waited = run("raykube", "job", "wait", "lost", *in_, timeout=60)
    assert (waited.returncode, "run lost was stopped" in waited.stderr) == (1, True), waited.stderr
    assert run("raykube", "cluster", "create", "brief", *on, *in_, timeout=180).returncode == 0
    gone = ["--cluster", "brief", "--name", "gone", *in_, "--no-wait", "--", "sleep", "600"]
    assert run("raykube", "job", "submit", *gone, timeout=120).returncode == 0
    # Before KubeRay has noted that, the run would wait for the next cluster of that name.
    until(lambda: noted("gone", namespace), "KubeRay knows that it has begun on the new cluster", 60)
    until(lambda: state("gone", namespace) == "RUNNING", "it runs there", 60)
    assert state("lost", namespace) == "STOPPED"
    kubectl.kubectl("delete", "raycluster", "brief", namespace=namespace)
    waited = run("raykube", "job", "wait", "gone", *in_, timeout=60)
    assert (waited.returncode, "run gone failed: ClusterDeleted" in waited.stderr) == (1, True), waited.stderr
    deleted = run("raykube", "job", "delete", "lost", "gone", "kept", *in_, timeout=120)
    assert deleted.returncode == 0, deleted.stderr
    assert workloads.pods(namespace) == []
