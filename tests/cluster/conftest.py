"""The cluster that tests run on, and a namespace of its own for each of them."""

import os

import pytest

from tests.cluster import kubectl, machine, namespaces, operator, processes

REQUIRED = "RAYKUBE_REQUIRE_CLUSTER"


@pytest.fixture(scope="package")
def cluster():
    """Give a cluster: the one that RAYKUBE_TEST_KUBECONFIG names, the one that is up, or one for these tests."""
    if kubectl.is_other():
        operator.wait()
        yield
        namespaces.wait_gone()
        return
    _skip_if_impossible()
    before = processes.alive()
    machine.up()
    yield
    namespaces.wait_gone()
    if not before:
        machine.down()


def _skip_if_impossible():
    if found := machine.problems():
        reason = f"no test cluster here: {'; '.join(found)}"
        if os.environ.get(REQUIRED):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


@pytest.fixture(scope="package")
def own_cluster(request):
    """Give this machine's own cluster, which a test may damage."""
    request.getfixturevalue("cluster")
    if kubectl.is_other():
        pytest.skip(f"{kubectl.OTHER} names a cluster that is not this machine's own to damage")


@pytest.fixture(autouse=True)
def _components_live(request):
    """Name the components that died in a test: whatever else is said of it, that is why it failed."""
    yield
    if request.node.get_closest_marker("cluster") and not kubectl.is_other() and processes.alive():
        assert not processes.dead(), "components died: python -m tests.cluster logs NAME"


@pytest.fixture
def namespace(request):
    """Give a fresh namespace, which is gone afterwards with all that was in it."""
    request.getfixturevalue("cluster")
    if not kubectl.is_other():
        operator.revive()
    name = namespaces.create("test")
    yield name
    namespaces.delete(name)


@pytest.fixture
def least(namespace, monkeypatch):
    """Be a user of the least rights in the namespace, and return the kubeconfig."""
    kubeconfig = namespaces.least(namespace)
    monkeypatch.setenv("KUBECONFIG", kubeconfig)
    return kubeconfig
