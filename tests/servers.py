"""Servers of this process that tests put in the way."""

import contextlib
import http.server
import json
import select
import socket
import ssl
import tempfile
import threading
from pathlib import Path

import pytest


class Quiet(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    #: Else the body of each answer waits 40 ms for the client to acknowledge its headers.
    disable_nagle_algorithm = True

    def log_message(self, *words):
        pass

    def body(self):
        """Return what was sent."""
        return self.rfile.read(int(self.headers["content-length"]))

    def answer(self, code, body):
        """Answer with JSON."""
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Proxy(Quiet):
    """Carries connections on, to where only it knows some names to lead, and notes what it was asked for."""

    def do_CONNECT(self):
        self.server.asked.append(self.path)
        host, port = self.path.split(":")
        with socket.create_connection((self.server.names.get(host, host), int(port))) as there:
            self.send_response(200)
            self.end_headers()
            relay(self.connection, there)
        self.close_connection = True


def relay(here, there):
    """Carry bytes until either side ends."""
    ends = {here: there, there: here}
    while True:
        waiting = [each for each in ends if isinstance(each, ssl.SSLSocket) and each.pending()]
        for each in waiting or select.select([*ends], [], [])[0]:
            data = each.recv(65536)
            if not data:
                return
            ends[each].sendall(data)


@contextlib.contextmanager
def serving(handler, tls=None):
    """Run a server, and give it."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.refused, server.asked, server.names = set(), [], {}
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def write_kubeconfig(server, path):
    """Write a kubeconfig whose only context is a server, and return its path."""
    # It has no certificate, and reading those of all authorities takes longer than most tests.
    cluster = {"server": f"http://127.0.0.1:{server.server_port}", "insecure-skip-tls-verify": True}
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {}}],
    }
    path.write_text(json.dumps(config))
    return str(path)


@contextlib.contextmanager
def kubernetes(handler):
    """Run an API server, to which KUBECONFIG leads meanwhile, and give it."""
    with serving(handler) as server, tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", write_kubeconfig(server, Path(folder, "kubeconfig")))
        yield server
