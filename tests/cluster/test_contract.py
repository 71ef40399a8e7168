"""The KubeRay backend keeps the contract of all backends, on real pods."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

import raykube as rk
from tests.cluster import kubectl, namespaces, workloads
from tests.contract.backend import BackendContract

pytestmark = pytest.mark.cluster


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


class TestKubeRay(BackendContract):
    """The facts, each on a cluster of its own that is a head alone."""

    @pytest.fixture
    def forget(self, deleting):
        """Return a function that has a run deleted."""
        return deleting

    @pytest.fixture
    def place(self, shared_namespace, tmp_path_factory, monkeypatch):
        """Return a preset of a folder that commands find too."""
        folder = tmp_path_factory.mktemp("project")
        (folder / "cluster-configs").mkdir()
        manifest = yaml.safe_load(workloads.manifest("house"))
        del manifest["spec"]["workerGroupSpecs"]
        manifest["spec"]["headGroupSpec"]["rayStartParams"] = {"num-cpus": "2"}
        (folder / "cluster-configs" / "house.yaml").write_text(yaml.safe_dump(manifest))
        monkeypatch.chdir(folder)
        monkeypatch.setenv("KUBECONFIG", namespaces.least(shared_namespace))
        return rk.Cluster.load("house")
