"""docs/kubernetes.md, step by step as it stands, by a user who has the rights that it grants and no others."""

import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import yaml

from tests import docs
from tests.cluster import kubectl, layout, namespaces, operator, workloads
from tests.support import BIN, run

pytestmark = pytest.mark.cluster
WAIT_S = 200


class Walk:
    """The guide's blocks, run in their order in one folder; what differs here is put in their places."""

    def __init__(self, namespace, folder, home):
        self.folder = folder
        self.running = []
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAYKUBE_", "RAY_"))}
        path = f"{Path(shutil.which(kubectl.command())).parent}:{BIN}:{os.environ['PATH']}"
        self.environ = {**kept, "PATH": path, "RAYKUBE_HOME": str(home)}
        self.users = {"admin": kubectl.kubeconfig()}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.instead = {
            "ray-team": namespace,
            "--user=jane": f"--serviceaccount={namespace}:nobody",
            "registry.example.com/team/ray:1": layout.RAY_IMAGE,
            "--epochs 12": "--epochs 2",
            "--trials 4": "--trials 2",
            "8123": port,
        }

    def section(self, title):
        """Do all that a section says, and return what its commands printed."""
        found = [block for block in docs.blocks() if block.section == title]
        assert found, f"the guide has no section {title!r} with blocks"
        return "".join(self._do(block) for block in found)

    def _do(self, block):
        text = block.text
        for old, new in self.instead.items():
            text = text.replace(old, new)
        if block.verb == "file":
            path = self.folder / block.what
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            return ""
        self._export(text)
        return self._background(text) if block.what == "background" else self._run(text, block.what)

    def _export(self, text):
        lines = [line.removeprefix("export ") for line in text.splitlines() if line.startswith("export ")]
        self.environ |= dict(line.split("=", 1) for line in lines)

    def _run(self, text, user):
        words = ["bash", "-ec", text]
        environ = self.environ | {"KUBECONFIG": self.users[user]}
        done = subprocess.run(
            words, cwd=self.folder, env=environ, capture_output=True, text=True, timeout=WAIT_S, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def _background(self, text):
        """Start what is to be left running, and take the environment that it prints."""
        environ = self.environ | {"KUBECONFIG": self.users["user"]}
        words = ["bash", "-ec", f"exec {text}"]
        process = subprocess.Popen(words, cwd=self.folder, env=environ, stdout=subprocess.PIPE, text=True)
        self.running.append(process)
        first = process.stdout.readline()
        lines = [first, *(process.stdout.readline() for _ in range(2 if first.startswith("export") else 0))]
        self._export("".join(lines))
        return ""

    def end(self):
        """End what was left running."""
        for process in self.running:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            process.stdout.close()


@pytest.fixture(scope="module")
def walk(cluster, tmp_path_factory):  # noqa: ARG001 - it must be up
    """Give the walk, in a namespace that the guide itself makes."""
    folder = tmp_path_factory.mktemp("walk")
    shutil.copytree(layout.PROJECT / "jobs", folder / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    operator.wait()
    name = f"docs-{os.urandom(3).hex()}"
    walk = Walk(name, folder, tmp_path_factory.mktemp("home"))
    try:
        yield walk
    finally:
        walk.end()
        namespaces.delete(name)


def small(path):
    """Make a head alone of a manifest: three clusters of the guide are to fit on a test's machine at a time."""
    manifest = yaml.safe_load(path.read_text())
    del manifest["spec"]["workerGroupSpecs"]
    head = manifest["spec"]["headGroupSpec"]
    head["rayStartParams"] = {"num-cpus": "2"}
    pod = head["template"]["spec"]
    pod["terminationGracePeriodSeconds"] = workloads.GRACE_S
    pod["containers"][0]["imagePullPolicy"] = "IfNotPresent"
    pod["containers"][0]["resources"] = {"requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"memory": "6Gi"}}
    path.write_text(yaml.safe_dump(manifest))


def test_administrators_steps_make_a_namespace_with_a_user_and_a_volume(walk):
    walk.section("A namespace, rights, a volume (administrator)")
    name = walk.instead["ray-team"]
    kubectl.kubectl("label", "namespace", name, f"{layout.NAMESPACE_LABEL}=docs")
    walk.users["user"] = namespaces.nobody(name)  # who has no rights but those of the guide
    assert kubectl.get("pvc", "shared", name)["spec"]["accessModes"] == ["ReadWriteMany"]


def test_doctor_finds_the_guides_rights_complete_and_its_manifest_passes(walk):
    walk.section("A cluster manifest")
    told = walk.section("Look before you start")
    assert "FAIL" not in told
    assert "that raykube needs in" in told
    small(walk.folder / "cluster-configs" / "house.yaml")


def test_first_job_trains_and_is_found_by_name(walk):
    told = walk.section("The first job")
    assert "digits   SUCCEEDED" in told
    assert "run         digits" in told
    assert "CreatedRayCluster rayjob/digits: " in told
    found = json.loads(told[told.rindex("\n{") :])
    assert found["checkpoint"].startswith("/shared/digits/")


def test_cluster_that_does_not_run_says_why(walk):
    told = walk.section("When it does not run")
    assert "registry.example.com/team/nothing:1" in told
    assert "stuck deleted" in told


def test_model_is_served_and_replaced_by_the_best_of_a_search(walk):
    assert walk.section("Search") == "search\n"
    told = walk.section("Serve")
    assert '"predictions":' in told.replace(" ", "")
    assert told.index("/shared/digits/") < told.index("/shared/search/")
    assert "reader deleted" in told


def test_cluster_that_stays_takes_plain_ray_job_submit(walk):
    told = walk.section("A cluster that stays, and `ray job submit`")
    assert "no wait for a cluster" in told
    assert "six times seven is 42" in told


def test_rayjob_of_ones_own_passes_and_all_is_deleted(walk):
    assert "mine" in walk.section("A RayJob that you have already")
    told = walk.section("Clean up")
    assert "digits deleted\nsearch deleted\nquick deleted\ndemo deleted\n" in told
    left = kubectl.listed("rayjobs,rayclusters,rayservices,configmaps", walk.instead["ray-team"])
    assert {each["metadata"]["name"] for each in left} == {"kube-root-ca.crt"}


def doctor(kubeconfig, *words, folder):
    done = run("raykube", "doctor", "--json", *words, KUBECONFIG=kubeconfig, RAYKUBE_HOME=str(folder / "home"))
    return done.returncode, {check["name"]: check for check in json.loads(done.stdout)}


def test_doctor_lists_each_right_that_a_user_lacks(namespace, tmp_path):
    code, found = doctor(namespaces.nobody(namespace), "-n", namespace, folder=tmp_path)
    assert code == 1
    resources = {resource for _, resources, _ in namespaces.LEAST_PRIVILEGE for resource in resources}
    lacking = {name.removeprefix("right "): check for name, check in found.items() if name.startswith("right ")}
    assert lacking.keys() == resources
    assert 'resources: ["secrets"], verbs: ["get"]' in lacking["secrets"]["next_step"]
    assert found["server"]["ok"] is True
    assert found["operator"]["ok"] is None


def test_doctor_of_an_administrator_names_the_operator_and_what_is_missing(namespace, tmp_path):
    manifest = tmp_path / "house.yaml"
    manifest.write_text(
        (Path(__file__).parent / "manifests" / "house.yaml").read_text().replace("${RAY_VERSION}", "2.60.0")
    )
    code, found = doctor(kubectl.kubeconfig(), "--on", str(manifest), "-n", namespace, folder=tmp_path)
    assert code == 1
    assert [name for name, check in found.items() if check["ok"] is False] == ["claim shared"]
    assert found["operator"]["ok"] is True
    assert found["operator alive"]["ok"] is True
    assert found["storage"]["found"] == "/shared"


CHANGES = {
    "no answer from the API server https://127.0.0.1:1": lambda cluster, _: cluster.update(
        server="https://127.0.0.1:1"
    ),
    "its certificate is not trusted": lambda cluster, _: cluster.pop("certificate-authority-data"),
    "does not know who asks": lambda _, user: user.update(token="unknown"),
}


@pytest.mark.parametrize("words", CHANGES)
def test_doctor_says_why_a_server_does_not_answer(namespace, tmp_path, words):
    config = yaml.safe_load(Path(namespaces.least(namespace)).read_text())
    CHANGES[words](config["clusters"][0]["cluster"], config["users"][0]["user"])
    path = tmp_path / "changed.kubeconfig"
    path.write_text(yaml.safe_dump(config))
    code, found = doctor(str(path), "-n", namespace, folder=tmp_path)
    assert code == 1
    assert words in found["server"]["found"]
    assert "rights" not in found
