"""Long-lived clusters by the command line, as a user of least privilege, and Ray's own commands through `forward`."""

import base64
import json
import os
import signal
import stat
import subprocess
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml

from raykube.backends.kuberay.runs.look import Look
from raykube.backends.kubernetes.fields import name_of
from raykube.backends.kubernetes.kubeapi import Kube
from tests.cluster import faults, kubectl, namespaces, workloads
from tests.cluster.shell import until
from tests.support import BIN, run

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def place(cluster, tmp_path_factory):  # noqa: ARG001 - the cluster has to be there
    """Give a namespace and a user of least privilege in it: one for this file, whose tests share one Ray."""
    with namespaces.fresh("clusters") as name:
        yield Place(name, tmp_path_factory.mktemp("place"))


class Place:
    """A namespace, and what a user types in it."""

    def __init__(self, namespace, folder):
        self.namespace = namespace
        self.folder = folder
        self.environ = {"KUBECONFIG": namespaces.least(namespace), "RAYKUBE_HOME": str(folder / "home")}

    def manifest(self, change=None):
        """Write the manifest of a cluster that is just a head, and return its path."""
        found = workloads.head_alone(storage=False)
        found["spec"]["headGroupSpec"]["rayStartParams"] = {"num-cpus": "1"}
        if change:
            change(found["spec"])
        path = self.folder / "only-head.yaml"
        path.write_text(yaml.safe_dump(found))
        return str(path)

    def raykube(self, *words):
        return run("raykube", *words, cwd=self.folder, timeout=200, **self.environ)

    def clusters(self):
        return [each["metadata"]["name"] for each in kubectl.listed("raycluster", self.namespace)]


@pytest.fixture(scope="module")
def demo(place):
    """Give the name of a cluster that is ready."""
    done = place.raykube("cluster", "create", "demo", "--on", place.manifest())
    assert done.returncode == 0, done.stderr
    assert done.stdout == "demo\n"
    assert "demo RUNNING" in done.stderr
    return "demo"


@contextmanager
def forwarded(place, name):
    """Give the environment in which Ray's own commands reach a cluster, and see that nothing of it stays."""
    words = [BIN / "raykube", "cluster", "forward", name]
    environ = {**os.environ, **place.environ}
    with subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = [process.stdout.readline().split() for _ in range(3)]
            assert all(words[:1] == ["export"] for words in lines), lines
            said = dict(words[1].split("=", 1) for words in lines)
            yield said
        finally:
            process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    assert not Path(said["RAY_AUTH_TOKEN_PATH"]).exists()


def ray(said, *words):
    """Run Ray's own command line as a user would in another shell."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "KUBECONFIG"))}
    words = [str(BIN / "ray"), *words]
    return subprocess.run(words, env=environ | said, capture_output=True, text=True, timeout=120, check=False)


def test_cluster_is_listed_with_its_state(place, demo):
    (listed,) = json.loads(place.raykube("cluster", "list", "--json").stdout)
    assert (listed["name"], listed["state"], listed["ready"], listed["wanted"]) == ("demo", "RUNNING", 1, 1)
    table = place.raykube("cluster", "list").stdout.splitlines()
    assert table[1].split()[:3] == ["demo", "RUNNING", "1/1"]
    shown = place.raykube("cluster", "status", demo)
    assert "1 of 1 pods are ready" in shown.stdout
    assert "nothing is known to be wrong" in place.raykube("cluster", "why", demo).stderr


def test_cluster_created_again_is_the_same(place, demo):
    before = kubectl.get("raycluster", demo, place.namespace)["metadata"]["uid"]
    assert place.raykube("cluster", "create", demo, "--on", place.manifest()).stdout == "demo\n"
    assert kubectl.get("raycluster", demo, place.namespace)["metadata"]["uid"] == before


def test_cluster_of_another_manifest_is_a_conflict_that_names_the_path(place, demo):
    def change(spec):
        spec["headGroupSpec"]["rayStartParams"]["num-cpus"] = "2"
        del spec["headGroupSpec"]["template"]["spec"]["containers"][0]["livenessProbe"]

    path = place.manifest(change)
    done = place.raykube("cluster", "create", demo, "--on", path)
    assert done.returncode == 2
    assert "spec.headGroupSpec.rayStartParams.num-cpus: '1' there, '2' here" in done.stderr
    assert "spec.headGroupSpec.template.spec.containers[0].livenessProbe: " in done.stderr
    assert "absent here" in done.stderr
    assert done.stderr.count("there, ") == 2
    assert f"raykube cluster delete --on {path} demo" in done.stderr


def test_cluster_with_an_unknown_field_is_refused_with_its_path_before_anything_exists(place):
    def change(spec):
        spec["headGroupSpec"]["rayStartParam"] = {}

    path = place.manifest(change)
    for words in ([], ["--dry-run", "server"]):
        done = place.raykube("cluster", "create", "typo", "--on", path, *words)
        assert done.returncode == 2
        assert "spec.headGroupSpec.rayStartParam: is unknown" in done.stderr
    assert "typo" not in place.clusters()


def test_cluster_of_a_dry_run_does_not_exist(place):
    done = place.raykube("cluster", "create", "dry", "--on", place.manifest(), "--dry-run=server")
    assert yaml.safe_load(done.stdout)["metadata"]["name"] == "dry"
    assert "dry" not in place.clusters()


def test_cluster_that_is_not_there_is_named_with_its_namespace(place):
    for verb in ("forward", "delete"):
        done = place.raykube("cluster", verb, "nobody")
        assert done.returncode == 2
        assert f"there is no cluster nobody in namespace {place.namespace}" in done.stderr


def test_deadline_ends_the_job_in_ray_too(place, demo, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", place.environ["KUBECONFIG"])
    words = ["--cluster", demo, "--name", "late", "--timeout-s", "6", "--", "sleep", "600"]
    done = place.raykube("job", "submit", *words)
    assert done.returncode == 1
    assert "DeadlineExceeded" in done.stderr
    look = Look(Kube(), "late")
    head = look.head()
    until(lambda: head.details()["status"] == "FAILED", "Ray has ended it", 20)
    assert place.raykube("job", "delete", "-n", place.namespace, "late").returncode == 0
    assert demo in place.clusters(), "it is not the run's own"


def test_forward_carries_plain_ray_job_submit_and_outlives_the_head(place, demo):
    token = base64.b64decode(kubectl.get("secret", demo, place.namespace)["data"]["auth_token"]).decode()
    with forwarded(place, demo) as said:
        path = Path(said["RAY_AUTH_TOKEN_PATH"])
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert said["RAY_AUTH_MODE"] == "token"
        assert token == path.read_text().strip()
        assert token not in str(said)
        words = ["job", "submit", "--submission-id", "hello", "--address", said["RAY_ADDRESS"], "--no-wait"]
        done = ray(said, *words, "--", "python", "-c", "print(6 * 7)")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "'hello' submitted successfully" in done.stdout
        nobody = ray({**said, "RAY_AUTH_MODE": "disabled"}, "job", "list")
        assert nobody.returncode != 0

        faults.delete_pod(place.namespace, workloads.ready_head(place.namespace))
        # At once: the connection waits until the new head answers.
        found = ray(said, "job", "list")
        assert found.returncode == 0, found.stdout + found.stderr
        assert "hello" not in found.stdout
        assert [where for where, text in told_of(place.namespace).items() if token in text] == []


def told_of(namespace):
    """Return what anybody may read of a namespace who reads no Secret: its objects, logs, and processes' arguments."""
    kinds = "rayclusters.ray.io,pods,events,services,configmaps"
    told = {f"{each['kind']} {name_of(each)}": json.dumps(each) for each in kubectl.listed(kinds, namespace)}
    for pod in map(name_of, workloads.pods(namespace)):
        told[f"log of {pod}"] = kubectl.kubectl("logs", pod, namespace=namespace)
        command = ("sh", "-c", "cat /proc/[0-9]*/cmdline")  # of a process that has just ended it has none
        told[f"processes of {pod}"] = kubectl.kubectl("exec", pod, "--", *command, namespace=namespace, check=False)
    told["processes here"] = str([process.info for process in psutil.process_iter(["cmdline"])])
    return told


def test_deleted_cluster_leaves_no_pod(place, demo):
    done = place.raykube("cluster", "delete", demo)
    assert done.stdout == "demo deleted\n", done.stderr
    assert demo not in place.clusters()
    assert workloads.pods(place.namespace) == []
    assert json.loads(place.raykube("cluster", "list", "--json").stdout) == []


def test_cluster_that_cannot_start_says_why(place):
    def change(spec):
        spec["headGroupSpec"]["template"]["spec"]["containers"][0]["image"] = "nowhere.invalid/ray:0"

    path = place.manifest(change)
    assert place.raykube("cluster", "create", "stuck", "--no-wait", "--on", path).stdout == "stuck\n"
    found = until(lambda: place.raykube("cluster", "why", "stuck").stdout, "a cause", 60)
    assert "nowhere.invalid/ray:0" in found
    done = place.raykube("cluster", "create", "stuck", "--timeout-s", "1", "--on", path)
    assert done.returncode == 1
    assert "not ready after 1 s" in done.stderr
    assert "nowhere.invalid/ray:0" in done.stderr
    assert place.raykube("cluster", "delete", "stuck").returncode == 0
