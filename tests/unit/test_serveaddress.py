"""When a pod takes a service for running: once its address answers there, too."""

import socket

import pytest

from raykube.backends import Status
from raykube.backends.kuberay.serve import serveaddress
from raykube.backends.kuberay.serve.serveaddress import Address

SERVER = "https://10.96.0.1:443"


@pytest.fixture(autouse=True)
def _pod(monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")


@pytest.fixture
def port():
    """Give a socket of a port on which nobody listens yet."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held


def running(port, state="RUNNING"):
    url = f"http://127.0.0.1:{port.getsockname()[1]}/"
    return Status("hello", "service", state, "hello RUNNING (1 replica)", url=url)


def test_service_is_not_running_before_its_address_answers_in_the_pod_that_waits(port):
    address = Address(SERVER)
    found = address.checked(running(port))
    assert (found.state, found.detail) == ("PENDING", "hello RUNNING (1 replica); its address does not answer yet")
    port.listen()
    assert address.checked(running(port)) == running(port)


def test_address_that_has_answered_once_is_not_asked_again(port):
    address = Address(SERVER)
    port.listen()
    address.checked(running(port))
    port.close()
    assert address.checked(Status("hello", "service", "RUNNING", url="http://127.0.0.1:1/")).state == "RUNNING"


def test_address_that_a_pod_may_never_reach_is_waited_for_only_some_seconds(port, monkeypatch):
    address = Address(SERVER)
    assert address.checked(running(port)).state == "PENDING"
    monkeypatch.setattr(serveaddress, "ROUTED_S", 0.0)
    assert address.checked(running(port)).state == "RUNNING"


def test_service_that_does_not_run_is_told_as_it_is(port):
    assert Address(SERVER).checked(running(port, "FAILED")) == running(port, "FAILED")


@pytest.mark.parametrize(
    "server", ["https://kubernetes.default.svc", "https://kubernetes.default.svc.cluster.local:443"]
)
def test_pod_knows_its_own_kubernetes_by_name(server, port):
    assert Address(server).checked(running(port)).state == "PENDING"


def test_address_is_not_asked_outside_its_kubernetes(port, monkeypatch):
    assert Address("https://api.example.com:6443").checked(running(port)).state == "RUNNING"
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    assert Address(SERVER).checked(running(port)).state == "RUNNING"
