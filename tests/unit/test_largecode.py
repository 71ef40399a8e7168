"""Code that is too large for a ConfigMap, brought to a head: a server that plays an API server and its Ray."""

import json
import os

import pytest

import raykube as rk
from raykube.backends.kuberay import largecode
from raykube.backends.kubernetes.kubeapi import Kube
from tests.servers import Quiet, serving, write_kubeconfig

JOB = {
    "kind": "RayJob",
    "metadata": {"name": "big", "uid": "u"},
    "spec": {"submissionMode": "InteractiveMode", "rayClusterSpec": {}},
    "status": {"rayClusterName": "big-c", "dashboardURL": "big-c-head-svc.default.svc.cluster.local:8265"},
}


class Api(Quiet):
    """Has a run whose head answers and knows no job yet, and notes what jobs that is given."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        if self.path.endswith("/rayjobs/big"):
            self.answer(200, JOB)
        elif self.path.endswith("/api/version"):
            self.answer(200, {"ray_version": "2.60.0"})
        else:
            self.answer(404, {"message": "Job big-1 does not exist"})

    def do_PUT(self):  # noqa: N802
        self._read()
        self.answer(200, {})

    def do_POST(self):  # noqa: N802
        self.server.asked.append(json.loads(self._read()))
        self.answer(200, {})

    def _read(self):
        return self.rfile.read(int(self.headers["content-length"]))


@pytest.fixture
def submitted(tmp_path, monkeypatch):
    """Give the bodies of the jobs that Ray was given."""
    with serving(Api) as server:
        monkeypatch.setenv("KUBECONFIG", write_kubeconfig(server, tmp_path / "kubeconfig"))
        yield server.asked


def test_job_whose_code_is_uploaded_reserves_what_its_driver_needs(submitted, tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "hello.py").write_text("print('hello')\n")
    (tmp_path / "code" / "weights").write_bytes(os.urandom(800 * 1024))
    reserved = {"entrypoint_num_cpus": 1.0, "entrypoint_resources": {"disk": 2.0}}
    job = rk.Job(entrypoint="python hello.py", name="big", working_dir=tmp_path / "code", **reserved)
    largecode.after(Kube(), rk.plan(job, "cpu-small"))
    (body,) = submitted
    assert body["submission_id"] == "big-1"
    assert {key: value for key, value in body.items() if key.startswith("entrypoint_")} == reserved
