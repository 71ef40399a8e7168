"""What starting and stopping asks of the API server, from a real server that keeps objects."""

import contextlib
import copy
import dataclasses
import json
import logging
import threading
from urllib.parse import parse_qs, urlsplit

import pytest

import raykube as rk
from raykube import api as verbs
from raykube import marks, plans
from raykube.backends.kuberay import clusters, objects
from raykube.backends.kuberay.backend import KubeRay
from raykube.backends.kuberay.runs import jobs
from raykube.backends.kuberay.runs.look import Look
from raykube.backends.kuberay.serve import servecode, servelook, services
from raykube.backends.kubernetes.kubeapi import Kube
from raykube.backends.kubernetes.refusals import Unable
from raykube.cli import common
from raykube.cluster import Cluster
from raykube.errors import BackendError, ConfigError, Conflict, Forbidden, ManifestError, NotFound
from tests.servers import Quiet, kubernetes

QUEUED = {"kueue.x-k8s.io/queue-name": "team"}


class Api(Quiet):
    """Keeps objects by their path, as far as these tests ask for it; nothing is ever left of what is deleted."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        if self.server.unable:
            self.server.unable -= 1
            return self.answer(500, {"kind": "Status", "code": 500, "message": "etcdserver: leader changed"})
        path = urlsplit(self.path).path
        if path == "/apis/kueue.x-k8s.io":
            versions = {"versions": [{"version": each} for each in self.server.kueue]}
            return self.answer(200, versions) if self.server.kueue else self.answer(404, {"message": "page not found"})
        if self.server.refuses.get(path.rpartition("/")[2]):
            return self.answer(403, {"kind": "Status", "code": 403, "message": "no", "details": {}})
        if found := self.server.kept.get(path):
            return self.answer(200, found)
        if path.rpartition("/")[2] in ("pods", "events", "workloads", "rayclusters"):
            items = [each for at, each in self.server.kept.items() if at.rpartition("/")[0] == path]
            return self.answer(200, {"metadata": {"resourceVersion": "1"}, "items": items})
        return self._missing(path)

    def do_POST(self):  # noqa: N802
        thing = self._body()
        self.server.asked.append(urlsplit(self.path).path)
        if code := self.server.refuses.get(urlsplit(self.path).path.rpartition("/")[2]):
            return self.answer(code, {"kind": "Status", "code": code, "message": "no", "details": {}})
        path = f"{urlsplit(self.path).path}/{thing['metadata']['name']}"
        if path in self.server.kept:
            return self.answer(409, {"code": 409, "message": "already exists", "details": self._details(path)})
        self.server.kept[path] = keep(thing, uid=f"uid-{len(self.server.kept)}-{path}")
        return self.answer(201, self.server.kept[path])

    def do_PATCH(self):  # noqa: N802
        path, change = urlsplit(self.path).path, self._body()
        self.server.before_patch.pop(path, lambda: None)()
        if path in self.server.denies:
            words = 'admission webhook "policy" denied the request: no'
            return self.answer(403, {"kind": "Status", "code": 403, "message": words, "details": self._details(path)})
        known, based_on = self.server.kept[path]["metadata"], change.get("metadata", {})
        if any(based_on.get(key) not in (None, known.get(key)) for key in ("uid", "resourceVersion")):
            return self.answer(409, {"code": 409, "message": "has been modified", "details": self._details(path)})
        found = merged(self.server.kept[path], change)
        if "dryRun=All" not in self.path:
            self.server.kept[path] = found
        return self.answer(200, found)

    def do_DELETE(self):  # noqa: N802
        path, wanted = urlsplit(self.path).path, self._body().get("preconditions") or {}
        if path in self.server.kept and wanted.get("uid") not in (None, self.server.kept[path]["metadata"]["uid"]):
            return self.answer(409, {"code": 409, "message": "Precondition failed", "details": self._details(path)})
        self.server.kept.pop(path, None)
        return self.answer(200, {})

    def _body(self):
        self.server.queries.append((self.command, parse_qs(urlsplit(self.path).query)))
        return json.loads(self.body())

    def _missing(self, path):
        self.answer(404, {"kind": "Status", "code": 404, "message": "not found", "details": self._details(path)})

    def _details(self, path):
        return {"kind": path.split("/")[-2], "name": path.split("/")[-1]}


def keep(thing, uid="u", **status):
    metadata = {"uid": uid, "creationTimestamp": "2026-11-24T12:00:00Z", **thing["metadata"]}
    return {**thing, "metadata": metadata} | ({"status": status} if status else {})


def merged(known, change):
    """Return what a JSON merge patch makes of an object."""
    if not isinstance(change, dict) or not isinstance(known, dict):
        return change
    gone = {key for key, value in change.items() if value is None}
    return {
        **{key: value for key, value in known.items() if key not in gone},
        **{key: merged(known.get(key, {}), value) for key, value in change.items() if value is not None},
    }


CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
RAY = "/apis/ray.io/v1/namespaces/default"


@pytest.fixture
def api():
    """Give the server: what it keeps by path, does not answer, refuses, denies, has of Kueue, does before a change."""
    with kubernetes(Api) as server:
        server.kept, server.unable, server.refuses, server.kueue = {}, 0, {}, ("v1beta1", "v1beta2")
        server.before_patch, server.queries, server.denies = {}, [], set()
        yield server


@pytest.fixture
def kept(api):
    """Give what the server keeps, by path."""
    return api.kept


@pytest.fixture
def job(tmp_path):
    """Return a job whose code is in a ConfigMap."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "hello.py").write_text("print('hello')\n")
    return rk.Job(entrypoint="python hello.py", name="digits", working_dir=tmp_path / "code")


@pytest.fixture
def plan(job):
    """Return the plan of that job."""
    return rk.plan(job, "cpu-small")


@pytest.fixture
def service(tmp_path):
    """Return the plan of a service whose code is in a ConfigMap."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "hello.py").write_text("app = 1\n")
    work = rk.Service(name="hello", apps=(rk.App(import_path="hello:app"),), working_dir=tmp_path / "served")
    return rk.plan(work, "cpu-small")


def config_map(labels=(), owner=None, **content):
    references = {"ownerReferences": [{"apiVersion": "ray.io/v1", **owner}]} if owner else {}
    metadata = {"name": "digits-code", "uid": "theirs", "labels": dict(labels), **references}
    return {"kind": "ConfigMap", "metadata": metadata, "binaryData": content}


def test_name_of_a_service_is_refused_to_a_run(kept, plan):
    kept[f"{RAY}/rayservices/digits"] = keep({"kind": "RayService", "metadata": {"name": "digits"}})
    with pytest.raises(Conflict, match="taken by a service"):
        jobs.start(Kube(), plan)
    assert [*kept] == [f"{RAY}/rayservices/digits"]


def test_service_that_a_run_has_the_name_of_is_looked_at_and_deleted_and_the_run_stays(kept, service):
    services.deploy(Kube(), service)
    spec = kept[f"{RAY}/rayservices/hello"]["spec"]["rayClusterConfig"]
    metadata = {"name": "hello", "namespace": "default"}
    run = keep({"kind": "RayJob", "metadata": metadata, "spec": {"rayClusterSpec": spec}}, jobStatus="SUCCEEDED")
    kept[f"{RAY}/rayjobs/hello"] = run
    kept[f"{RAY}/rayservices/hello"]["metadata"]["namespace"] = "default"
    endpoint = common.find_endpoint("hello", common.Where("cpu-small", None, None))
    assert (endpoint.status().kind, rk.attach("hello", "cpu-small").status().kind) == ("service", "job")
    endpoint.delete()
    assert (f"{RAY}/rayservices/hello" in kept, f"{RAY}/rayjobs/hello" in kept) == (False, True)
    with pytest.raises(NotFound, match="there is no service hello"):
        endpoint.status()
    with pytest.raises(NotFound, match="hello is a run, not a service"):
        rk.attach("hello", "cpu-small", kind="service")


def test_service_that_raykube_did_not_make_is_neither_changed_nor_deleted(kept, service):
    path = f"{RAY}/rayservices/hello"
    theirs = kept[path] = keep({"kind": "RayService", "metadata": {"name": "hello"}, "spec": {}})
    with pytest.raises(Conflict, match="'hello' is taken by a RayService that raykube did not make") as told:
        services.deploy(Kube(), service)
    command = "kubectl -n default delete rayservice hello"
    assert told.value.next_step == f"choose another name, or: {command}"
    with pytest.raises(Conflict, match="service hello is left alone: raykube did not make its RayService") as told:
        services.take_down(Kube(), "hello")
    assert told.value.next_step == f"if you mean to delete it: {command}"
    assert kept[path] == theirs


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize(
    ("find", "noun", "command"),
    [(common.find_endpoint, "service", "service"), (common.find_run, "run", "job")],
)
def test_name_of_nothing_is_told_as_the_kind_that_is_asked_for(find, noun, command):
    with pytest.raises(NotFound, match=f"there is no {noun} nothing in namespace default") as told:
        find("nothing", common.Where("cpu-small", None, None))
    assert told.value.next_step == f"see: raykube {command} list"


RAYS = {"RayJob": "rayjobs", "RayService": "rayservices", "RayCluster": "rayclusters"}
TAKEN_BY = {"RayJob": "a run", "RayService": "a service", "RayCluster": "a cluster"}
OTHER_KINDS = [(kind, other) for kind in RAYS for other in RAYS if other != kind]


def send(kind, plan, service):
    """Make a run, a service or a cluster called hello."""
    if kind == "RayCluster":
        clusters.create(Kube(), *plans.raycluster(Cluster.load("cpu-small"), "hello").body)
    else:
        deploy = services.deploy if kind == "RayService" else jobs.start
        deploy(Kube(), service if kind == "RayService" else plan)


@pytest.mark.parametrize(("kind", "other"), OTHER_KINDS)
def test_name_that_another_kind_has_is_refused_before_anything_is_made(kept, job, service, kind, other):
    path = f"{RAY}/{RAYS[other]}/hello"
    kept[path] = keep({"kind": other, "metadata": {"name": "hello"}})
    with pytest.raises(Conflict, match=f"the name 'hello' is taken by {TAKEN_BY[other]}"):
        send(kind, rk.plan(job.model_copy(update={"name": "hello"}), "cpu-small"), service)
    assert [*kept] == [path]


def test_name_is_free_to_who_may_not_see_the_other_kinds(api, service):
    api.refuses.update(hello=403)
    objects.check_free(Kube(), service.body[-1])


def test_run_on_a_cluster_that_stays_may_have_the_name_of_a_cluster(kept):
    cluster = keep({"kind": "RayCluster", "metadata": {"name": "a"}})
    selecting = {"clusterSelector": {"ray.io/cluster": "b"}}
    job = keep({"kind": "RayJob", "metadata": {"name": "a"}, "spec": selecting})
    kept[f"{RAY}/rayclusters/a"], kept[f"{RAY}/rayjobs/a"] = cluster, job
    objects.check_free(Kube(), cluster)
    objects.check_free(Kube(), job)


def roomier():
    """Return the same preset with more memory for its head."""
    manifest = copy.deepcopy(dict(Cluster.load("cpu-small").manifest))
    container = manifest["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["resources"]["limits"]["memory"] = "5Gi"
    return dataclasses.replace(Cluster.load("cpu-small"), manifest=manifest)


FAILED = {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed"}
SUCCEEDED = {"jobStatus": "SUCCEEDED", "jobDeploymentStatus": "Complete"}


def test_run_that_failed_goes_on_as_its_next_attempt_on_a_cluster_with_more_memory(kept, plan, job):
    jobs.start(Kube(), plan)
    kept[f"{RAY}/rayjobs/digits"]["status"] = FAILED
    jobs.start(Kube(), rk.plan(job, roomier()))
    known = kept[f"{RAY}/rayjobs/digits"]
    head = known["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert known["metadata"]["annotations"][marks.ATTEMPT] == "2"
    assert head["resources"]["limits"]["memory"] == "5Gi"


def test_conflict_with_a_run_that_failed_tells_of_nothing_that_another_attempt_may_change(kept, plan, job):
    jobs.start(Kube(), plan)
    kept[f"{RAY}/rayjobs/digits"]["status"] = FAILED
    changed = {"entrypoint": "python hello.py 2", "keep_cluster_s": 5, "pending_timeout_s": 7, "max_retries": 3}
    with pytest.raises(Conflict) as caught:
        jobs.start(Kube(), rk.plan(job.model_copy(update=changed), roomier().sized(3)))
    said = [f"python -m raykube.inside.attempts {words}" for words in ("'python hello.py'", "'python hello.py 2'")]
    assert caught.value.why == f"spec.entrypoint: {said[0]!r} there, {said[1]!r} here"


@pytest.mark.parametrize(
    ("storage", "status", "told"),
    [
        ("s3://bucket/runs", FAILED, "the checkpoints of that run stay below s3://bucket/runs/digits;"),
        ("s3://b", {}, ""),
        ("", FAILED, ""),
    ],
)
def test_conflict_names_the_checkpoints_of_a_run_that_has_begun_and_has_a_storage(kept, job, storage, status, told):
    manifest = copy.deepcopy(dict(Cluster.load("cpu-small").manifest))
    manifest["metadata"]["annotations"] = {marks.STORAGE: storage} if storage else {}
    place = dataclasses.replace(Cluster.load("cpu-small"), manifest=manifest)
    jobs.start(Kube(), rk.plan(job, place))
    kept[f"{RAY}/rayjobs/digits"]["status"] = status
    with pytest.raises(Conflict) as caught:
        jobs.start(Kube(), rk.plan(job.model_copy(update={"entrypoint": "python hello.py 2"}), place))
    step = caught.value.next_step
    assert ("checkpoints of that run stay" in step, told in step) == (bool(told), True)
    assert step.endswith("raykube job delete digits")


def test_conflict_does_not_tell_of_what_kuberay_leaves_out_for_being_false(kept):
    def written(entrypoint):
        spec = {"entrypoint": entrypoint, "shutdownAfterJobFinishes": False, "rayClusterSpec": {}}
        body = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "digits"}, "spec": spec}
        return plans.written_rayjob([body], Cluster.load("cpu-small"))

    jobs.start(Kube(), written("one"))
    assert kept[f"{RAY}/rayjobs/digits"]["spec"].pop("shutdownAfterJobFinishes") is False
    with pytest.raises(Conflict) as caught:
        jobs.start(Kube(), written("two"))
    assert caught.value.why == "spec.entrypoint: 'one' there, 'two' here"


def test_rayjob_that_somebody_has_written_is_another_with_another_image_also_once_it_failed(kept):
    def written(image):
        head = {"template": {"spec": {"containers": [{"name": "ray", "image": image}]}}}
        spec = {"entrypoint": "python /app/train.py", "rayClusterSpec": {"headGroupSpec": head}}
        body = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "nightly"}, "spec": spec}
        return plans.written_rayjob([body], Cluster.load("kubernetes"))

    jobs.start(Kube(), written("vision:7"))
    kept[f"{RAY}/rayjobs/nightly"]["status"] = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED"}
    with pytest.raises(Conflict, match="taken by another run") as caught:
        jobs.start(Kube(), written("speech:1"))
    assert "image: 'vision:7' there, 'speech:1' here" in caught.value.why


@pytest.mark.parametrize("status", [{"jobDeploymentStatus": "Initializing"}, SUCCEEDED])
def test_run_that_goes_on_or_went_well_is_another_on_another_cluster(kept, plan, job, status):
    jobs.start(Kube(), plan)
    kept[f"{RAY}/rayjobs/digits"]["status"] = status
    before = copy.deepcopy(kept)
    with pytest.raises(Conflict, match="taken by another run") as caught:
        jobs.start(Kube(), rk.plan(job, roomier()))
    assert "limits.memory: '4Gi' there, '5Gi' here" in caught.value.why
    assert kept == before


def test_run_that_has_succeeded_is_said_to_be_so_to_who_submits_it_again(kept, plan, caplog):
    caplog.set_level(logging.INFO, "raykube")
    jobs.start(Kube(), plan)
    jobs.start(Kube(), plan)
    assert caplog.messages == []
    kept[f"{RAY}/rayjobs/digits"]["status"] = SUCCEEDED
    jobs.start(Kube(), plan)
    assert caplog.messages == ["digits has succeeded already; nothing is run again"]


@pytest.mark.parametrize(
    ("status", "entrypoint", "to_stop"),
    [
        ({"jobDeploymentStatus": "Initializing"}, "python hello.py", True),
        ({"jobDeploymentStatus": "Initializing"}, "python hello.py 2", False),  # which a stop does not make the same
        (SUCCEEDED, "python hello.py", False),
    ],
)
def test_run_that_has_not_ended_is_to_be_stopped_before_it_goes_on_elsewhere(
    kept, plan, job, status, entrypoint, to_stop
):
    jobs.start(Kube(), plan)
    kept[f"{RAY}/rayjobs/digits"]["status"] = status
    with pytest.raises(Conflict) as caught:
        jobs.start(Kube(), rk.plan(job.model_copy(update={"entrypoint": entrypoint}), roomier()))
    assert ("raykube job stop digits" in caught.value.next_step) == to_stop
    assert ("raykube job delete" in caught.value.next_step) != to_stop


@pytest.mark.parametrize("on", [None, "kubernetes", "cpu-small"])
def test_job_runs_on_the_long_lived_cluster_that_submit_names(kept, job, monkeypatch, on):
    metadata = {"name": "demo", "namespace": "default"}
    kept[f"{RAY}/rayclusters/demo"] = {**Cluster.load("cpu-small").manifest, "metadata": metadata}
    monkeypatch.setattr(verbs, "start", lambda planned: planned)
    planned = rk.submit(job, on, cluster="demo")
    assert planned.body[-1]["spec"]["clusterSelector"] == {marks.CLUSTER: "demo"}
    with pytest.raises(NotFound):
        rk.submit(job, on, cluster="none")


def test_long_lived_cluster_of_this_machine_is_refused(job):
    with pytest.raises(ConfigError, match="this machine has no cluster demo"):
        rk.submit(job, "local", cluster="demo")


def test_submit_creates_the_run_and_its_code_and_nothing_else(api, job):
    rk.submit(job, "cpu-small")
    assert api.asked == [f"{RAY}/rayjobs", CONFIG_MAPS]


@pytest.mark.parametrize(
    "namespace", ["..", "x/../y", "kube-system/rayjobs?", "#", "team\r", "\udcff", "A", "a.b", "a" * 64]
)
def test_namespace_that_there_cannot_be_is_asked_for_nowhere(api, namespace):
    with pytest.raises(rk.ConfigError, match="there can be no namespace"):
        Kube(namespace=namespace)
    assert api.asked == []


def test_objects_are_made_and_changed_only_if_the_server_knows_all_their_fields(api):
    kube = Kube()
    kube.create({"kind": "ConfigMap", "metadata": {"name": "a"}})
    kube.patch("ConfigMap", "a", {"data": {}})
    strict = {"fieldValidation": ["Strict"], "fieldManager": ["raykube"]}
    assert api.queries == [("POST", strict), ("PATCH", strict)]


def test_object_without_a_name_is_asked_for_nowhere(api):
    kube = Kube()
    api.kept[f"{RAY}/rayjobs"] = {"items": []}  # what such a path would lead to
    for ask in (kube.get, kube.find, kube.delete):
        with pytest.raises(rk.ConfigError, match="the name of a RayJob is empty"):
            ask("RayJob", "")
    with pytest.raises(rk.ConfigError, match="the name of a RayJob is empty"):
        kube.patch("RayJob", "", {"spec": {}})
    with pytest.raises(rk.ConfigError, match="the name of a Pod is empty"):
        kube.pod_log("")
    assert api.kept == {f"{RAY}/rayjobs": {"items": []}}


def test_code_is_owned_without_a_right_to_change_its_owners_finalizers(kept, plan):
    jobs.start(Kube(), plan)
    (owner,) = kept[f"{CONFIG_MAPS}/digits-code"]["metadata"]["ownerReferences"]
    assert owner.keys() == {"apiVersion", "kind", "name", "uid", "controller"}


def test_code_that_belongs_to_a_living_owner_is_left_to_it_and_no_run_stays(kept, plan):
    kept[f"{RAY}/rayjobs/other"] = keep({"kind": "RayJob", "metadata": {"name": "other"}}, uid="alive")
    theirs = config_map(owner={"kind": "RayJob", "name": "other", "uid": "alive"}, file="eA==")
    kept[f"{CONFIG_MAPS}/digits-code"] = theirs
    with pytest.raises(Conflict, match="ConfigMap digits-code is taken") as caught:
        jobs.start(Kube(), plan)
    assert caught.value.why == "it belongs to RayJob other, and holds something else"
    assert kept[f"{CONFIG_MAPS}/digits-code"] == theirs
    assert f"{RAY}/rayjobs/digits" not in kept


REFUSED = [(403, Forbidden), (422, ManifestError), (500, Unable)]


@pytest.mark.parametrize(("code", "kind"), REFUSED)
def test_run_whose_code_is_refused_is_not_left(api, plan, code, kind):
    api.refuses["configmaps"] = code
    with pytest.raises(kind):
        jobs.start(Kube(), plan)
    assert api.kept == {}


@pytest.mark.parametrize(("code", "kind"), REFUSED)
def test_service_whose_code_is_refused_is_not_left(api, service, code, kind):
    api.refuses["configmaps"] = code
    with pytest.raises(kind):
        services.deploy(Kube(), service)
    assert api.kept == {}


INVALID = {"conditions": [{"type": "Ready", "status": "False", "reason": "ValidationFailed"}]}


def test_service_that_was_refused_before_it_served_is_made_anew(kept, service):
    services.deploy(Kube(), service)
    path = f"{RAY}/rayservices/hello"
    kept[path] = {**keep(kept[path]), "status": INVALID}
    kept[path]["metadata"]["uid"] = "refused"
    services.deploy(Kube(), service)
    assert kept[path]["metadata"]["uid"] != "refused"


def test_service_of_somebody_elses_that_never_came_up_is_left_to_them(kept, service):
    given_up = {"conditions": [{"type": "Ready", "status": "False", "reason": "InitializingTimeout"}]}
    theirs = {**keep({"kind": "RayService", "metadata": {"name": "hello"}, "spec": {}}), "status": given_up}
    kept[f"{RAY}/rayservices/hello"] = theirs
    with pytest.raises(Conflict, match="that raykube did not make"):
        services.deploy(Kube(), service)
    assert kept == {f"{RAY}/rayservices/hello": theirs}


def test_run_that_was_there_outlives_the_refusal_of_its_code(api, plan):
    jobs.start(Kube(), plan)
    del api.kept[f"{CONFIG_MAPS}/digits-code"]
    api.refuses["configmaps"] = 403
    with pytest.raises(Forbidden):
        jobs.start(Kube(), plan)
    assert [*api.kept] == [f"{RAY}/rayjobs/digits"]


def test_code_that_says_the_same_is_shared_and_goes_with_the_last_of_its_owners(kept, plan):
    kept[f"{RAY}/rayjobs/other"] = keep({"kind": "RayJob", "metadata": {"name": "other"}}, uid="alive")
    owner = {"kind": "RayJob", "name": "other", "uid": "alive", "controller": True}
    kept[f"{CONFIG_MAPS}/digits-code"] = config_map(owner=owner, **plan.body[0]["binaryData"])
    jobs.start(Kube(), plan)
    owners = kept[f"{CONFIG_MAPS}/digits-code"]["metadata"]["ownerReferences"]
    assert [(each["name"], each["controller"]) for each in owners] == [("other", True), ("digits", False)]


def test_code_of_an_owner_that_is_gone_makes_room(kept, plan):
    kept[f"{CONFIG_MAPS}/digits-code"] = config_map(owner={"kind": "RayJob", "name": "digits", "uid": "gone"})
    jobs.start(Kube(), plan)
    made = kept[f"{CONFIG_MAPS}/digits-code"]
    assert made["metadata"]["ownerReferences"][0]["uid"] == kept[f"{RAY}/rayjobs/digits"]["metadata"]["uid"]
    assert made["binaryData"] == plan.body[0]["binaryData"]


def test_code_that_kubectl_applied_from_an_older_plan_is_brought_up_to_date(kept, plan):
    kept[f"{CONFIG_MAPS}/digits-code"] = config_map(labels=marks.MANAGED_BY, old="eA==")
    jobs.start(Kube(), plan)
    made = kept[f"{CONFIG_MAPS}/digits-code"]
    assert plan.body[0]["binaryData"].items() <= made["binaryData"].items()
    assert made["metadata"]["ownerReferences"]


def test_config_map_of_somebody_elses_own_is_left_alone(kept, plan):
    theirs = config_map(mine="eA==")
    kept[f"{CONFIG_MAPS}/digits-code"] = theirs
    with pytest.raises(Conflict, match="is taken"):
        jobs.start(Kube(), plan)
    service = keep({"kind": "RayService", "metadata": {"name": "digits"}, "spec": {}})
    with pytest.raises(Conflict, match="is taken"):
        servecode.carry(Kube(), plan.body[0], service)
    assert kept[f"{CONFIG_MAPS}/digits-code"] == theirs


@pytest.mark.parametrize(
    ("wanted", "there", "is_same"),
    [
        ({"stringData": {"a": "x"}}, {"data": {"a": "eA=="}}, True),
        ({"stringData": {"a": "y"}}, {"data": {"a": "eA=="}}, False),
        ({"spec": {"ports": [{"port": 1}]}}, {"spec": {"ports": [{"port": 1, "protocol": "TCP"}]}}, True),
        ({"spec": {"ports": [{"port": 1}]}}, {"spec": {"ports": [{"port": 2}]}}, False),
        ({"data": {"a": "x"}}, {"data": {"a": "x", "b": "y"}}, True),
        ({"data": {"a": "x\ny\n"}}, {"data": {"a": "x\r\ny\r\n"}}, False),
    ],
)
def test_object_says_the_same_if_it_says_all_that_is_wanted(wanted, there, is_same):
    assert objects._says_the_same(there, wanted) is is_same


def waiting(kept, labels=(), **spec):
    job = {"kind": "RayJob", "metadata": {"name": "digits", "labels": dict(labels)}, "spec": spec}
    kept[f"{RAY}/rayjobs/digits"] = keep(job, jobDeploymentStatus="Initializing")
    return Look(Kube(), "digits")


def test_stop_of_a_run_that_would_keep_its_cluster_leaves_it_valid(kept):
    look = waiting(kept, rayClusterSpec={}, shutdownAfterJobFinishes=False, deletionStrategy={"deletionRules": []})
    jobs.stop(look)
    job = kept[f"{RAY}/rayjobs/digits"]
    assert job["spec"] == {"rayClusterSpec": {}, "suspend": True, "shutdownAfterJobFinishes": True}
    assert marks.STOP in job["metadata"]["annotations"]


def test_stop_of_a_run_that_its_head_does_not_know_yet_holds_it_back(kept):
    waiting(kept, rayClusterSpec={})
    address = {"rayClusterName": "digits-c", "dashboardURL": "digits-c-head-svc.default.svc:8265", "jobId": "digits-x"}
    kept[f"{RAY}/rayjobs/digits"]["status"] |= address
    look = Look(Kube(), "digits")
    assert look.head() is not None
    jobs.stop(look)
    assert kept[f"{RAY}/rayjobs/digits"]["spec"]["suspend"] is True


def test_delete_leaves_what_was_submitted_by_the_name_of_a_run_that_went_while_it_was_stopped(api, kept):
    waiting(kept, rayClusterSpec={})
    path = f"{RAY}/rayjobs/digits"
    api.before_patch[path] = lambda: kept.update({path: merged(kept[path], {"metadata": {"uid": "another"}})})
    with pytest.raises(NotFound, match="another one was submitted by that name"):
        KubeRay().delete("digits", "job")
    assert kept[path]["metadata"]["uid"] == "another"


def test_delete_says_what_it_does_before_it_stops_the_run(kept, monkeypatch):
    look = waiting(kept, rayClusterSpec={})
    told = []
    monkeypatch.setattr(KubeRay, "_stop", lambda *_: told.append(kept[f"{RAY}/rayjobs/digits"]["metadata"]))
    KubeRay().delete("digits", "job")
    assert marks.DELETE in told[0]["annotations"]
    assert marks.DELETE not in look.job["metadata"].get("annotations", {})
    assert not kept


def test_delete_stops_a_run_also_for_who_may_not_change_it(api, kept, monkeypatch):
    waiting(kept, rayClusterSpec={})
    api.denies.add(f"{RAY}/rayjobs/digits")
    stopped = []
    monkeypatch.setattr(KubeRay, "_stop", lambda _, look: stopped.append(look.name))
    KubeRay().delete("digits", "job")
    assert (stopped, kept) == (["digits"], {})


@pytest.mark.parametrize(
    ("labels", "owner", "stays"),
    [
        (marks.MANAGED_BY | {marks.PLAN: "0"}, None, False),
        (marks.MANAGED_BY | {marks.PLAN: "1"}, None, True),
        (marks.MANAGED_BY, None, True),
        ({marks.PLAN: "0"}, None, True),
        (marks.MANAGED_BY | {marks.PLAN: "0"}, {"kind": "RayJob", "name": "b", "uid": "b"}, True),
    ],
)
def test_delete_takes_the_code_that_kubectl_applied_with_a_run_and_no_other(kept, labels, owner, stays):
    job = {"kind": "RayJob", "metadata": {"name": "digits", "labels": {marks.PLAN: "0"}}, "spec": {}}
    kept[f"{RAY}/rayjobs/digits"] = keep(job)
    kept[f"{CONFIG_MAPS}/digits-code"] = config_map(labels, owner)
    KubeRay().delete("digits")
    assert [*kept] == ([f"{CONFIG_MAPS}/digits-code"] if stays else [])


def test_delete_of_a_run_needs_no_right_to_see_its_code(api, kept):
    kept[f"{RAY}/rayjobs/digits"] = keep({"kind": "RayJob", "metadata": {"name": "digits"}, "spec": {}})
    api.refuses["digits-code"] = 403
    KubeRay().delete("digits")
    assert not kept


STORED = {"metadata": {"annotations": {"raykube.io/storage": "/shared"}, "generation": 1}, "spec": {}, "status": {}}
#: Which fields of a RayJob who has set, as recorded: KubeRay changes its spec when it adds its finalizer.
BY_KUBERAY = [
    {"manager": "raykube", "fieldsV1": {"f:metadata": {}, "f:spec": {"f:entrypoint": {}, "f:rayClusterSpec": {}}}},
    {"manager": "kuberay-operator", "fieldsV1": {"f:metadata": {}, "f:spec": {"f:rayClusterSpec": {}}}},
    {"manager": "kuberay-operator", "subresource": "status", "fieldsV1": {"f:status": {}}},
]
SUSPENDED = [{"manager": "kubectl-patch", "fieldsV1": {"f:spec": {"f:suspend": {}}}}]
WITH_CODE = {"runtimeEnvYAML": "working_dir: file:///shared/digits/.code/0.zip"}


@pytest.mark.parametrize(
    ("change", "is_looked_at"),
    [
        ({}, False),
        ({"status": {"jobDeploymentStatus": "Failed", "reason": "PreRunningDeadlineExceeded", "failed": 1}}, False),
        ({"status": {"jobStatus": "RUNNING"}}, True),
        ({"status": {"dashboardURL": "digits-c-head-svc.default.svc:8265", "jobId": "digits-x"}}, True),
        ({"metadata": {"annotations": {marks.ATTEMPT: "2"}}}, True),
        ({"metadata": {"generation": 2}}, True),
        ({"metadata": {"generation": 2, "managedFields": BY_KUBERAY}}, False),  # as KubeRay leaves a new RayJob
        ({"metadata": {"generation": 3, "managedFields": [*BY_KUBERAY, *SUSPENDED]}}, True),
        ({"metadata": {"managedFields": SUSPENDED}}, False),  # since its creation
        ({"spec": WITH_CODE}, True),
    ],
)
def test_delete_of_a_run_that_never_began_looks_for_nothing_in_its_storage(
    api, kept, monkeypatch, change, is_looked_at
):
    monkeypatch.setattr(KubeRay, "_stop", lambda *_: None)
    head = {"template": {"spec": {"containers": [{"name": "head", "image": "no/image"}]}}}
    waiting(kept, rayClusterSpec={"headGroupSpec": head})
    path = f"{RAY}/rayjobs/digits"
    kept[path] = merged(merged(kept[path], STORED), change)
    api.refuses["pods"] = 403
    with pytest.raises(BackendError, match="not what it kept") if is_looked_at else contextlib.nullcontext():
        KubeRay().delete("digits")
    assert path not in kept


@pytest.mark.parametrize("served", [("v1beta1", "v1beta2"), ("v1beta1",)])
def test_stop_of_a_run_in_kueues_queue_takes_it_off_and_suspends_nothing_itself(api, kept, served):
    api.kueue = served
    workloads = f"/apis/kueue.x-k8s.io/{served[-1]}/namespaces/default/workloads"
    kept[f"{workloads}/rayjob-digits-1"] = {"metadata": {"name": "rayjob-digits-1"}, "spec": {"queueName": "team"}}
    look = waiting(kept, labels=QUEUED, rayClusterSpec={}, suspend=True)
    jobs.stop(look)
    assert kept[f"{workloads}/rayjob-digits-1"]["spec"] == {"queueName": "team", "active": False}
    assert kept[f"{RAY}/rayjobs/digits"]["spec"] == {"rayClusterSpec": {}, "suspend": True}
    assert marks.STOP in kept[f"{RAY}/rayjobs/digits"]["metadata"]["annotations"]


@pytest.mark.parametrize("refuses", [{}, {"workloads": 403}])
def test_stop_of_a_run_whose_place_in_kueues_queue_is_not_seen_says_what_ends_it(api, kept, refuses):
    api.refuses = refuses
    look = waiting(kept, labels=QUEUED, rayClusterSpec={}, suspend=True)
    with pytest.raises(rk.BackendError, match="could not be taken off Kueue's queue") as caught:
        jobs.stop(look)
    assert "raykube job delete digits" in caught.value.next_step
    assert marks.STOP not in kept[f"{RAY}/rayjobs/digits"]["metadata"].get("annotations", {})


def test_stop_of_a_run_for_a_queue_where_there_is_no_kueue_suspends_it(api, kept):
    api.kueue = ()
    jobs.stop(waiting(kept, labels=QUEUED, rayClusterSpec={}))
    assert kept[f"{RAY}/rayjobs/digits"]["spec"]["suspend"] is True


def test_stop_of_what_a_standing_cluster_is_about_to_run_says_what_ends_it(kept):
    look = waiting(kept, clusterSelector={"ray.io/cluster": "demo"})
    with pytest.raises(rk.BackendError) as caught:
        jobs.stop(look)
    assert "raykube job delete digits" in caught.value.next_step
    assert kept[f"{RAY}/rayjobs/digits"]["spec"] == {"clusterSelector": {"ray.io/cluster": "demo"}}


def test_wait_for_a_name_outlives_a_server_that_is_unable_for_a_moment(api):
    leaving = {"name": "digits", "deletionTimestamp": "2026-11-24T12:00:00Z"}
    api.kept[f"{RAY}/rayjobs/digits"] = keep({"kind": "RayJob", "metadata": leaving})
    threading.Timer(0.3, api.kept.clear).start()
    api.unable = 2
    objects.wait_gone(Kube(), "RayJob", "digits")
    assert (api.unable, api.kept) == (0, {})


def test_wait_for_new_code_outlives_a_server_that_is_unable_for_a_moment(api):
    api.kept[f"{RAY}/rayservices/hello"] = keep({"kind": "RayService", "metadata": {"name": "hello"}, "spec": {}})
    api.unable = 1
    services._wait_until_begun(Kube(), "hello", "new.zip")
    assert api.unable == 0


def test_object_that_has_taken_the_name_of_one_that_is_deleted_stays(kept):
    job = {"kind": "RayJob", "metadata": {"name": "digits"}}
    kept[f"{RAY}/rayjobs/digits"] = keep(job, uid="new")
    objects.delete(Kube(), keep(job, uid="old"))
    assert [*kept] == [f"{RAY}/rayjobs/digits"]
    objects.delete(Kube(), keep(job, uid="new"))
    assert kept == {}


def test_run_that_is_being_deleted_is_not_joined_but_made_anew_once_it_is_gone(kept, plan):
    jobs.start(Kube(), plan)
    path = f"{RAY}/rayjobs/digits"
    kept[path]["metadata"] |= {"uid": "leaving", "deletionTimestamp": "2026-11-24T12:00:00Z"}
    threading.Timer(0.3, kept.pop, (path,)).start()
    jobs.start(Kube(), plan)
    assert kept[path]["metadata"]["uid"] != "leaving"


def test_run_whose_making_is_interrupted_is_not_left_unless_it_was_there(kept, caplog):
    caplog.set_level(logging.INFO, "raykube")
    owner = keep({"kind": "RayJob", "metadata": {"name": "digits"}})
    kept[f"{RAY}/rayjobs/digits"] = owner
    with pytest.raises(KeyboardInterrupt), objects.needed_by(Kube(), owner, is_new=False):
        raise KeyboardInterrupt
    assert ([*kept], caplog.messages) == ([f"{RAY}/rayjobs/digits"], [])
    with pytest.raises(KeyboardInterrupt), objects.needed_by(Kube(), owner, is_new=True):
        raise KeyboardInterrupt
    assert kept == {}
    assert caplog.messages == ["interrupted before RayJob digits had all that it needs: it is removed"]


SERVICE, CLUSTER = f"{RAY}/rayservices/hello", f"{RAY}/rayclusters/hello-c"


@pytest.fixture
def serving_one(kept, service):
    """Have a service that its one cluster serves, with four workers, and return its plan."""
    planned = other(service, label="four", replicas=4, maxReplicas=4)
    services.deploy(Kube(), planned)
    kept[SERVICE]["status"] = {"activeServiceStatus": {"rayClusterName": "hello-c"}}
    kept[SERVICE]["metadata"] |= {"namespace": "default", "resourceVersion": "1"}
    metadata = {"name": "hello-c", "resourceVersion": "1"}
    kept[CLUSTER] = keep(
        {"kind": "RayCluster", "metadata": metadata, "spec": copy.deepcopy(kept[SERVICE]["spec"]["rayClusterConfig"])}
    )
    return planned


def other(plan, label, image="", **counts):
    """Return a plan with other counts of workers, or another image."""
    *code, service = copy.deepcopy(plan.body)
    service["metadata"]["labels"][marks.PLAN] = label
    spec = service["spec"]["rayClusterConfig"]
    spec["workerGroupSpecs"][0] |= counts
    if image:
        spec["headGroupSpec"]["template"]["spec"]["containers"][0]["image"] = image
    return dataclasses.replace(plan, body=(*code, service))


@pytest.mark.parametrize("clusters", [["active"], ["active", "pending"]])
def test_code_in_use_goes_only_for_a_service_that_the_server_takes(api, service, tmp_path, monkeypatch, clusters):
    services.deploy(Kube(), service)
    api.kept[SERVICE]["status"] = {f"{each}ServiceStatus": {"rayClusterName": each} for each in clusters}
    (tmp_path / "served" / "hello.py").write_text("app = 2\n")
    work = rk.Service(name="hello", apps=(rk.App(import_path="hello:app"),), working_dir=tmp_path / "served")
    new, before = rk.plan(work, "cpu-small"), copy.deepcopy(api.kept[f"{CONFIG_MAPS}/hello-code"])
    monkeypatch.setattr(servecode, "CONFIG_MAP_LIMIT", servecode._size(new.body[0]["binaryData"].values()))
    api.denies.add(SERVICE)
    with pytest.raises(ManifestError, match="webhook policy"):
        services.deploy(Kube(), new)
    assert api.kept[f"{CONFIG_MAPS}/hello-code"] == before
    api.denies.clear()
    services.deploy(Kube(), new)
    assert api.kept[f"{CONFIG_MAPS}/hello-code"]["binaryData"] == new.body[0]["binaryData"]
    assert api.kept[SERVICE]["spec"]["serveConfigV2"] == new.body[-1]["spec"]["serveConfigV2"]


def workers(kept, path=CLUSTER):
    """Return how many workers a cluster is to have, now and at most."""
    (group,) = kept[path]["spec"]["workerGroupSpecs"]
    return group["replicas"], group["maxReplicas"]


def test_service_with_another_count_of_workers_has_the_cluster_that_serves_resized(kept, serving_one):
    services.deploy(Kube(), other(serving_one, "three", replicas=3, maxReplicas=3))
    assert workers(kept) == (3, 3)


@pytest.mark.usefixtures("serving_one")
def test_update_tells_which_counts_it_changes(tmp_path, caplog):
    caplog.set_level(logging.INFO, "raykube")

    def deploy(workers, **app):
        apps = (rk.App(import_path="hello:app", num_replicas=2, **app),)
        work = rk.Service(name="hello", apps=apps, working_dir=tmp_path / "served")
        services.deploy(Kube(), rk.plan(work, Cluster.load("cpu-small").sized(workers)))

    deploy(2)
    deploy(2, args={"word": "bye"})
    assert caplog.messages == ["hello changes: replicas as the application says -> 2, worker pods 4 -> 2"]
    deploy((1, 3))
    assert caplog.messages[1:] == ["hello changes: worker pods 2 -> 1..3"]


def test_counts_come_to_a_service_in_which_kuberay_has_written_empty_metadata(kept, serving_one):
    known = kept[SERVICE]["spec"]["rayClusterConfig"]
    for group in (known["headGroupSpec"], *known["workerGroupSpecs"]):
        group["template"]["metadata"] = {}
    services.deploy(Kube(), other(serving_one, "three", replicas=3, maxReplicas=3))
    assert workers(kept) == (3, 3)


def test_counts_come_with_what_kuberay_makes_no_other_cluster_for(kept, serving_one):
    changed = other(serving_one, "three", replicas=3, maxReplicas=3, scaleStrategy={"workersToDelete": ["a"]})
    changed.body[-1]["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["tolerations"] = [{"key": "a"}]
    services.deploy(Kube(), changed)
    assert workers(kept) == (3, 3)


def test_cluster_that_serves_keeps_its_workers_until_another_one_takes_its_place(kept, serving_one):
    new = other(serving_one, "new", image="registry/new:2", replicas=1, maxReplicas=1)
    services.deploy(Kube(), new)
    kept[SERVICE]["metadata"]["generation"] = 2  # which KubeRay has not seen yet
    services.deploy(Kube(), new)
    assert workers(kept) == (4, 4)


def test_other_count_of_workers_is_that_of_the_cluster_that_a_service_will_be_on(kept, serving_one):
    kept[SERVICE]["status"]["pendingServiceStatus"] = {"rayClusterName": "hello-d"}
    pending = f"{RAY}/rayclusters/hello-d"
    kept[pending] = copy.deepcopy(kept[CLUSTER])
    services.deploy(Kube(), other(serving_one, "two", replicas=2, maxReplicas=2))
    assert (workers(kept, pending), workers(kept)) == ((2, 2), (4, 4))


def test_count_of_workers_that_did_not_come_to_the_cluster_comes_with_the_same_plan_again(kept, serving_one):
    six = other(serving_one, "six", replicas=6, maxReplicas=6)
    cluster = kept.pop(CLUSTER)
    services.deploy(Kube(), six)
    kept[CLUSTER] = cluster
    services.deploy(Kube(), six)
    assert workers(kept) == (6, 6)


def test_cluster_that_may_not_be_seen_is_in_the_way_of_other_counts_alone(api, serving_one):
    api.refuses["hello-c"] = 403
    services.deploy(Kube(), dataclasses.replace(serving_one, body=other(serving_one, "label").body))
    with pytest.raises(Forbidden):
        services.deploy(Kube(), other(serving_one, "two", replicas=2))


@pytest.mark.usefixtures("serving_one")
def test_serve_is_asked_of_the_head_that_the_cluster_names_and_of_no_other(kept):
    kept[CLUSTER]["spec"].pop("authOptions", None)
    assert servelook.serve_head(Kube(), kept[SERVICE]) is None
    kept[CLUSTER]["status"] = {"head": {"serviceName": "mine"}}
    assert servelook.serve_head(Kube(), kept[SERVICE]).cluster == "hello-c"


def tell_of(kept, state):
    """Have the RayService tell that its application is in a state."""
    told = {"hello": {"status": state, "message": "ValueError: no weights"}}
    kept[SERVICE]["status"]["activeServiceStatus"]["applicationStatuses"] = told


@pytest.mark.parametrize("counts", [{}, {"replicas": 3}])
def test_service_that_failed_is_tried_again_whether_or_not_its_plan_is_new(kept, serving_one, counts):
    deployed = other(serving_one, "new" if counts else "four", **counts)
    tell_of(kept, "DEPLOY_FAILED")
    services.deploy(Kube(), deployed)
    assert 'RAYKUBE_ATTEMPT: "2"' in kept[SERVICE]["spec"]["serveConfigV2"]
    tell_of(kept, "RUNNING")
    tried = copy.deepcopy(kept[SERVICE])
    services.deploy(Kube(), deployed)
    assert kept[SERVICE] == tried


def test_code_of_a_service_outlives_what_somebody_else_deploys_at_the_same_time(api, kept, service):
    services.deploy(Kube(), service)
    mine, theirs = (with_code(service, file) for file in ("mine.zip", "theirs.zip"))
    path = f"{CONFIG_MAPS}/hello-code"

    def bring():
        servecode.carry(Kube(), theirs.body[0], kept[SERVICE])

    api.before_patch[SERVICE] = bring
    services.deploy(Kube(), mine)
    assert "mine.zip" in kept[path]["binaryData"]


def test_service_whose_code_is_not_in_its_plan_is_changed_in_place(kept, service):
    stored = dataclasses.replace(service, body=service.body[-1:], package=None)
    services.deploy(Kube(), stored)
    services.deploy(Kube(), other(stored, "new", image="registry/new:2"))
    assert kept[SERVICE]["metadata"]["labels"][marks.PLAN] == "new"


def with_code(plan, file):
    """Return a plan of the same service with its code in another file."""
    code, service = copy.deepcopy(plan.body)
    ((name, content),) = code["binaryData"].items()
    code["binaryData"] = {file: content}
    service["metadata"]["labels"][marks.PLAN] = file.partition(".")[0]
    service["spec"]["serveConfigV2"] = service["spec"]["serveConfigV2"].replace(name, file)
    return dataclasses.replace(plan, body=(code, service))


def test_service_that_somebody_has_deployed_anew_meanwhile_is_not_tried_again(kept, service):
    services.deploy(Kube(), service)
    path = f"{RAY}/rayservices/hello"
    failed = copy.deepcopy(kept[path])
    failed["metadata"]["resourceVersion"] = "1"
    kept[path]["metadata"]["resourceVersion"] = "2"
    kept[path]["metadata"]["labels"][marks.PLAN] = "newer"
    newer = copy.deepcopy(kept[path])
    services._try_again(Kube(), failed, ["hello"])
    assert kept[path] == newer
