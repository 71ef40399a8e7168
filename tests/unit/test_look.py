"""What is said of a run where less than everything answers, from a real server with recorded answers."""

import base64
import contextlib
import itertools
import json
import re
import threading
import time
import traceback
from pathlib import Path

import pytest

import raykube as rk
from raykube.backends.kuberay import polling, rayhead
from raykube.backends.kuberay.logs.followed import Followed
from raykube.backends.kuberay.runs import jobs
from raykube.backends.kuberay.runs.look import Look
from raykube.backends.kubernetes import watching
from raykube.backends.kubernetes.kubeapi import Kube
from raykube.errors import Forbidden, NotFound, Unreachable
from tests.basics import until
from tests.servers import Quiet, kubernetes
from tests.support import typed

JOB = {
    "kind": "RayJob",
    "metadata": {
        "name": "a",
        "uid": "u",
        "creationTimestamp": "2026-11-24T12:00:00Z",
        "labels": {"kueue.x-k8s.io/queue-name": "team"},
    },
    "spec": {"submissionMode": "HTTPMode", "rayClusterSpec": {}},
    "status": {
        "jobDeploymentStatus": "Running",
        "jobStatus": "RUNNING",
        "jobId": "a-x",
        "rayClusterName": "a-c",
        "dashboardURL": "a-c-head-svc.test.svc.cluster.local:8265",
    },
}
EMPTY = {"metadata": {"resourceVersion": "1"}, "items": []}


class Api(Quiet):
    """Has one run that is in Ray; the test says with what it answers which paths instead."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        self.server.asked.append(self.path)
        for pattern, (code, body) in self.server.instead.items():
            if re.search(pattern, self.path):
                return self.answer(code, body)
        return self.answer(200, JOB if self.path.endswith("/rayjobs/a") else EMPTY)


@pytest.fixture
def api():
    with kubernetes(Api) as server:
        server.instead = {}
        yield server


def said(code, message):
    return code, {"kind": "Status", "code": code, "message": message}


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        # Kueue is not there: the server knows no such path.
        ("/workloads", said(404, "the server could not find the requested resource")),
        ("/proxy/", said(403, 'services "a-c-head-svc:dashboard" is forbidden: User "least" cannot get')),
        ("/proxy/", (500, "Internal Server Error: GCS is gone")),
    ],
)
def test_state_is_the_rayjobs_where_the_rest_is_not_told(api, path, answer):
    api.instead = {path: answer}
    status = rk.attach("a", on="kubernetes").status()
    assert (status.state, status.failure) == ("RUNNING", None)


def test_url_of_a_run_is_its_dashboard_through_the_api_server(api):
    path = "api/v1/namespaces/default/services/a-c-head-svc:dashboard/proxy"
    assert rk.attach("a", on="kubernetes").url == f"http://127.0.0.1:{api.server_port}/{path}/"


@pytest.mark.parametrize(("name", "kinds"), [("a", ["rayjobs"]), ("s", ["rayjobs", "rayservices"])])
def test_handle_is_made_with_no_more_questions_than_what_has_the_name(api, name, kinds):
    gone = {"kind": "Status", "code": 404, "message": "no", "details": {"kind": "rayjobs", "name": "s"}}
    api.instead = {"/rayjobs/s$": (404, gone)}
    assert rk.attach(name, on="kubernetes").name == name
    assert [path.rpartition("/namespaces/default/")[2] for path in api.asked] == [f"{kind}/{name}" for kind in kinds]


def test_cluster_without_kuberay_is_said_to_be_one(api):
    api.instead = {"/apis/ray.io/": said(404, "the server could not find the requested resource")}
    with pytest.raises(rk.BackendError, match="KubeRay's definitions are not installed") as caught:
        rk.attach("a", on="kubernetes")
    assert "helm install" in caught.value.next_step


def test_secret_without_a_token_is_named_with_the_key_that_it_lacks(api):
    auth = {"mode": "token", "secretName": "ours"}
    job = {**JOB, "spec": {**JOB["spec"], "rayClusterSpec": {"authOptions": auth}}}
    api.instead = {"/rayjobs/a$": (200, job), "/secrets/ours$": (200, {"data": {"password": "eA=="}})}
    assert rk.attach("a", on="kubernetes").status().state == "RUNNING"
    with pytest.raises(rk.BackendError, match="the Secret ours holds no token") as caught:
        Look(Kube(), "a").head()
    assert caught.value.why == "it has no key auth_token"


def test_token_of_a_secret_that_was_made_of_a_file_ends_where_its_line_does(api):
    api.instead = {"/secrets/a-c$": (200, {"data": {"auth_token": base64.b64encode(b"t0ken\n").decode()}})}
    assert rayhead.token(Kube(), "a-c", {"authOptions": {"mode": "token"}}) == "t0ken"


@pytest.mark.parametrize("held", [b"SECRET\nline", b"SECRET\xff", b"\n"])
def test_token_of_a_secret_that_cannot_be_sent_is_refused_without_its_words(api, held):
    api.instead = {"/secrets/a-c$": (200, {"data": {"auth_token": base64.b64encode(held).decode()}})}
    with pytest.raises(rk.BackendError, match="the Secret a-c holds no token") as caught:
        rayhead.token(Kube(), "a-c", {"authOptions": {"mode": "token"}})
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


ELSEWHERE = "../../kube-system/secrets/admin"


@pytest.mark.parametrize(
    ("spec", "status"),
    [
        ({"rayClusterSpec": {"authOptions": {"mode": "token", "secretName": ELSEWHERE}}}, {}),
        ({"clusterSelector": {"ray.io/cluster": ELSEWHERE}}, {}),
        ({"rayClusterSpec": {"authOptions": {"mode": "token"}}}, {"rayClusterName": ELSEWHERE}),
        (
            {"submissionMode": "SidecarMode", "rayClusterSpec": {}},
            {"dashboardURL": "", "rayClusterStatus": {"head": {"serviceName": ELSEWHERE}}},
        ),
        ({}, {"jobId": ELSEWHERE}),
        ({}, {"jobId": "x?follow=true"}),
    ],
)
def test_object_that_names_a_path_leads_nowhere_else(api, spec, status):
    job = {**JOB, "spec": {"submissionMode": "HTTPMode", **(spec or JOB["spec"])}, "status": JOB["status"] | status}
    api.instead = {"/rayjobs/a$": (200, job), "/proxy/": said(404, "no such job")}
    assert rk.attach("a", on="kubernetes").status().state == "RUNNING"
    with contextlib.suppress(rk.BackendError):
        jobs.stop(Look(Kube(), "a"))
    asked = [path.partition("?") for path in api.asked]
    assert [path for path, *_ in asked if "kube-system/" in path] == []
    assert [query for *_, query in asked if "follow" in query] == []


def test_state_of_a_service_is_the_rayservices_where_its_secret_has_no_token(api):
    found = json.loads((Path(__file__).parent / "recorded" / "services.json").read_text())["running"]["service"]
    name = found["status"]["activeServiceStatus"]["rayClusterName"]
    cluster = {"metadata": {"name": name}, "spec": {"authOptions": {"mode": "token"}}}
    cluster["status"] = {"head": {"serviceName": "head"}, "conditions": [{"type": "HeadPodReady", "status": "True"}]}
    gone = {"kind": "Status", "code": 404, "message": "not found", "details": {"kind": "rayjobs", "name": "hello"}}
    api.instead = {
        "/rayjobs/hello$": (404, gone),
        "/rayservices/hello$": (200, found),
        "/rayclusters": (200, {"items": [cluster]}),
        "/secrets/": (200, {"data": {}}),
    }
    assert rk.attach("hello", on="kubernetes").status().state == "RUNNING"


def test_token_of_a_cluster_with_a_long_name_is_where_kuberay_puts_it(api):
    name = "train-resnet50-imagenet-nightly-2026-11-27-abcd-x7k2p"
    api.instead = {
        "/secrets/in-resnet50-imagenet-nightly-2026-11-27-abcd-x7k2p$": (200, {"data": {"auth_token": "dDBrZW4="}}),
        "/secrets/r9-": (200, {"data": {"auth_token": "bmluZQ=="}}),
        "/secrets/": said(404, "not found"),
    }
    auth = {"authOptions": {"mode": "token"}}
    assert rayhead.token(Kube(), name, auth) == "t0ken"
    assert rayhead.token(Kube(), f"aaaa-99-{'b' * 47}", auth) == "nine"


@pytest.mark.parametrize("state", [said(503, "error trying to reach service: EOF"), (200, "half")])
def test_result_of_a_run_whose_state_was_not_told_is_not_taken_for_none(api, state):
    job = {**JOB, "status": {**JOB["status"], "jobStatus": "SUCCEEDED", "jobDeploymentStatus": "Complete"}}
    api.instead = {
        "/rayjobs/a$": (200, job),
        "/proxy/api/jobs/": (200, {"status": "SUCCEEDED", "driver_node_id": "n"}),
        "filename=job-driver": (200, {}),
        "/proxy/.*logs": state,
    }
    with pytest.raises(Unreachable):
        rk.attach("a", on="kubernetes").result()
    api.instead["/proxy/.*logs"] = said(404, "no such file")
    assert rk.attach("a", on="kubernetes").result() is None


def test_stop_of_a_run_in_ray_whose_head_does_not_answer_says_so_and_holds_nothing_back(api):
    api.instead = {"/proxy/": said(503, "no endpoints available for service")}
    with pytest.raises(Unreachable, match="the Ray head does not answer"):
        jobs.stop(Look(Kube(), "a"))


def test_wait_for_a_run_gives_up_where_no_server_answers_for_long(api, monkeypatch):
    monkeypatch.setattr(polling, "_TICK_S", 0.05)
    monkeypatch.setattr(polling, "GIVE_UP_S", 0.5)
    seen = Look(Kube(), "a")
    api.instead = {"": said(503, "apiserver is shutting down")}
    with contextlib.closing(seen.changes()) as changes:
        assert next(changes).failure.reason == "ApiServerUnreachable"
        with pytest.raises(Unreachable):
            [*itertools.islice(changes, 100)]


def test_reader_of_a_log_who_may_not_see_the_run_is_told_so(api):
    api.instead = {r"/rayjobs\?": said(403, 'rayjobs is forbidden: User "u" cannot list resource "rayjobs"')}
    followed = Followed(Look(Kube(), "a"))
    assert followed.ended.wait(10)
    with pytest.raises(Forbidden, match="may not list rayjobs"):
        followed.check()


def asking():
    return [thread for thread in threading.enumerate() if thread.name == "raykube-ray"]


def test_ray_is_asked_for_a_run_no_longer_than_somebody_waits_for_it(api):
    api.instead = {r"/rayjobs\?": (200, {**EMPTY, "items": [JOB]})}
    with contextlib.closing(Look(Kube(), "a").changes()) as changes:
        assert next(changes).state == "RUNNING"
        assert asking()
    until(lambda: not asking(), "nobody asks", 5)


def test_end_of_the_ray_job_is_seen_at_once_though_its_rayjob_still_runs(api):
    api.instead = {r"/rayjobs\?": (200, {**EMPTY, "items": [JOB]}), "/proxy/": (200, {"status": "RUNNING"})}
    with contextlib.closing(Look(Kube(), "a").changes()) as changes:
        assert next(changes).state == "RUNNING"
        api.instead["/proxy/"] = (200, {"status": "SUCCEEDED"})
        late = time.monotonic() + 2
        assert next(each.state for each in changes if each.is_terminal or time.monotonic() > late) == "SUCCEEDED"


@pytest.mark.parametrize(
    "words",
    [
        *(("cluster", "list"), ("cluster", "status", "a"), ("cluster", "delete", "a")),
        *(("job", verb, "a") for verb in ("status", "why", "stop", "delete", "logs", "result")),
        *(("service", verb, "a") for verb in ("status", "delete")),
        ("job", "submit", "--cluster", "a", "--dry-run=client", "--", "true"),
    ],
)
def test_object_that_does_not_say_what_it_is_to_be_is_told_of(api, words, tmp_path):
    bare = {**{key: value for key, value in JOB.items() if key != "spec"}, "apiVersion": "ray.io/v1"}
    metadata = {**bare["metadata"], "namespace": "test"}
    cluster, service = ({"kind": f"Ray{kind}", "metadata": metadata} for kind in ("Cluster", "Service"))
    api.instead = {
        "/rayjobs/a$": (200, bare),
        "/rayjobs": (200, {**EMPTY, "items": [bare]}),
        "/rayservices/a$": (200, service),
        "/rayservices": (200, {**EMPTY, "items": [service]}),
        "/rayclusters/a$": (200, cluster),
        "/rayclusters": (200, {**EMPTY, "items": [cluster]}),
        "/proxy/": said(404, "no such job"),
    }
    noun, verb, *rest = words
    done = typed(noun, verb, "--on", "kubernetes", *rest, cwd=tmp_path)
    assert done.returncode in (0, 1, 2)  # and nothing was raised that is no answer


@pytest.mark.parametrize("spec", [{}, {"spec": {"rayVersion": "2.60.0"}}])
def test_job_for_a_cluster_that_has_no_head_is_refused_in_words(api, spec, tmp_path):
    cluster = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "a"}, **spec}
    api.instead = {"/rayclusters/a$": (200, cluster)}
    done = typed("job", "submit", "--on", "kubernetes", "--cluster", "a", "--", "true", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no job can run on cluster a" in done.stderr
    assert "spec.headGroupSpec" in done.stderr


@pytest.mark.usefixtures("api")
def test_rayjob_that_names_no_cluster_has_none():
    with pytest.raises(NotFound, match="names no cluster"):
        rayhead.cluster_spec(Kube(), {"metadata": {"name": "a"}, "spec": {"clusterSelector": None}})


def test_secret_that_is_refused_is_not_asked_for_at_each_look_and_is_later(api, monkeypatch):
    job = {**JOB, "spec": {**JOB["spec"], "rayClusterSpec": {"authOptions": {"mode": "token"}}}}
    answers = {"/rayjobs/a$": (200, job), r"/rayjobs\?": (200, {**EMPTY, "items": [job]})}
    api.instead = {"/secrets/": said(403, "secrets is forbidden"), **answers}
    seen = Look(Kube(), "a")
    with contextlib.closing(seen.changes()) as changes:
        assert [each.state for each in itertools.islice(changes, 3)] == ["RUNNING"] * 3
    with pytest.raises(rk.errors.Forbidden, match="does not allow this"):
        seen.head()
    assert len([path for path in api.asked if "/secrets/" in path]) == 1
    monkeypatch.setattr(watching, "STARTING_S", 0.0)
    later = Look(Kube(), "a")
    with contextlib.closing(later.changes()) as changes:
        assert [each.state for each in itertools.islice(changes, 3)] == ["RUNNING"] * 3
    assert len([path for path in api.asked if "/secrets/" in path]) >= 4
