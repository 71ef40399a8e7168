"""Logs that grow, of a server that is silent before they begin or within them."""

import threading

import httpx
import pytest

from raykube.backends.kuberay.logs import logfiles
from raykube.backends.kubernetes import kubeapi
from raykube.backends.kubernetes.kubeapi import Kube, Stop
from raykube.backends.rayapi import RayApi
from raykube.errors import Unreachable
from tests.servers import Quiet, kubernetes

LIMIT_S = 0.3


class Api(Quiet):
    """Takes the first requests for a log without an answer, and has pauses within those that it answers."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        self.server.asked.append(self.path)
        if "/logs/file" in self.path:
            self.send_response(200)
            self.send_header("content-length", "8")
            self.end_headers()
            self.wfile.write(b"one\ntwo\n")
        elif len(self.server.asked) <= self.server.silent:
            self.server.ended.wait(10)
            self.close_connection = True
        else:
            self.grow()

    def grow(self):
        self.send_response(200)
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(b"one\n")
        self.wfile.flush()
        self.server.ended.wait(3 * LIMIT_S)
        self.wfile.write(b"two\n")
        self.server.is_written.set()


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr(kubeapi, "_TIMEOUT", httpx.Timeout(LIMIT_S))
    with kubernetes(Api) as server:
        server.silent, server.ended, server.is_written = 0, threading.Event(), threading.Event()
        yield server
        server.ended.set()


def test_log_that_nobody_begins_is_no_answer(api):
    api.silent = 1
    with pytest.raises(Unreachable, match="ReadTimeout"):
        list(Kube().pod_log_lines("head", Stop()))


@pytest.mark.usefixtures("api")
def test_log_that_has_begun_may_be_silent_for_longer_than_any_answer():
    assert list(Kube().pod_log_lines("head", Stop())) == [b"one", b"two"]


def test_file_that_was_empty_for_long_is_read_whole_and_once(api, monkeypatch, caplog):
    monkeypatch.setattr(logfiles, "_LOOK_S", 0.05)
    api.silent, kube = 2, Kube()
    file = logfiles.LogFile("a-c", "node", "replica.log", RayApi.behind(kube.http, "/proxy", ""))
    following = logfiles.Following(kube, lambda: ([file], api.is_written.is_set()))
    assert list(following.lines()) == ["one", "two"]
    assert len([path for path in api.asked if "/logs/stream" in path]) == 3
    assert caplog.text == ""
