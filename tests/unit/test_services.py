"""What the state of a service on KubeRay is, and what is sent to change one: on statuses that a real cluster gave."""

import base64
import copy
import fnmatch
import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs

import pytest
import yaml

from raykube import plans
from raykube.backends.kuberay import objects
from raykube.backends.kuberay.causes.clustercauses import UNSEEN_S
from raykube.backends.kuberay.causes.observed import Observed
from raykube.backends.kuberay.logs import servelogs
from raykube.backends.kuberay.serve import servecode, servelook, servestates, services
from raykube.backends.kubernetes import watching
from raykube.backends.kubernetes.fields import seconds
from raykube.backends.kubernetes.kubeapi import Kube
from raykube.errors import ServiceFailed, Unreachable
from raykube.handles import Endpoint
from tests.servers import Quiet, kubernetes

RECORDED = json.loads((Path(__file__).parent / "recorded" / "services.json").read_text())
SERVE = json.loads((Path(__file__).parent / "recorded" / "serve.json").read_text())
NOW = 1795526200.0
READY = {"metadata": {"name": "hello-dmm26"}, "status": {"conditions": [{"type": "HeadPodReady", "status": "True"}]}}


def recorded(name):
    """Return a service and its applications as they were seen."""
    found = copy.deepcopy(RECORDED[name])
    return found["service"], found["apps"]


def status(service, apps, cluster=READY, now=NOW):
    return servestates.service_status(Observed(owner=service, cluster=cluster, now=now), apps)


def condition(service, kind):
    return next(each for each in service["status"]["conditions"] if each["type"] == kind)


def test_time_that_nobody_has_noted_is_none():
    service, apps = recorded("running")
    del service["metadata"]["creationTimestamp"]
    assert status(service, apps).submitted is None


def test_service_whose_applications_run_is_running_and_has_an_address():
    found = status(*recorded("running"))
    assert (found.kind, found.state, found.failure) == ("service", "RUNNING", None)
    assert found.detail == "hello RUNNING (1 replica)"
    assert found.url == "http://hello-serve-svc.svc-scratch:8000/"


def test_service_tells_what_was_deployed_and_when_that_was_last_changed():
    service, apps = recorded("running")
    service["metadata"]["managedFields"] = [{"manager": "raykube", "time": "2026-11-24T12:58:00Z"}]
    found = status(service, apps)
    assert found.started == seconds("2026-11-24T12:58:00Z") > found.submitted
    assert found.deployed.startswith("hello:app, code ")
    service["spec"]["serveConfigV2"] = "applications: 3"
    assert status(service, apps).deployed == ""


def test_service_tells_which_plan_it_has():
    service, apps = recorded("running")
    service["metadata"]["labels"] = {"raykube.io/plan": "0123456789abcdef"}
    assert status(service, apps).plan == "0123456789abcdef"
    del service["metadata"]["labels"]
    assert status(service, apps).plan == ""


def test_service_is_not_running_while_serve_has_the_configuration_before():
    service, _ = recorded("failed")
    _, before = recorded("running")
    found = status(service, before)
    assert (found.state, found.detail) == ("PENDING", "hello NOT_STARTED")


def test_service_is_not_running_before_kuberay_has_seen_its_change():
    service, apps = recorded("running")
    service["metadata"]["generation"] += 1
    assert status(service, apps).state == "PENDING"


def test_service_whose_change_nobody_takes_up_has_no_operator():
    service, apps = recorded("running")
    service["metadata"]["generation"] += 1
    service["metadata"]["managedFields"] = [{"manager": "raykube", "time": "2026-11-24T12:58:00Z"}]
    made = seconds("2026-11-24T12:58:00Z")
    assert status(service, apps, now=made + UNSEEN_S).failure is None
    found = status(service, apps, now=made + UNSEEN_S + 1)
    assert (found.state, found.failure.reason) == ("PENDING", "OperatorNotRunning")
    told = {"involvedObject": {"name": "hello"}, "lastTimestamp": "2026-11-24T12:58:09Z", "message": "it lives"}
    seen = Observed(owner=service, cluster=READY, events=(told,), now=made + UNSEEN_S + 1)
    assert servestates.service_status(seen, apps).failure is None


IDLE = {"type": "Ready", "status": "False", "lastTransitionTime": "2026-11-24T10:00:05Z", "message": "unready: [ray]"}


def with_an_idle_worker(kind="worker", **ray):
    """Return a service that is being updated, and of which one pod has been without a replica for hours."""
    service, apps = recorded("running")
    apps["hello"]["status"] = "DEPLOYING"
    began = {"running": {"startedAt": "2026-11-24T10:00:05Z"}}
    container = {"name": "ray", "ready": False, "restartCount": 0, "state": began, **ray}
    metadata = {"name": "w", "labels": {"ray.io/node-type": kind}, "creationTimestamp": "2026-11-24T10:00:00Z"}
    spec = {"containers": [{"name": "ray"}]}
    pod = {"metadata": metadata, "spec": spec, "status": {"conditions": [IDLE], "containerStatuses": [container]}}
    return servestates.service_status(Observed(owner=service, cluster=READY, pods=(pod,), now=NOW), apps).failure


def test_worker_without_a_replica_is_no_fault_whatever_it_has_got_over():
    assert with_an_idle_worker() is None
    killed = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    assert with_an_idle_worker(lastState=killed, restartCount=3) is None
    assert with_an_idle_worker(lastState={"terminated": {"exitCode": 1}}, restartCount=3) is None


def test_worker_that_does_not_run_and_a_head_that_is_not_ready_are_faults():
    assert with_an_idle_worker(state={}).reason == "WorkerGroupIncomplete"
    assert with_an_idle_worker("head").reason == "HeadNotReady"
    killed = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    assert with_an_idle_worker(state={}, lastState=killed).reason == "WorkerOOMKilled"


def test_service_without_endpoints_is_not_running():
    service, apps = recorded("running")
    condition(service, "Ready")["status"] = "False"
    assert status(service, apps).state == "PENDING"


def test_service_whose_serve_does_not_answer_is_not_running():
    assert status(recorded("running")[0], {}).state == "PENDING"


def test_service_whose_serve_may_not_be_asked_is_as_kuberay_says():
    service, _ = recorded("running")
    assert status(service, None).state == "RUNNING"
    service["status"]["activeServiceStatus"]["applicationStatuses"]["hello"]["status"] = "DEPLOYING"
    assert status(service, None).state == "PENDING"
    service["metadata"]["generation"] += 1
    assert status(service, None).detail == "hello NOT_STARTED"


class Serve(Quiet):
    """A head behind an API server: it has no token, and of Serve what the test says."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        code = self.server.codes.pop(0)
        refused = {"kind": "Status", "code": code, "message": "no", "details": {}}
        self.answer(code, {"applications": {"hello": {}}} if code == 200 else refused)


def test_refusal_of_what_was_allowed_is_no_answer_until_it_lasts(monkeypatch):
    with kubernetes(Serve) as server:
        server.codes = [403, 200, 403, 403, 200]
        kube = Kube()
        head = servelook.ServeHead(kube, {**READY, "status": {"head": {"serviceName": "head"}}})
        assert [head.applications() for _ in range(3)] == [None, {"hello": {}}, {}]
        monkeypatch.setattr(watching, "STARTING_S", 0.0)
        assert [head.applications() for _ in range(2)] == [None, {"hello": {}}]


class Headless(Quiet):
    """Has a service whose head's pod does not run."""

    def do_GET(self):  # noqa: N802
        if "/proxy/" in self.path:
            words = 'no endpoints available for service "head"'
            self.answer(503, {"kind": "Status", "code": 503, "reason": "ServiceUnavailable", "message": words})
        elif "/rayclusters/" in self.path:
            self.answer(200, {**READY, "status": {"head": {"serviceName": "head"}}})
        else:
            self.answer(200, getattr(self.server, "service", recorded("running")[0]))


def test_log_of_a_service_whose_head_cannot_be_reached_leads_to_why():
    with kubernetes(Headless), pytest.raises(Unreachable, match="the Ray head does not answer") as told:
        list(servelogs.lines(Kube(), "hello", follow=False))
    assert told.value.why == 'no endpoints available for service "head"'
    assert told.value.next_step == "raykube service why hello"


class Logging(Quiet):
    """Has a service whose head knows files of two nodes, one of which does not answer, until the service is gone."""

    def do_GET(self):  # noqa: N802
        path, _, query = self.path.partition("?")
        asked = {key: value for key, (value,) in parse_qs(query).items()}
        if not path.startswith("/api/v1/") or "/proxy/" not in path:
            gone = {"kind": "Status", "code": 404, "details": {"kind": "rayservices", "name": "hello"}}
            self.answer(404, gone) if self.server.gone else Headless.do_GET(self)
        elif path.endswith("/nodes"):
            nodes = [{"raylet": {"nodeId": node, "state": "ALIVE"}} for node in ("lost", "n")]
            self.answer(200, {"data": {"summary": nodes}})
        elif path.endswith("/actors"):
            self.answer(200, {"data": {"result": {"result": self.server.actors}}})
        elif asked["node_id"] == "lost":
            self.answer(500, "Agent for node id: lost doesn't exist")
        elif path.endswith("/logs"):
            files = fnmatch.filter(self.server.files, asked["glob"])
            self.answer(200, {"data": {"result": {"x": files}}})
        else:
            self.log(self.server.files[asked["filename"]])

    def log(self, text):
        self.send_response(200)
        self.send_header("content-length", str(len(text) + ("cut" in text)))
        self.end_headers()
        self.wfile.write(text.encode())
        self.close_connection = "cut" in text


@contextmanager
def logging(files, *actors):
    """Give a server that has these files, and replicas of these processes and states."""
    with kubernetes(Logging) as server:
        server.gone, server.files = False, files
        named = {"class_name": "ServeReplica:hello:Model", "name": "SERVE_REPLICA::hello#Model#a", "node_id": "n"}
        server.actors = [named | {"pid": pid, "state": state} for pid, state in actors]
        server.actors.append(named | {"pid": 9, "state": "ALIVE", "class_name": "ServeReplica:hello2:Model"})
        yield server


def said(second, words):
    return f"INFO 2026-11-28 12:00:0{second},000 hello_Model a -- {words}\n"


OUTPUT = "worker-w{0}-01-{0}.{1}"
MARK = ":actor_name:ServeReplica:hello:Model\n"


def test_logs_of_a_services_replicas_are_merged_and_one_that_is_cut_is_told_of_after_all_others():
    late, early, cut = (said(second, second) for second in (3, 1, 2))
    files = {OUTPUT.format(6, "err"): MARK + late, OUTPUT.format(7, "err"): MARK + early}
    with logging(files, (6, "ALIVE"), (7, "ALIVE"), (8, "ALIVE")):
        assert list(servelogs.lines(Kube(), "hello", follow=False)) == [early[:-1], late[:-1]]
        files |= {OUTPUT.format(7, "err"): cut + "cut", OUTPUT.format(8, "err"): early}
        lines = servelogs.lines(Kube(), "hello", follow=False)
        assert [next(lines) for _ in range(4)] == [early[:-1], cut[:-1], "cut", late[:-1]]
        with pytest.raises(Unreachable):
            next(lines)


def test_log_of_a_service_has_what_its_replicas_print_also_those_that_ended():
    files = {
        "serve/controller_build_hello_1.log": said(0, "loading"),
        OUTPUT.format(7, "out"): f"{MARK}printed\n",
        OUTPUT.format(7, "err"): f"{MARK}{said(2, 'asked')}",
        OUTPUT.format(8, "err"): f"{MARK}{said(1, 'before')}warned\n",
        OUTPUT.format(8, "out"): "three\n",
        OUTPUT.format(8, "out.1"): "two\n",
        OUTPUT.format(8, "out.2"): f"{MARK}one\n",
        OUTPUT.format(9, "out"): "of another service\n",
        OUTPUT.format(6, "out"): "of a job\n",
    }
    with logging(files, (7, "ALIVE"), (8, "DEAD"), (0, "PENDING_CREATION")):
        lines = list(servelogs.lines(Kube(), "hello", follow=False))
    logged = [said(0, "loading")[:-1], said(1, "before")[:-1], "warned", said(2, "asked")[:-1]]
    assert lines == [*logged, "one", "two", "three", "printed"]


@pytest.mark.parametrize("variable", ["RAY_SERVE_THROUGHPUT_OPTIMIZED=1", "RAY_SERVE_LOG_TO_STDERR=0"])
def test_log_of_a_service_that_logs_to_serves_own_files_is_read_from_there(variable):
    name, _, value = variable.partition("=")
    service, _ = recorded("running")
    (container, *_) = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"]
    files = {"serve/replica_hello_Model_a.log": said(1, "asked"), OUTPUT.format(7, "err"): MARK}
    with logging(files, (7, "ALIVE")) as server:
        assert list(servelogs.lines(Kube(), "hello", follow=False)) == []
        container["env"] = [{"name": name, "value": value}]
        server.service = service
        assert list(servelogs.lines(Kube(), "hello", follow=False)) == [said(1, "asked")[:-1]]


def test_followed_log_of_a_service_has_what_is_printed_later_and_by_new_replicas():
    err, new = OUTPUT.format(7, "err"), OUTPUT.format(6, "out")
    files = {err: f"{MARK}{said(2, 'two')}print", f"{err}.1": "of a full file\n"}
    with logging(files, (7, "ALIVE")) as server:
        lines = servelogs.lines(Kube(), "hello", follow=True)
        assert next(lines) == said(2, "two")[:-1]
        files[err] += "ed\n"
        assert next(lines) == "printed"
        files[new] = f"{MARK}of another\n"
        server.actors.append(server.actors[0] | {"pid": 6})
        assert next(lines) == "of another"
        server.gone = True
        assert list(lines) == []


def test_service_that_failed_says_so_in_serves_own_words():
    found = status(*recorded("failed"))
    assert (found.state, found.failure.reason) == ("FAILED", "DeployFailed")
    assert found.failure.message == "ValueError: args ['wrod'] are not known"
    assert "hello.py" in found.failure.tail[-2]
    assert found.failure.next_step.startswith("correct the application as the message says and deploy again")
    assert found.detail == "DeployFailed: ValueError: args ['wrod'] are not known"


def of_a_replica(name):
    """Return a service whose one deployment Serve tells of as it once did of another."""
    service, apps = recorded("running")
    (echo,) = SERVE[name].values()
    return service, {"hello": apps["hello"] | copy.deepcopy(echo)}


@pytest.mark.parametrize("name", ["failed", "retrying"])
def test_service_whose_replica_does_not_start_says_what_the_replica_said(name):
    found = status(*of_a_replica(name))
    state, reason = {"failed": ("FAILED", "DeployFailed"), "retrying": ("PENDING", "ReplicaFailed")}[name]
    assert (found.state, found.failure.reason) == (state, reason)
    assert found.detail == f"{reason}: RuntimeError: weights do not fit"


def test_service_whose_replica_finds_no_place_waits_for_it_or_for_the_pod_that_is_to_have_it():
    service, apps = recorded("running")
    words = "Deployment 'Model' has 1 replicas that have taken more than 30s to be scheduled. This may be due to"
    apps["hello"] |= {"status": "DEPLOYING", "deployments": {"Model": {"status": "UPDATING", "message": words}}}
    found = status(service, apps)
    assert (found.state, found.failure.reason) == ("PENDING", "ReplicaUnschedulable")
    assert found.detail.startswith("ReplicaUnschedulable: Deployment 'Model' has 1 replicas that have taken more")
    waits = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "Insufficient cpu"}
    metadata = {"name": "w", "labels": {"ray.io/node-type": "worker"}, "creationTimestamp": "2026-11-24T10:00:00Z"}
    pod = {"metadata": metadata, "spec": {"containers": [{"name": "ray"}]}, "status": {"conditions": [waits]}}
    seen = Observed(owner=service, cluster=READY, pods=(pod,), now=NOW)
    assert servestates.service_status(seen, apps).failure.reason == "Unschedulable"


def test_service_whose_update_failed_goes_on_with_the_replicas_of_before():
    found = status(*of_a_replica("update"))
    assert (found.state, found.failure.reason) == ("FAILED", "UpdateFailed")
    assert found.detail.startswith("the update failed; what was deployed before goes on serving: raykube.errors.")


def test_service_whose_new_code_cannot_be_loaded_may_go_on_while_requests_are_taken():
    may = "; what was deployed before may still answer"
    service, apps = of_a_replica("unbuilt")
    found = status(service, apps)
    assert (found.state, found.failure.reason) == ("FAILED", "DeployFailed")
    assert found.failure.next_step.endswith(may)
    with pytest.raises(ServiceFailed, match="the update of hello failed: DeployFailed"):
        Endpoint("hello", SimpleNamespace(changes=lambda *_: iter([found]))).wait_ready()
    condition(service, "Ready")["status"] = "False"
    assert may not in status(service, apps).failure.next_step
    assert may not in status(*of_a_replica("failed")).failure.next_step


def test_service_that_was_never_up_has_nothing_that_may_go_on():
    service, apps = of_a_replica("unbuilt")
    service["status"]["pendingServiceStatus"] = service["status"].pop("activeServiceStatus")
    assert "before" not in status(service, apps).failure.next_step


def test_service_whose_new_cluster_failed_goes_on_with_the_old_one():
    service, apps = of_a_replica("failed")
    service["status"]["pendingServiceStatus"] = {"rayClusterName": "hello-new"}
    assert status(service, apps).failure.reason == "UpdateFailed"


def test_service_goes_on_while_the_cluster_of_its_update_cannot_come_up():
    service, _ = recorded("running")
    service["status"]["pendingServiceStatus"] = {"rayClusterName": "hello-new"}
    waiting = {"name": "ray", "state": {"waiting": {"reason": "ErrImagePull", "message": "no/such:1: not found"}}}
    metadata = {"name": "h", "labels": {"ray.io/node-type": "head"}, "creationTimestamp": "2026-11-24T12:58:00Z"}
    spec = {"containers": [{"name": "ray", "image": "no/such:1"}]}
    pod = {"metadata": metadata, "spec": spec, "status": {"containerStatuses": [waiting]}}
    seen = Observed(owner=service, cluster={"metadata": {"name": "hello-new"}}, pods=(pod,), now=NOW)
    found = servestates.service_status(seen, {})
    goes_on = "what was deployed before goes on serving"
    assert (found.state, found.failure.reason) == ("PENDING", "ImageNotFound")
    assert found.detail.startswith(f"the update waits; {goes_on}: ImageNotFound: ")
    assert found.failure.next_step.endswith(f"; meanwhile {goes_on}")
    condition(service, "Ready")["status"] = "False"
    found = servestates.service_status(seen, {})
    assert found.detail.startswith("ImageNotFound: ")
    assert goes_on not in found.failure.next_step


def test_service_that_kuberay_gave_up_is_failed():
    service, _ = recorded("starting")
    condition(service, "Ready")["reason"] = "InitializingTimeout"
    assert status(service, None, cluster={}).state == "FAILED"


def refused():
    """Return a service that KubeRay takes for invalid."""
    service, _ = recorded("starting")
    condition(service, "Ready").update(reason="ValidationFailed", message="The RayService spec is invalid: no")
    return service


def test_service_that_kuberay_takes_for_invalid_has_failed_until_a_later_version_was_valid():
    service = refused()
    found = status(service, None, cluster={}, now=0.0)
    assert (found.state, found.failure.reason) == ("FAILED", "InvalidRayServiceSpec")
    condition(service, "Ready")["observedGeneration"] = service["status"]["observedGeneration"] - 1
    found = status(service, None, cluster={}, now=0.0)
    assert (found.state, found.failure) == ("WAITING", None)


def test_service_is_not_invalid_by_what_kuberay_said_before_its_last_change():
    service = refused()
    service["metadata"]["managedFields"] = [
        {"manager": "raykube", "time": "2026-11-24T12:57:40Z"},
        {"manager": "ray-operator", "subresource": "status", "time": "2026-11-24T12:57:50Z"},
    ]
    assert status(service, None, cluster={}, now=0.0).state == "WAITING"
    service["status"]["lastUpdateTime"] = "2026-11-24T12:57:40Z"
    assert status(service, None, cluster={}, now=0.0).state == "FAILED"


def test_service_that_is_suspended_is_stopped():
    service, apps = recorded("running")
    service["status"]["conditions"].append({"type": "Suspended", "status": "True"})
    assert status(service, apps).state == "STOPPED"
    service["spec"]["suspend"] = True
    found = status(service, None, cluster={})
    assert (found.state, found.failure.reason) == ("STOPPED", "Suspended")
    assert "patch rayservice hello --type merge" in found.failure.next_step


def test_service_that_is_resumed_is_not_stopped_before_kuberay_has_seen_that():
    service, apps = recorded("running")
    service["status"]["conditions"].append({"type": "Suspended", "status": "True"})
    service["spec"]["suspend"] = True
    service["metadata"]["generation"] += 1
    assert status(service, apps).state == "STOPPED"
    del service["spec"]["suspend"]
    assert status(service, apps).state != "STOPPED"


def test_service_that_is_being_deleted_is_stopped():
    service, apps = recorded("running")
    service["metadata"]["deletionTimestamp"] = "2026-11-24T13:00:00Z"
    service["metadata"]["generation"] += 1  # as the server does then
    service["metadata"]["managedFields"] = [{"manager": "raykube", "time": "2026-11-24T12:58:00Z"}]
    found = status(service, apps)
    assert (found.state, found.detail, found.failure) == ("STOPPED", "it is being deleted", None)


def test_service_whose_configuration_is_no_yaml_has_no_application_and_is_told_of():
    service, _ = recorded("running")
    service["spec"]["serveConfigV2"] = "applications: ["
    found = status(service, {})
    assert (found.state, found.detail) == ("PENDING", "no application")


def untold(at="2026-11-24T12:58:10Z", count=3):
    """Return what is seen of a service, changed at 12:58:00, that KubeRay could not hand to Serve at that time."""
    service, _ = recorded("running")
    service["spec"]["serveConfigV2"] = "applications: ["
    service["metadata"]["managedFields"] = [{"manager": "kubectl", "time": "2026-11-24T12:58:00Z"}]
    about = {"kind": "RayService", "name": "hello"}
    words = "Failed to update serve applications: yaml: line 1: did not find expected node content"
    told = {"involvedObject": about, "reason": "FailedToUpdateServeApplications", "message": words, "count": count}
    return Observed(owner=service, cluster=READY, events=({**told, "lastTimestamp": at},), now=NOW)


def test_configuration_that_kuberay_cannot_read_is_told_in_its_words():
    found = servestates.service_status(untold(), {})
    assert (found.state, found.failure.reason) == ("PENDING", "FailedToUpdateServeApplications")
    assert found.failure.message.endswith("yaml: line 1: did not find expected node content")
    assert found.failure.next_step.startswith("deploy again, which writes serveConfigV2 anew")


def test_configuration_that_kuberay_could_not_apply_once_or_before_it_was_changed_is_no_fault():
    for seen in (untold(count=1), untold(at="2026-11-24T12:58:00Z")):
        assert servestates.service_status(seen, {}).failure is None


def test_configuration_that_has_come_to_serve_since_is_no_fault():
    seen, (service, apps) = untold(), recorded("running")
    seen.owner["spec"] = service["spec"]
    assert servestates.service_status(seen, {}).failure.reason == "FailedToUpdateServeApplications"
    apps["hello"]["status"] = "DEPLOYING"
    assert servestates.service_status(seen, apps).failure is None


@pytest.mark.parametrize("text", ["just text", "applications: text", "applications: [text]", "[]"])
def test_service_whose_configuration_is_another_yaml_has_no_application(text):
    service, _ = recorded("running")
    service["spec"]["serveConfigV2"] = text
    assert status(service, {}).detail == "no application"


def test_service_without_a_head_waits():
    service, _ = recorded("starting")
    found = status(service, None, cluster={}, now=0.0)
    assert (found.state, found.detail) == ("WAITING", "KubeRay makes its cluster")


def test_service_that_gets_a_new_cluster_is_pending_and_is_looked_at_there():
    service, apps = recorded("running")
    service["status"]["pendingServiceStatus"] = {"rayClusterName": "hello-new"}
    found = status(service, apps, cluster={}, now=0.0)
    assert (found.state, found.detail) == (
        "PENDING",
        "KubeRay makes its new cluster; what was deployed before goes on serving",
    )
    assert servestates.cluster_of(service) == "hello-new"
    assert servestates.serving_cluster(service) == "hello-dmm26"


def test_service_without_a_cluster_that_answers_has_nothing_to_forward_to():
    with pytest.raises(Unreachable, match="no cluster of service hello answers yet"):
        servestates.serving_cluster(recorded("starting")[0])


def test_address_of_a_long_name_is_whole():
    service, _ = recorded("running")
    service["metadata"]["name"] = "a" * 47
    host = servestates.url_of(service).removeprefix("http://").partition(".")[0]
    assert host == "a" * 47 + "-serve-svc"


def test_address_follows_the_manifests_own_service_and_port():
    service, _ = recorded("running")
    service["spec"]["serveService"] = {"metadata": {"name": "front"}}
    (container,) = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"]
    next(port for port in container["ports"] if port["name"] == "serve")["containerPort"] = 9000
    assert servestates.url_of(service) == "http://front.svc-scratch:9000/"


MISSING = (
    "Runtime env setup for app 'hello' failed:\n… [Errno 2] No such file or directory: '/etc/raykube/code/new.zip'"
)


@pytest.mark.parametrize(
    ("state", "message", "expected"),
    [("DEPLOY_FAILED", MISSING, True), ("DEPLOYING", MISSING, False), ("DEPLOY_FAILED", "ValueError: new.zip", False)],
)
def test_code_that_has_not_come_yet_is_told_from_code_that_is_wrong(state, message, expected):
    assert servestates.lacks({"status": state, "message": message}, "new.zip") is expected


def test_serve_has_begun_once_it_has_loaded_the_code():
    busy = {"Model": {"status": "UPDATING"}}
    assert not servestates.has_begun({"status": "DEPLOYING", "deployments": {"Model": {"status": "HEALTHY"}}})
    assert servestates.has_begun({"status": "DEPLOYING", "deployments": busy})
    assert servestates.has_begun({"status": "DEPLOY_FAILED"})
    assert not servestates.has_begun({"status": "NOT_STARTED"})


def merged(known, change):
    """Apply a merge patch (RFC 7386)."""
    if not isinstance(change, dict):
        return change
    found = dict(known) if isinstance(known, dict) else {}
    for key, value in change.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = merged(found.get(key), value)
    return found


def test_patch_of_a_spec_leaves_just_what_is_wanted():
    known = {"a": 1, "gone": {"x": 1}, "deep": {"kept": 1, "gone": 2, "list": [1, {"a": 1}]}}
    wanted = {"a": 2, "deep": {"kept": 1, "list": [{"b": 1}], "new": {"y": [1]}}}
    assert merged(known, objects.replacement(known, wanted)) == wanted


def config_map(**sizes):
    content = {f"{name}.zip": base64.b64encode(b"x" * size).decode() for name, size in sizes.items()}
    return {"metadata": {"name": "hello-code"}, "binaryData": content}


def serving(file, **status):
    return {
        "metadata": {},
        "status": status,
        "spec": {"serveConfigV2": f"applications: [{{runtime_env: {{working_dir: file:///etc/raykube/{file}}}}}]"},
    }


def test_config_map_keeps_the_code_in_use_next_to_the_new():
    known, new = config_map(older=10, used=10), config_map(new=10)
    change = servecode.kept(known, new, serving("used.zip"))
    assert change == {"older.zip": None, **new["binaryData"]}


def test_config_map_keeps_all_code_while_a_new_cluster_starts_if_it_finds_room():
    two = {f"{which}ServiceStatus": {"rayClusterName": which} for which in ("active", "pending")}
    large, new = 500 * 1024, config_map(new=10)
    change = servecode.kept(config_map(older=large, used=10), new, serving("used.zip", **two))
    assert change == new["binaryData"]
    change = servecode.kept(config_map(older=large, used=10), config_map(new=large), serving("used.zip", **two))
    assert change.keys() == {"older.zip", "new.zip"}


def test_config_map_keeps_all_code_until_kuberay_has_seen_whether_there_is_to_be_a_new_cluster():
    service = serving("used.zip", observedGeneration=1)
    service["metadata"]["generation"] = 2
    assert "older.zip" not in servecode.kept(config_map(older=10, used=10), config_map(new=10), service)


def test_config_map_drops_the_code_in_use_when_both_find_no_room():
    change = servecode.kept(config_map(used=700 * 1024), config_map(new=700 * 1024), serving("used.zip"))
    assert change["used.zip"] is None


def test_next_attempt_is_another_runtime_environment_and_nothing_else():
    service, _ = recorded("running")
    first = yaml.safe_load(service["spec"]["serveConfigV2"])
    for number in ("2", "3"):
        service = services.retried(service, service, ["hello"])
        again = yaml.safe_load(service["spec"]["serveConfigV2"])
        assert again["applications"][0]["runtime_env"]["env_vars"].pop("RAYKUBE_ATTEMPT") == number
        assert again == first


def attempts(service):
    """Return the attempt of each application that has had more than one."""
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    variables = {app["name"]: app["runtime_env"]["env_vars"] for app in config["applications"]}
    return {name: each["RAYKUBE_ATTEMPT"] for name, each in variables.items() if "RAYKUBE_ATTEMPT" in each}


def test_attempts_of_applications_that_are_well_stay_what_they_are():
    service, _ = recorded("running")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    config["applications"] = [config["applications"][0] | {"name": name} for name in ("well", "failed")]
    service["spec"]["serveConfigV2"] = plans.as_yaml(config, sort_keys=True)
    assert services.retried(service, service, []) == service
    known = services.retried(service, service, ["failed"])
    assert attempts(known) == {"failed": "2"}
    assert attempts(services.retried(service, known, [])) == {"failed": "2"}
    assert attempts(services.retried(service, known, ["failed"])) == {"failed": "3"}
    assert attempts(services.retried(service, known, ["well"])) == {"well": "2", "failed": "2"}


def test_resized_groups_keep_their_replicas_within_the_new_bounds():
    groups = [{"groupName": name, "minReplicas": 0, "maxReplicas": 9, "replicas": 5, "x": 1} for name in ("a", "b")]
    wanted = {"workerGroupSpecs": [{"groupName": "a", "minReplicas": 1, "maxReplicas": 2}]}
    found = services.resized({"workerGroupSpecs": groups}, wanted | {"enableInTreeAutoscaling": True})
    assert found == [{**groups[0], "minReplicas": 1, "maxReplicas": 2, "replicas": 2}, groups[1]]


def test_resized_groups_without_an_autoscaler_have_as_many_as_are_wanted():
    groups = [{"groupName": "a", "minReplicas": 0, "maxReplicas": 9, "replicas": 1}]
    wanted = {"workerGroupSpecs": [{**groups[0], "replicas": 3}]}
    assert services.resized({"workerGroupSpecs": groups}, wanted) == wanted["workerGroupSpecs"]


def sent():
    """Return a service as it was sent, and as it is once Serve has had to try it again and KubeRay has written it."""
    service, _ = recorded("running")
    wanted = services.retried(service, service, [])  # as plans write it
    wanted["metadata"]["labels"]["raykube.io/plan"] = "0123456789abcdef"
    container = wanted["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["resources"] = {"limits": {"cpu": "0.5", "memory": "1Gi"}, "requests": {}}
    known = services.retried(copy.deepcopy(wanted), wanted, ["hello"])
    container = known["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["resources"] = {"limits": {"cpu": "500m", "memory": "1Gi"}}
    known["spec"]["rayClusterConfig"]["workerGroupSpecs"] = [{"groupName": "a", "replicas": 2, "scaleStrategy": {}}]
    wanted["spec"]["rayClusterConfig"]["workerGroupSpecs"] = [{"groupName": "a", "replicas": 2}]
    return wanted, known


def test_service_is_what_is_wanted_whatever_its_attempts_and_what_the_server_has_written():
    wanted, known = sent()
    assert not services.differs(known, wanted)


def test_service_is_not_what_is_wanted_once_somebody_has_changed_it():
    wanted, known = sent()
    config = known["spec"]["serveConfigV2"]
    for change in (config.replace("hello:app", "hello:other"), "applications: [", "text", ""):
        known["spec"]["serveConfigV2"] = change
        assert services.differs(known, wanted)
        assert not services.differs(merged(known, objects.difference(known, wanted)), wanted)
    wanted, known = sent()
    known["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["replicas"] = 3
    assert services.differs(known, wanted)


def test_service_of_another_plan_is_not_what_is_wanted():
    wanted, known = sent()
    known["metadata"]["labels"]["raykube.io/plan"] = "fedcba9876543210"
    assert services.differs(known, wanted)
