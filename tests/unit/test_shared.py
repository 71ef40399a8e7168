"""Handles of one process that ask the same server have its connections in common."""

import gc
import weakref
from pathlib import Path

import certifi
import pytest

import raykube as rk
from raykube.backends.kubernetes import shared
from tests.servers import Quiet, kubernetes

JOB = {
    "kind": "RayJob",
    "metadata": {"name": "a", "uid": "u", "creationTimestamp": "2026-11-24T12:00:00Z"},
    "spec": {"rayClusterSpec": {}},
    "status": {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"},
}


class Ports(Quiet):
    """Has a run, and notes from which port it is asked, which is which connection."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        self.server.asked.append(self.client_address[1])
        self.answer(200, JOB if self.path.endswith("/rayjobs/a") else {"items": []})


def test_handles_of_many_runs_have_one_connection():
    with kubernetes(Ports) as server:
        handles = [rk.attach("a", on="kubernetes") for _ in range(20)]
        assert {handle.status().state for handle in handles} == {"SUCCEEDED"}
        assert len(set(server.asked)) == 1


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """Return the kubeconfig of a server that nobody asks here."""
    path, authority = tmp_path / "kubeconfig", tmp_path / "ca.crt"
    authority.write_bytes(Path(certifi.where()).read_bytes())
    path.write_text(
        "{current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}], users: [{name: u, user: {}}],"
        " clusters: [{name: c, cluster: {server: 'https://one', certificate-authority: ca.crt}}]}"
    )
    monkeypatch.setenv("KUBECONFIG", str(path))
    return path


def test_handle_is_made_anew_where_the_way_to_the_server_has_changed(nowhere, monkeypatch):
    def renewed():
        (nowhere.parent / "ca.crt").write_text((nowhere.parent / "ca.crt").read_text() + "\n")

    held = [shared.kube()]
    changes = (
        lambda: nowhere.write_text(nowhere.read_text().replace("https://one", "https://two")),
        lambda: monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1"),
        renewed,
    )
    for change in changes:
        assert shared.kube("c", "default") is held[-1]
        change()
        held.append(shared.kube())
    assert len(set(held)) == len(changes) + 1
    assert held[1].server == "https://two"
    assert shared.kube("c", "other") not in held


@pytest.mark.usefixtures("nowhere")
def test_connections_go_with_the_last_handle():
    first, second = shared.kube(), shared.kube()
    kept, client = weakref.ref(first), first.http
    del first
    gc.collect()
    assert (kept(), client.is_closed) == (second, False)
    del second
    gc.collect()
    assert (kept(), client.is_closed) == (None, True)
