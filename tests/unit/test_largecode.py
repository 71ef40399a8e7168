"""Code that is too large for a ConfigMap, brought to a head: a server that plays an API server and its Ray."""

import json
import logging
import os
from dataclasses import replace
from typing import ClassVar

import pytest

import raykube as rk
from raykube.backends.kuberay import largecode
from raykube.backends.kuberay.runs import jobs
from raykube.backends.kubernetes.kubeapi import Kube
from raykube.bodies import CodePlace
from raykube.errors import BackendError, Forbidden
from raykube.package import zipped
from raykube.plans import Plan
from tests.servers import Quiet, kubernetes

JOB = {
    "kind": "RayJob",
    "metadata": {"name": "big", "uid": "u"},
    "spec": {"submissionMode": "InteractiveMode", "rayClusterSpec": {}},
    "status": {"rayClusterName": "big-c", "dashboardURL": "big-c-head-svc.default.svc.cluster.local:8265"},
}


class Api(Quiet):
    """Has a run whose head answers and knows no job yet, and notes what jobs that is given."""

    job: ClassVar = JOB

    def do_GET(self):  # noqa: N802 - http.server calls it so
        if self.path.endswith("/rayjobs/big"):
            self.answer(200, self.job)
        elif "elector=" in self.path:
            self.answer(200, {"items": []})
        elif self.path.endswith("/api/version"):
            self.answer(200, {"ray_version": "2.60.0"})
        else:
            self.answer(404, {"message": "Job big-1 does not exist"})

    def do_PUT(self):  # noqa: N802
        self.body()
        self.answer(200, {})

    def do_POST(self):  # noqa: N802
        self.server.asked.append(json.loads(self.body()))
        self.answer(200, {})


@pytest.fixture
def submitted():
    """Give the bodies of the jobs that Ray was given."""
    with kubernetes(Api) as server:
        yield server.asked


def plan(folder, **given):
    (folder / "code").mkdir()
    (folder / "code" / "hello.py").write_text("print('hello')\n")
    (folder / "code" / "weights").write_bytes(os.urandom(1200 * 1024))
    return rk.plan(rk.Job(entrypoint="python hello.py", name="big", working_dir=folder / "code", **given), "cpu-small")


def test_job_whose_code_is_uploaded_reserves_what_its_driver_needs(submitted, tmp_path):
    reserved = {"entrypoint_num_cpus": 1.0, "entrypoint_resources": {"disk": 2.0}}
    largecode.after(Kube(), plan(tmp_path, **reserved), JOB)
    (body,) = submitted
    assert body["submission_id"] == "big-1"
    assert {key: value for key, value in body.items() if key.startswith("entrypoint_")} == reserved


def test_job_whose_code_is_uploaded_knows_its_attempt(submitted, tmp_path):
    planned = plan(tmp_path)
    largecode.after(Kube(), planned, jobs.again(planned.body[-1], 2))
    assert submitted[0]["runtime_env"]["env_vars"]["RAYKUBE_ATTEMPT"] == "2"


def test_code_is_not_waited_to_be_given_to_a_run_that_has_ended(submitted, tmp_path, monkeypatch):
    status = {"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded", "message": "too late"}
    monkeypatch.setattr(Api, "job", {**JOB, "status": status})
    largecode.after(Kube(), plan(tmp_path, pending_timeout_s=60), JOB)
    assert submitted == []


def test_code_that_is_waited_to_be_given_says_what_for(submitted, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Api, "job", {**JOB, "status": {"jobDeploymentStatus": "Initializing"}})
    with pytest.raises(BackendError, match="did not answer within 1 s"):
        largecode.after(Kube(), plan(tmp_path, pending_timeout_s=1), JOB)
    assert caplog.messages == ["big gets its code once its head answers: waiting for KubeRay to create its cluster"]
    assert submitted == []


class Refusing(Api):
    """Takes nothing, and notes all that it is to keep."""

    def do_POST(self):  # noqa: N802
        if "dryRun=All" not in self.path:
            self.server.asked.append(self.path)
        self.body()
        self.answer(403, {"kind": "Status", "code": 403, "message": "you may not create rayjobs"})


def test_large_code_of_what_the_server_refuses_is_not_put_into_the_storage(tmp_path):
    planned = replace(plan(tmp_path), code=CodePlace("storage", "file:///shared/big/.code/1.zip"))
    with kubernetes(Refusing) as server, pytest.raises(Forbidden, match="may not create"):
        largecode.before(Kube(), planned)
    assert server.asked == []


def test_code_that_a_written_rayjob_names_is_left_where_it_is(submitted):
    environment = "working_dir: https://example.org/code.zip"
    written = {"kind": "RayJob", "metadata": {"name": "big"}, "spec": {"runtimeEnvYAML": environment}}
    largecode.before(Kube(), Plan("big", "kuberay", (written,)))
    assert submitted == []


class Storing(Api):
    """Makes pods that have in their storage what they are to be given."""

    def do_GET(self):  # noqa: N802
        self.answer(200 if "/proxy/" in self.path else 404, {})

    def do_POST(self):  # noqa: N802
        self.body()
        self.answer(201, {"metadata": {"name": "big-storage-1"}})

    def do_DELETE(self):  # noqa: N802
        self.do_POST()


def test_way_of_large_code_to_the_storage_is_told(tmp_path, caplog):
    caplog.set_level(logging.INFO, "raykube")
    planned = replace(plan(tmp_path), code=CodePlace("storage", "file:///shared/big/.code/1.zip"))
    with kubernetes(Storing):
        largecode.before(Kube(), planned)
    size = f"{len(zipped(planned.package)):,} bytes"
    told = f"the code of big ({size}) goes to /shared/big/.code/1.zip by a pod, which may have to wait for"
    assert [each.startswith(told) for each in caplog.messages if "code" in each] == [True]


class Given(Api):
    """Was given the job by another client a moment ago."""

    def do_POST(self):  # noqa: N802
        self.server.asked.append(json.loads(self.body()))
        words = "ValueError: Job with submission_id big-1 already exists. Please use a different submission_id."
        self.answer(500, {"message": words})


def test_job_whose_code_another_client_has_uploaded_meanwhile_is_joined(tmp_path):
    with kubernetes(Given) as server:
        largecode.after(Kube(), plan(tmp_path), JOB)
    assert [body["submission_id"] for body in server.asked] == ["big-1"]
