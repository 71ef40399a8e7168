"""The KubeRay backend keeps the contract of all backends, on real pods."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

import raykube as rk
from raykube import api
from tests.cluster import kubectl, namespaces, workloads
from tests.contract.backend import BackendContract
from tests.support import run

pytestmark = pytest.mark.cluster

#: Facts in which KubeRay's part depends on whose the cluster is; each takes a Ray of its own to start.
WITH_A_CLUSTER_OF_THEIR_OWN = {
    "test_failed_run_submitted_again_within_other_limits_is_its_next_attempt",
    "test_retry_runs_the_next_attempt",
    "test_run_is_found_from_another_process",
    "test_run_that_ends_well_is_succeeded_with_its_log",
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
    manifest = yaml.safe_load(workloads.manifest("house"))
    del manifest["spec"]["workerGroupSpecs"]
    manifest["spec"]["headGroupSpec"]["rayStartParams"] = {"num-cpus": "2"}
    (folder / "cluster-configs" / "house.yaml").write_text(yaml.safe_dump(manifest))
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

    @pytest.fixture
    def forget(self, deleting):
        """Return a function that has a run deleted."""
        return deleting

    @pytest.fixture
    def place(self, request, house):
        """Return the cluster that the fact is about."""
        if request.node.originalname in WITH_A_CLUSTER_OF_THEIR_OWN:
            return house
        return request.getfixturevalue("standing")
