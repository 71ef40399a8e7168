"""Handles and what they answer are values: compared, shown, pickled and copied."""

import copy
import pickle
from dataclasses import asdict

import pytest

from raykube import wire
from raykube.backends import Status
from raykube.backends.kuberay.backend import KubeRay
from raykube.backends.local import observe, records
from raykube.backends.local.backend import Local
from raykube.handles import Endpoint, Run
from tests.servers import Quiet, serving, write_kubeconfig


def test_handle_is_that_of_its_place():
    places = [Local(), KubeRay(), KubeRay("a"), KubeRay("a", "b"), KubeRay("", "b")]
    assert len({Run("x", place) for place in places}) == len(places)
    assert Run("x", KubeRay("a", "b")) == Run("x", KubeRay("a", "b")) != Endpoint("x", KubeRay("a", "b"))
    assert repr(Run("x", KubeRay("a", "b"))) == "Run(name='x', backend=KubeRay(context='a', namespace='b'))"
    assert repr(Endpoint("x", Local())) == "Endpoint(name='x', backend=Local())"


@pytest.mark.parametrize("again", [lambda run: pickle.loads(pickle.dumps(run)), copy.deepcopy])
def test_handle_that_was_asked_is_taken_to_another_process(again, tmp_path, monkeypatch):
    with serving(Quiet) as server:
        monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(server, tmp_path / "kubeconfig")))
        run = Run("x", KubeRay("", "b"))
        asked = run.backend.kube
        assert again(run) == run
        assert "kube" not in vars(again(run).backend)
        assert run.backend.kube is asked


def test_status_is_copied_and_pickled(tmp_path):
    (tmp_path / "x" / "stage").mkdir(parents=True)
    (tmp_path / "x" / "stage" / wire.METRICS_FILE).write_text('{"metrics": {"loss": 0.5}}\n')
    record = records.Record("x", "job", "h", "", {}, str(tmp_path), 1.0)
    for status in (Status("x", "job", "RUNNING"), Status("x", "job", "RUNNING", progress=observe.progress(record))):
        assert pickle.loads(pickle.dumps(status)) == copy.deepcopy(status) == status
        assert asdict(status)["progress"] == status.progress
    assert status.progress == {"loss": 0.5}
