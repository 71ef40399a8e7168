"""What a watch does with the answers of an API server, from a real server with recorded answers."""

import contextlib
import threading

import pytest

from raykube.backends.kubernetes import watching
from raykube.backends.kubernetes.kubeapi import Kube
from raykube.backends.kubernetes.watching import Watching
from raykube.errors import Forbidden
from tests.cluster.shell import until
from tests.servers import Quiet, serving, write_kubeconfig

JOB = {"metadata": {"uid": "u", "name": "digits", "resourceVersion": "7"}}
#: As a server says it that has read its bindings, but not yet the roles.
REFUSED = {
    "kind": "Status",
    "code": 403,
    "message": 'rayjobs.ray.io "digits" is forbidden: User "least" cannot watch resource "rayjobs" in API group '
    '"ray.io" in the namespace "test": RBAC: clusterrole.rbac.authorization.k8s.io "system:discovery" not found',
}


class Api(Quiet):
    """Lists one RayJob, then tells changes of it until the test lets the connection drop."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        if self.server.refuses.is_set():
            self.server.refusals += 1
            self.answer(403, REFUSED)
        elif "watch=1" not in self.path:
            self.answer(200, {"metadata": {"resourceVersion": "7"}, "items": [JOB]})
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.flush()
            self.server.watches += 1
            self.server.dropped.wait(20)
            self.close_connection = True


@pytest.fixture
def api(tmp_path, monkeypatch):
    with serving(Api) as server:
        server.refuses, server.dropped, server.refusals, server.watches = threading.Event(), threading.Event(), 0, 0
        monkeypatch.setenv("KUBECONFIG", write_kubeconfig(server, tmp_path / "kubeconfig"))
        yield server
        server.dropped.set()


@pytest.fixture
def watched(api):  # noqa: ARG001 - it is asked
    with contextlib.closing(Watching(Kube())) as found:
        yield found


def test_first_answer_that_refuses_ends_a_watch(api, watched):
    api.refuses.set()
    watched.watch("RayJob")
    until(lambda: isinstance(watched.error("RayJob"), Forbidden), "it is told", 5)
    assert api.refusals == 1


def test_refusal_by_a_server_that_starts_ends_no_watch(api, watched):
    watched.watch("RayJob")
    until(lambda: api.watches == 1, "it watches", 5)
    api.refuses.set()
    api.dropped.set()
    until(lambda: api.refusals >= 2, "it asks again", 5)
    api.dropped.clear()
    api.refuses.clear()
    until(lambda: api.watches == 2, "it watches again", 5)
    assert watched.error("RayJob") is None
    assert watched.of("RayJob") == [JOB]


def test_refusal_that_lasts_ends_a_watch(api, watched, monkeypatch):
    monkeypatch.setattr(watching, "_STARTING_S", 0.3)
    watched.watch("RayJob")
    until(lambda: api.watches == 1, "it watches", 5)
    api.refuses.set()
    api.dropped.set()
    until(lambda: isinstance(watched.error("RayJob"), Forbidden), "it is told", 5)
