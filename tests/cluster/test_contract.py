"""The KubeRay backend keeps the contract of all backends, on real pods."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

import raykube as rk
from raykube import api, plans
from tests.cluster import kubectl, namespaces, workloads
from tests.cluster.shell import ClusterError, until
from tests.contract.backend import BackendContract
from tests.support import run

pytestmark = pytest.mark.cluster
#: How many submit, or delete, at once; each does so three times.
THREADS = 8

#: Facts in which KubeRay's part depends on whose the cluster is; each takes a Ray of its own to start.
WITH_A_CLUSTER_OF_THEIR_OWN = {
    "test_failed_run_submitted_again_within_other_limits_is_its_next_attempt",
    "test_retry_runs_the_next_attempt",
    "test_stopped_run_keeps_its_log",
    "test_timeout_ends_the_run",
}


@pytest.fixture(scope="class")
def shared_namespace(cluster):  # noqa: ARG001 - it must be up
    """Give one namespace for all facts: each has a run of its own name in it."""
    with namespaces.fresh("contract") as name:
        kubectl.apply(workloads.manifest("claim"), namespace=name)
        yield name


@pytest.fixture(scope="class")
def deleting(shared_namespace):  # noqa: ARG001 - deletions end before their namespace does
    """Give what deletes runs while the next test begins: a deletion waits for Kubernetes."""
    with ThreadPoolExecutor(1) as pool:
        pending = []
        yield lambda run: pending.append(pool.submit(run.delete))
        for each in pending:
            each.result()


@pytest.fixture(scope="class")
def house(shared_namespace, tmp_path_factory):
    """Return a preset of a folder that commands find too."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "cluster-configs").mkdir()
    (folder / "cluster-configs" / "house.yaml").write_text(yaml.safe_dump(workloads.head_alone()))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("KUBECONFIG", namespaces.least(shared_namespace))
        yield rk.Cluster.load("house")


@pytest.fixture(scope="class")
def standing(house):
    """Return a cluster that stays."""
    done = run("raykube", "cluster", "create", "standing", "--on", house.name, timeout=240)
    assert done.returncode == 0, done.stderr
    return api.running("standing", house)


class TestKubeRay(BackendContract):
    """The facts, on clusters that are a head alone: one of the run's own, or one that stays for all."""

    @pytest.fixture(scope="class")
    @classmethod
    def forget(cls, deleting):
        """Return a function that has a run deleted."""
        return deleting

    @pytest.fixture(scope="class")
    @classmethod
    def own_place(cls, house):
        """Return a preset: each run on it has a cluster of its own."""
        return house

    @pytest.fixture
    def place(self, request, house):
        """Return the cluster that the fact is about."""
        if request.node.originalname in WITH_A_CLUSTER_OF_THEIR_OWN:
            return house
        return request.getfixturevalue("standing")


def names(namespace):
    """Return what there is in a namespace of the kinds that runs are made of, or may have made."""
    kinds = "configmaps,secrets,rayjobs.ray.io,rayclusters.ray.io,pods,services,persistentvolumeclaims"
    return {(each["kind"], each["metadata"]["name"]) for each in kubectl.listed(kinds, namespace)}


def suspended(name, code):
    """Return the plan of a job, with its code, that KubeRay takes and does not start."""
    *beside, job = rk.plan(rk.Job(entrypoint="python hello.py", name=name, working_dir=code), "cpu-small").body
    return plans.written_rayjob(
        [*beside, {**job, "spec": {**job["spec"], "suspend": True}}], rk.Cluster.load("kubernetes")
    )


@pytest.mark.usefixtures("least")
def test_many_submits_and_deletes_at_once_leave_nothing(namespace, tmp_path):
    (tmp_path / "hello.py").write_text("print('hello')\n")
    until(lambda: kubectl.get("configmap", "kube-root-ca.crt", namespace), "what is Kubernetes' own is there", 60)
    before, runs = names(namespace), [f"never-{number}" for number in range(3 * THREADS)]
    made = {found for name in runs for found in (("RayJob", name), ("ConfigMap", f"{name}-code"))}
    with ThreadPoolExecutor(THREADS) as pool:
        handles = list(pool.map(lambda name: api.start(suspended(name, tmp_path)), runs))
        assert names(namespace) == before | made
        list(pool.map(lambda handle: handle.delete(), handles))
    with contextlib.suppress(ClusterError):  # the comparison tells more
        until(lambda: names(namespace) == before, "the runs' code is gone", 60)
    assert names(namespace) == before
