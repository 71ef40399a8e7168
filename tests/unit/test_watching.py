"""What a watch does with the answers of an API server, from a real server with recorded answers."""

import contextlib
import json
import socket
import threading

import httpx
import pytest

from raykube.backends.kubernetes import kubeapi, watching
from raykube.backends.kubernetes.kubeapi import Kube
from raykube.backends.kubernetes.watching import Watching
from raykube.errors import Forbidden, Unreachable
from tests.basics import until
from tests.servers import Quiet, kubernetes

JOB = {"metadata": {"uid": "u", "name": "digits", "resourceVersion": "7"}}
CHANGED = {"metadata": {**JOB["metadata"], "resourceVersion": "8"}}
#: As a server says it that has read its bindings, but not yet the roles.
REFUSED = {
    "kind": "Status",
    "code": 403,
    "message": 'rayjobs.ray.io "digits" is forbidden: User "least" cannot watch resource "rayjobs" in API group '
    '"ray.io" in the namespace "test": RBAC: clusterrole.rbac.authorization.k8s.io "system:discovery" not found',
}


#: As a server says it whose store has thrown old versions away.
GONE = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version: 7 (9)"}


class Api(Quiet):
    """Lists one RayJob, then tells changes of it until the test lets the connection drop."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        if self.server.mute.is_set():
            self.server.dropped.wait(20)
            self.close_connection = True
        elif self.server.fails.is_set():
            self.answer(500, {"kind": "Status", "code": 500, "message": "etcdserver: request timed out"})
        elif self.server.refuses.is_set():
            self.server.refusals += 1
            self.answer(403, REFUSED)
        elif "watch=1" not in self.path:
            self.answer(200, {"metadata": {"resourceVersion": "7"}, "items": [JOB]})
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.server.says)
            self.wfile.flush()
            self.server.watches += 1
            self.server.dropped.wait(20)
            self.close_connection = True


@pytest.fixture
def api():
    with kubernetes(Api) as server:
        server.refuses, server.dropped, server.mute, server.fails = (threading.Event() for _ in range(4))
        server.refusals = server.watches = 0
        server.says = b""
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
    monkeypatch.setattr(watching, "STARTING_S", 0.3)
    watched.watch("RayJob")
    until(lambda: api.watches == 1, "it watches", 5)
    api.refuses.set()
    api.dropped.set()
    until(lambda: isinstance(watched.error("RayJob"), Forbidden), "it is told", 5)


def test_refusal_counts_from_when_a_server_has_allowed_it_last(api, watched, monkeypatch):
    watched.watch("RayJob")
    until(lambda: api.watches == 1, "it watches", 5)
    api.refuses.set()
    api.dropped.set()
    until(lambda: api.refusals, "it is refused", 5)
    api.says = json.dumps({"type": "MODIFIED", "object": CHANGED}).encode() + b"\n"
    api.dropped.clear()
    api.refuses.clear()
    until(lambda: watched.of("RayJob") == [CHANGED], "it sees a change", 5)
    before = api.refusals
    monkeypatch.setattr(watching, "STARTING_S", 0)
    api.refuses.set()
    api.dropped.set()
    until(lambda: isinstance(watched.error("RayJob"), Forbidden), "it is told", 5)
    assert api.refusals == before + 2  # a single one, the first since, has not lasted


def test_watch_with_other_selectors_ends_the_one_before(api, watched):
    def threads():
        return [each for each in threading.enumerate() if each.name == "raykube-watch-ours"]

    watched.watch("Pod", key="ours", labelSelector="ray.io/cluster=a")
    until(lambda: api.watches == 1, "it watches", 5)
    watched.watch("Pod", key="ours", labelSelector="ray.io/cluster=b")
    until(lambda: api.watches == 2, "it watches the other", 5)
    until(lambda: len(threads()) == 1, "the first ends", 5)


def test_server_that_takes_connections_and_does_not_answer_is_told(api, monkeypatch):
    # Longer than any pause between two tries, as every limit on an answer is.
    monkeypatch.setattr(kubeapi, "_TIMEOUT", httpx.Timeout(1.0))
    monkeypatch.setattr(watching, "_LONGEST_PAUSE_S", 0.3)
    api.mute.set()
    with contextlib.closing(Watching(Kube())) as watched:
        watched.watch("RayJob")
        until(lambda: isinstance(watched.error("RayJob"), Unreachable), "it is told", 5)
        api.mute.clear()
        until(lambda: watched.of("RayJob") == [JOB] and watched.error("RayJob") is None, "it is mended", 5)


def test_watch_that_is_silent_for_longer_than_a_server_is_begins_anew(api, watched, monkeypatch):
    monkeypatch.setattr(kubeapi, "_WATCH_TIMEOUT", httpx.Timeout(0.3))
    watched.watch("RayJob")
    until(lambda: api.watches == 2, "it watches again", 5)
    assert (watched.of("RayJob"), watched.error("RayJob")) == ([JOB], None)


def test_server_that_fails_is_told_until_it_answers(api, watched):
    api.fails.set()
    watched.watch("RayJob")
    error = until(lambda: watched.error("RayJob"), "it is told", 5)
    assert isinstance(error, Unreachable)
    assert error.why == "etcdserver: request timed out"
    api.fails.clear()
    until(lambda: watched.of("RayJob") == [JOB] and watched.error("RayJob") is None, "it is mended", 5)


def test_connection_that_is_read_for_long_is_asked_after(api):
    with Kube().stream("/api/v1/namespaces/default/pods?watch=1") as response:
        connection = response.extensions["network_stream"].get_extra_info("socket")
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
        api.dropped.set()


def test_streams_that_go_on_leave_room_for_other_requests(api, monkeypatch):
    monkeypatch.setattr(kubeapi, "_TIMEOUT", httpx.Timeout(5.0))
    kube = Kube()
    with contextlib.ExitStack() as stack:
        for _ in range(101):
            stack.enter_context(kube.stream("/api/v1/namespaces/default/pods?watch=1"))
        assert kube.listed("RayJob") == [JOB]
        api.dropped.set()


class Forgetful(Quiet):
    """No longer knows the version that it listed first; says so with its status, or within the stream."""

    def do_GET(self):  # noqa: N802
        if "watch=1" not in self.path:
            self.server.lists += 1
            version = "7" if self.server.lists == 1 else "9"
            self.answer(200, {"metadata": {"resourceVersion": version}, "items": [JOB]})
        elif "resourceVersion=7" in self.path and not self.server.in_stream:
            self.answer(410, GONE)
        else:
            changed = {**JOB, "metadata": {**JOB["metadata"], "resourceVersion": "10"}}
            gone, change = {"type": "ERROR", "object": GONE}, {"type": "MODIFIED", "object": changed}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(gone if "resourceVersion=7" in self.path else change).encode() + b"\n")
            self.server.ended.wait(20 if "resourceVersion=9" in self.path else 0)
            self.close_connection = True


@pytest.mark.parametrize("in_stream", [False, True])
def test_change_is_seen_after_a_version_that_the_server_has_forgotten(in_stream):
    with kubernetes(Forgetful) as server:
        server.in_stream, server.lists, server.ended = in_stream, 0, threading.Event()
        with contextlib.closing(Watching(Kube())) as watched:
            watched.watch("RayJob")
            found = until(lambda: [each for each in watched.of("RayJob") or [] if each != JOB], "it is seen", 5)
            assert (found[0]["metadata"]["resourceVersion"], watched.error("RayJob")) == ("10", None)
            server.ended.set()
    assert server.lists == 2


class Broken(Quiet):
    """Ends each watch that goes on from its first list with what is no change, or is an error."""

    def do_GET(self):  # noqa: N802
        if "watch=1" not in self.path:
            self.server.lists += 1
            self.answer(200, {"metadata": {"resourceVersion": str(self.server.lists)}, "items": [JOB]})
        elif self.server.lists == 1 and isinstance(self.server.says, tuple):
            self.answer(*self.server.says)
        else:
            self.send_response(200)
            self.end_headers()
            if self.server.lists == 1:
                self.wfile.write(f"{self.server.says}\n".encode())
            else:
                self.wfile.flush()
                self.server.ended.wait(20)
            self.close_connection = True


@pytest.mark.parametrize(
    "says",
    [
        json.dumps({"type": "ERROR", "object": {"kind": "Status", "code": 500, "message": "no"}}),
        "<html>",
        json.dumps({"type": "MODIFIED"}),
        json.dumps({"type": "ERROR", "object": None}),
        json.dumps({"type": "ADDED", "object": {"metadata": {"resourceVersion": "8"}}}),
        (504, {"kind": "Status", "code": 504, "message": "Too large resource version: 1, current: 0"}),
    ],
)
def test_watch_that_cannot_go_on_from_where_it_was_lists_again(says):
    with kubernetes(Broken) as server:
        server.says, server.lists, server.ended = says, 0, threading.Event()
        with contextlib.closing(Watching(Kube())) as watched:
            watched.watch("RayJob")
            until(lambda: server.lists == 2 and watched.error("RayJob") is None, "it lists again", 5)
            assert watched.of("RayJob") == [JOB]
            server.ended.set()


class Busy(Quiet):
    """Has too many requests at first."""

    def do_GET(self):  # noqa: N802
        self.server.times += 1
        busy = self.server.times <= 2
        self.answer(429 if busy else 200, {"kind": "Status", "code": 429, "message": "busy"} if busy else JOB)


def test_server_with_too_many_requests_is_asked_again(monkeypatch):
    monkeypatch.setattr(kubeapi, "_BUSY_S", (0.01, 0.01))
    with kubernetes(Busy) as server:
        server.times = 0
        assert Kube().get("RayJob", "digits") == JOB
        server.times = -10
        with pytest.raises(Unreachable, match="cannot do GET"):
            Kube().get("RayJob", "digits")
