"""Where a forwarded port leads, from a server that plays an API server and has no pods."""

import contextlib
import itertools
import os
import resource
import socket
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from raykube.backends.kuberay.forward import Forward
from raykube.backends.kubernetes.kubeapi import Kube
from tests.basics import until
from tests.servers import Quiet, kubernetes


class Api(Quiet):
    """Notes of which cluster the head is asked for."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        (selector,) = parse_qs(urlsplit(self.path).query)["labelSelector"]
        self.server.asked.append(selector.partition(",")[0])
        self.answer(200, {"items": []})


def test_port_leads_to_the_cluster_that_serves_when_a_connection_is_made():
    clusters = itertools.chain(["hello-old"], itertools.repeat("hello-new"))
    with (
        kubernetes(Api) as server,
        Forward(Kube(), lambda: next(clusters), remote="serve") as there,
        socket.create_connection(("127.0.0.1", there.port)),
    ):
        until(lambda: len(server.asked) > 1, "it is tried again", 10)
    assert server.asked[:2] == ["ray.io/cluster=hello-old", "ray.io/cluster=hello-new"]


class Restarted(Quiet):
    """Carries one connection, which it drops, and from then on refuses what it allowed, as one that starts."""

    def do_GET(self):  # noqa: N802
        self.server.asked.append(urlsplit(self.path).path.rpartition("/")[2])
        if "portforward" in self.server.asked[:-1]:
            self.answer(403, {"kind": "Status", "code": 403, "message": "pods is forbidden", "details": {}})
        elif self.server.asked[-1] == "pods":
            metadata = {"name": "head", "labels": {"ray.io/node-type": "head"}}
            pod = {"metadata": metadata, "spec": {"containers": [{}]}, "status": {"phase": "Running"}}
            self.answer(200, {"items": [pod]})
        else:
            self.send_response(101)
            self.end_headers()
            self.close_connection = True


def test_connection_waits_for_a_server_that_refuses_what_it_has_allowed(caplog):
    with (
        kubernetes(Restarted) as server,
        Forward(Kube(), "hello") as there,
        socket.create_connection(("127.0.0.1", there.port)),
    ):
        until(lambda: server.asked.count("pods") > 3, "it is tried again", 10)
    assert "waiting: " in caplog.text
    assert "a connection was ended" not in caplog.text


def another():
    """Return another descriptor; None when there is none."""
    with contextlib.suppress(OSError):
        return os.dup(0)
    return None


def test_forward_outlives_a_moment_without_files(caplog):
    with (
        kubernetes(Api) as server,
        Forward(Kube(), lambda: "hello", remote="serve") as there,
        socket.socket() as caller,
    ):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = max(int(each.name) for each in Path("/proc/self/fd").iterdir()) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        taken = [*iter(another, None)]
        try:
            caller.connect(("127.0.0.1", there.port))
            until(lambda: "a connection is not taken yet" in caplog.text, "it is told", 10)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for each in taken:
                os.close(each)
        until(lambda: server.asked, "the connection is taken", 10)


def test_forward_outlives_a_moment_without_threads(caplog):
    with kubernetes(Api) as server, Forward(Kube(), lambda: "hello", remote="serve") as there:
        before = threading.stack_size(2**48)  # which no machine has the addresses for
        try:
            address = ("127.0.0.1", there.port)
            with pytest.raises(ConnectionResetError), socket.create_connection(address, timeout=10) as caller:
                caller.recv(1)
            until(lambda: "can't start new thread" in caplog.text, "it is told", 10)
        finally:
            threading.stack_size(before)
        with socket.create_connection(("127.0.0.1", there.port)):
            until(lambda: server.asked, "the next connection is taken", 10)


class Empty(Quiet):
    """Has neither pods nor clusters."""

    def do_GET(self):  # noqa: N802
        details = {"kind": "rayclusters", "name": "hello"}
        missing = {"kind": "Status", "code": 404, "message": "not found", "details": details}
        self.answer(*((404, missing) if "/rayclusters/" in self.path else (200, {"items": []})))


def test_forward_to_a_cluster_that_is_gone_says_so(caplog):
    with kubernetes(Empty), Forward(Kube(), "hello") as there, socket.create_connection(("127.0.0.1", there.port)):
        assert there.gone.wait(10)
        until(lambda: "cluster hello is gone" in caplog.text, "it is told", 10)


class Silent(Quiet):
    """Takes requests, and answers none before the test has ended."""

    def do_GET(self):  # noqa: N802
        self.server.asked.append(self.path)
        self.server.ended.wait(20)
        self.close_connection = True


def test_forward_ends_while_the_server_is_silent():
    with kubernetes(Silent) as server:
        server.ended = threading.Event()
        with Forward(Kube(), "hello") as there, socket.create_connection(("127.0.0.1", there.port)):
            until(lambda: server.asked, "it asks for the head", 10)
            begun = time.monotonic()
        assert time.monotonic() - begun < 10
        server.ended.set()
        until(lambda: not there._thread.is_alive(), "its thread ends", 10)
        there._wake.close()
        there._waker.close()
