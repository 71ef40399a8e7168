"""Where a forwarded port leads, from a server that plays an API server and has no pods."""

import itertools
import socket
from urllib.parse import parse_qs, urlsplit

from raykube.backends.kuberay.forward import Forward
from raykube.backends.kubernetes.kubeapi import Kube
from tests.cluster.shell import until
from tests.servers import Quiet, serving, write_kubeconfig


class Api(Quiet):
    """Notes of which cluster the head is asked for."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        (selector,) = parse_qs(urlsplit(self.path).query)["labelSelector"]
        self.server.asked.append(selector.partition(",")[0])
        self.answer(200, {"items": []})


def test_port_leads_to_the_cluster_that_serves_when_a_connection_is_made(tmp_path, monkeypatch):
    clusters = itertools.chain(["hello-old"], itertools.repeat("hello-new"))
    with serving(Api) as server:
        monkeypatch.setenv("KUBECONFIG", write_kubeconfig(server, tmp_path / "kubeconfig"))
        with (
            Forward(Kube(), lambda: next(clusters), remote="serve") as there,
            socket.create_connection(("127.0.0.1", there.port)),
        ):
            until(lambda: len(server.asked) > 1, "it is tried again", 10)
    assert server.asked[:2] == ["ray.io/cluster=hello-old", "ray.io/cluster=hello-new"]
