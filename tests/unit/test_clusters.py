"""What is sent for a long-lived cluster, how two differ, what one is doing; and the commands, without Kubernetes."""

import base64
import contextlib
import copy
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml

from raykube import plans
from raykube.backends.kuberay import clusters, clusterstates
from raykube.backends.kuberay.backend import KubeRay
from raykube.backends.kuberay.causes.diagnosis import cause
from raykube.backends.kubernetes import watching
from raykube.backends.kubernetes.kubeapi import Kube
from raykube.cluster import Cluster
from raykube.errors import ConfigError, Conflict, Forbidden, WaitTimeout
from tests.basics import until
from tests.servers import Quiet, kubernetes, serving, write_kubeconfig
from tests.support import ROOT, pressed, typed

PRESETS = ROOT / "cluster-configs"


def preset(name="cpu-small"):
    return Cluster.load(PRESETS / f"{name}.yaml")


def body(change=None, name="demo"):
    manifest = yaml.safe_load((PRESETS / "cpu-small.yaml").read_text())
    if change:
        change(manifest)
    return plans.raycluster(Cluster(manifest, "here", "here"), name).body[0]


def test_plan_is_the_manifest_by_another_name_with_what_kuberay_leaves_out():
    cluster = preset()
    (planned,) = plans.raycluster(cluster, "demo").body
    assert planned["metadata"]["name"] == "demo"
    assert planned["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "raykube"
    assert planned["spec"]["authOptions"] == {"mode": "token"}
    assert "readinessProbe" in planned["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert cluster.manifest["metadata"] == {"name": "cpu-small"}


def test_plan_keeps_labels_annotations_and_namespace():
    own = {"name": "x", "namespace": "lab", "labels": {"team": "a"}, "annotations": {"raykube.io/storage": "/s"}}
    planned = body(lambda manifest: manifest.update(metadata=own))["metadata"]
    assert planned["labels"]["team"] == "a"
    assert (planned["namespace"], planned["annotations"]) == ("lab", {"raykube.io/storage": "/s"})


def test_plan_of_the_same_manifest_is_the_same_and_of_another_is_not():
    label = "raykube.io/plan"
    first, again = body()["metadata"]["labels"][label], body()["metadata"]["labels"][label]
    other = body(lambda manifest: manifest["spec"].update(suspend=True))["metadata"]["labels"][label]
    assert first == again != other


def test_plan_of_a_cluster_called_as_this_machine_is_refused():
    with pytest.raises(ConfigError, match="name: means this machine"):
        body(name="local")


def test_plan_of_this_machine_is_refused():
    with pytest.raises(ConfigError, match="starts with the first job"):
        plans.raycluster(Cluster.local(), "demo")


@pytest.mark.parametrize("name", ["A_b", "x" * 54, "1st", ""])
def test_plan_of_a_name_that_kubernetes_would_refuse_is_refused(name):
    with pytest.raises(ConfigError, match="name"):
        plans.raycluster(preset(), name)


def differences(change):
    wanted = body()
    known = copy.deepcopy(wanted)
    change(known)
    return list(clusters.differences(known, wanted))


def test_difference_is_told_with_its_path_and_both_values():
    def change(known):
        known["spec"]["workerGroupSpecs"][0]["replicas"] = 3
        del known["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"]
        known["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "hand"

    assert differences(change) == [
        "metadata.labels[app.kubernetes.io/managed-by]: 'hand' there, 'raykube' here",
        "spec.headGroupSpec.rayStartParams.num-cpus: absent there, '0' here",
        "spec.workerGroupSpecs[0].replicas: 3 there, 2 here",
    ]


def test_difference_of_what_only_the_other_has_is_told():
    assert differences(lambda known: known["spec"].update(suspend=True)) == ["spec.suspend: True there, absent here"]


def test_difference_in_a_containers_variables_is_told_without_their_values():
    def change(known):
        container = known["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
        container["env"].append({"name": "PASSWORD", "value": "hunter2"})

    path = "spec.headGroupSpec.template.spec.containers[0].env"
    assert differences(change) == [f"{path}: another one there"]


def test_difference_is_not_what_an_autoscaler_wrote():
    def change(known):
        known["spec"]["workerGroupSpecs"][0].update(replicas=7, scaleStrategy={"workersToDelete": ["a"]})

    def autoscaled(manifest):
        manifest["spec"]["enableInTreeAutoscaling"] = True

    wanted = body(autoscaled)
    known = copy.deepcopy(wanted)
    change(known)
    assert list(clusters.differences(known, wanted)) == []
    assert len(differences(change)) == 2


def test_difference_is_not_what_a_server_adds_to_metadata():
    assert differences(lambda known: known["metadata"].update(uid="1", annotations={"other": "x"})) == []


def pod(name, *, ready=True, leaving=False, cluster="demo"):
    metadata = {"name": name, "labels": {"ray.io/cluster": cluster, "ray.io/node-type": "worker"}}
    if leaving:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": "2026-01-01T00:00:00Z"}
    return {"metadata": metadata, "spec": {"containers": []}, "status": {"phase": "Running", "conditions": [condition]}}


def status(pods, **spec):
    cluster = body()
    cluster["spec"] |= spec
    cluster["metadata"] |= {"creationTimestamp": "2026-01-01T00:00:00Z", "uid": "1", "namespace": "lab"}
    cluster["status"] = {"state": "ready", "head": {"serviceName": "demo-head-svc"}}
    return clusterstates.status_of(clusterstates.seen(cluster, pods, [], time.time()))


def test_cluster_runs_when_all_its_pods_are_ready():
    found = status([pod("a"), pod("b"), pod("c"), pod("z", cluster="other")])
    assert (found.state, found.ready, found.wanted, found.failure) == ("RUNNING", 3, 3, None)
    assert found.address == "http://demo-head-svc.lab.svc:8265"
    assert found.created == 1767225600.0


@pytest.mark.parametrize("third", [[], [pod("c", ready=False)], [pod("c", leaving=True)]])
def test_cluster_waits_while_a_pod_is_not_ready_whatever_kuberay_said_once(third):
    found = status([pod("a"), pod("b"), *third])
    assert (found.state, found.detail) == ("WAITING", "2 of 3 pods are ready")


def test_cluster_that_is_suspended_is_stopped_and_says_so():
    found = status([], suspend=True)
    assert (found.state, found.detail, found.failure.reason) == ("STOPPED", "it is suspended", "Suspended")
    assert found.failure.where == "raycluster/demo: spec.suspend"
    assert "-n lab patch raycluster demo --type merge" in found.failure.next_step


def test_cluster_that_kueue_has_not_admitted_names_its_queue():
    cluster = body()
    cluster["spec"]["suspend"] = True
    cluster["metadata"] |= {"uid": "1", "namespace": "lab", "labels": {"kueue.x-k8s.io/queue-name": "team"}}
    seen = clusterstates.seen(cluster, [], [], time.time())
    found = clusterstates.status_of(seen).failure
    assert (found.reason, found.next_step.rpartition(": ")[2]) == ("Queued", "kubectl -n lab get workloads")
    assert found.message.startswith("Kueue has not admitted it to queue team")
    metadata = {"name": "a", "namespace": "lab"}
    assert cause(replace(seen, owner={"metadata": metadata, "spec": {"rayClusterConfig": {}}})).reason == "Queued"


@pytest.mark.parametrize(
    ("group", "pods"),
    [
        ({"replicas": 2}, 3),
        ({"minReplicas": 1}, 2),
        ({"replicas": 1, "minReplicas": 2}, 3),
        ({"replicas": 5, "maxReplicas": 3}, 4),
        ({"replicas": 5, "maxReplicas": None}, 6),
        ({"replicas": 2, "numOfHosts": 4}, 9),
        ({"replicas": 2, "suspend": True}, 1),
    ],
)
def test_cluster_wants_as_many_pods_as_kuberay_makes(group, pods):
    assert status([], workerGroupSpecs=[{"groupName": "a", **group}]).wanted == pods


@pytest.fixture
def raykube(tmp_path):
    """Return a function that types a command where there is neither a Ray head nor a Kubernetes."""

    def type_(*words, **environ):
        own = {"RAYKUBE_HOME": str(tmp_path / "home"), "KUBECONFIG": str(tmp_path / "none")}
        return typed(*words, cwd=tmp_path, **own | environ)

    return type_


def test_dry_run_prints_the_cluster_without_a_network(raykube):
    path = str(PRESETS / "cpu-small.yaml")
    done = raykube("cluster", "create", "demo", "--on", path, "--workers", "3", "-n", "lab", "--dry-run=client")
    printed = yaml.safe_load(done.stdout)
    assert (printed["kind"], printed["metadata"]["namespace"]) == ("RayCluster", "lab")
    assert printed["spec"]["workerGroupSpecs"][0]["replicas"] == 3


@pytest.mark.parametrize("dry_run", [(), ("--dry-run=client",)])
def test_create_names_what_else_stands_in_the_file(raykube, tmp_path, dry_run):
    path = tmp_path / "redis.yaml"
    beside = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "redis-config"}}
    path.write_text(yaml.safe_dump_all([beside, dict(preset().manifest)]))
    done = raykube("cluster", "create", "demo", "--on", str(path), *dry_run)
    assert "note: raykube does not create these" in done.stderr
    assert "ConfigMap redis-config" in done.stderr


@pytest.mark.parametrize("timeout_s", ["nan", "-5"])
def test_create_that_would_wait_for_no_time_is_refused_before_anything_is_made(raykube, timeout_s):
    path = str(PRESETS / "cpu-small.yaml")
    for dry_run in ((), ("--dry-run=client",)):
        done = raykube("cluster", "create", "demo", "--on", path, "--timeout-s", timeout_s, *dry_run)
        assert (done.returncode, done.stdout) == (2, "")
        assert "which is no time" in done.stderr


class Taking(Quiet):
    """Has no cluster until it is sent one, of which all pods are ready at once; may be told to answer otherwise."""

    instead: tuple = ()

    def do_GET(self):  # noqa: N802 - http.server calls it so
        if self.instead:
            return self.answer(*self.instead)
        kind, name = self.path.partition("?")[0].split("/")[-2:]
        listed = {"rayclusters": self.server.asked[:1], "pods": self.server.pods, "events": []}
        listed["rayjobs"] = self.server.runs
        if "watch=1" in self.path:
            self.send_response(200)  # nothing changes any more
            self.send_header("content-length", "0")
            return self.end_headers()
        if name in listed and listed[name] is None:
            code, words = (504, "took too long") if name == "pods" else (403, "no")
            return self.answer(code, {"kind": "Status", "code": code, "message": words})
        if name in listed:
            return self.answer(200, {"metadata": {"resourceVersion": "1"}, "items": listed[name]})
        if kind == "rayclusters" and self.server.asked:
            return self.answer(200, self.server.asked[0])
        gone = {"kind": "Status", "code": 404, "message": "no", "details": {"kind": kind, "name": name}}
        return self.answer(404, gone)

    def do_POST(self):  # noqa: N802
        thing = json.loads(self.body())
        thing["metadata"] |= {"uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
        self.server.asked.append(thing)
        self.answer(201, thing)


@pytest.fixture
def taking(tmp_path):
    """Have an API server that takes clusters, where the commands of `raykube` look for one."""
    with serving(Taking) as server:
        server.pods, server.runs = [pod("a"), pod("b"), pod("c")], []
        for each in server.pods:
            each["metadata"]["uid"] = each["metadata"]["name"]
        write_kubeconfig(server, tmp_path / "none")
        yield server


@pytest.fixture
def demo(taking, tmp_path, monkeypatch):
    """Have a cluster there, of which a wait has seen that it runs; return what the wait tells next."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    taking.asked.append({"metadata": {"name": "demo", "uid": "u"}, "spec": preset().manifest["spec"]})
    with contextlib.closing(clusters.changes(Kube(), "demo")) as changes:
        assert next(changes).state == "RUNNING"
        yield changes


def test_wait_for_a_cluster_tells_that_its_server_is_away(demo, monkeypatch):
    monkeypatch.setattr(Taking, "instead", (503, {"kind": "Status", "code": 503, "message": "shutting down"}))
    late = time.monotonic() + 10
    away = next(each for each in demo if each.failure or time.monotonic() > late)
    assert (away.state, away.failure.reason) == ("WAITING", "ApiServerUnreachable")


def test_wait_for_a_cluster_whose_pods_are_not_told_ends_in_its_time(taking, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    taking.asked.append({"metadata": {"name": "demo", "uid": "u"}, "spec": preset().manifest["spec"]})
    taking.pods = None
    with pytest.raises(WaitTimeout, match="ApiServerUnreachable"):
        clusters.wait_ready(Kube(), "demo", timeout_s=0.5)


def test_wait_for_a_cluster_ends_with_the_right_to_see_it(demo, monkeypatch):
    monkeypatch.setattr(watching, "STARTING_S", 0.2)
    message = 'rayclusters is forbidden: User "u" cannot list resource "rayclusters"'
    monkeypatch.setattr(Taking, "instead", (403, {"kind": "Status", "code": 403, "message": message}))
    late = time.monotonic() + 10
    with pytest.raises(Forbidden, match="may not list rayclusters"):
        [*itertools.takewhile(lambda _: time.monotonic() < late, demo)]


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ("create", "interrupted while cluster demo was sent; if it has arrived, it goes on starting"),
        ("wait_ready", "cluster demo goes on starting"),
    ],
)
@pytest.mark.usefixtures("taking")
def test_ctrl_c_while_a_cluster_is_made_says_how_to_look_at_it_and_end_it(raykube, monkeypatch, step, told):
    monkeypatch.setattr(clusters, step, pressed)
    done = raykube("cluster", "create", "demo", "--on", str(PRESETS / "cpu-small.yaml"))
    assert (done.returncode, done.stdout) == (130, "")
    assert f"\n{told}\n" in done.stderr
    assert "raykube cluster status --on" in done.stderr
    assert "raykube cluster delete --on" in done.stderr


@pytest.mark.parametrize("no_wait", [(), ("--no-wait",)])
@pytest.mark.usefixtures("taking")
def test_cluster_that_was_created_is_told_as_json_by_its_state(raykube, no_wait):
    words = ("--on", str(PRESETS / "cpu-small.yaml"), *no_wait)
    plain, made = raykube("cluster", "create", "demo", *words), raykube("cluster", "create", "demo", *words, "--json")
    known = raykube("cluster", "status", "demo", "-n", "default", "--json")
    assert (plain.returncode, plain.stdout, made.returncode) == (0, "demo\n", 0)
    told, there = (json.loads(done.stdout) for done in (made, known))
    assert (told["state"], told["ready"]) == ("RUNNING", 3)
    assert {**told, "age_s": 0} == {**there, "age_s": 0}
    assert ("demo RUNNING" in made.stderr) == (not no_wait)


def run(name, state, cluster="demo", **annotations):
    """Return a RayJob for a cluster that stays."""
    spec, metadata = {"clusterSelector": {"ray.io/cluster": cluster}}, {"name": name, "annotations": annotations}
    return {"metadata": metadata, "spec": spec, "status": {"jobDeploymentStatus": state}}


def test_cluster_is_told_with_the_runs_for_it_that_have_not_ended(raykube, taking):
    taking.asked.append({"metadata": {"name": "demo", "uid": "u"}, "spec": preset().manifest["spec"]})
    taking.runs = [run("on", "Running"), run("next", "Initializing"), run("new", "")]
    taking.runs += [run("over", "Complete"), run("bad", "Failed"), run("else", "Running", "other")]
    taking.runs += [run("held", "Suspended", **{"raykube.io/stop": "2026-01-01T00:00:00Z"})]
    shown = raykube("cluster", "status", "demo", "-n", "default")
    assert "\nruns:      on, next, new\n" in shown.stdout
    for words in (("status", "demo"), ("list",)):
        told = json.loads(raykube("cluster", *words, "-n", "default", "--json").stdout)
        assert (told[0] if words == ("list",) else told)["runs"] == ["on", "next", "new"]


def test_cluster_whose_runs_nobody_may_see_is_told_without_them(raykube, taking):
    taking.asked.append({"metadata": {"name": "demo", "uid": "u"}, "spec": preset().manifest["spec"]})
    taking.runs = None
    assert "runs:" not in raykube("cluster", "status", "demo", "-n", "default").stdout
    assert json.loads(raykube("cluster", "status", "demo", "-n", "default", "--json").stdout)["runs"] is None


def test_create_on_this_machine_is_refused(raykube):
    done = raykube("cluster", "create", "demo")
    assert done.returncode == 2
    assert "--on PRESET|PATH" in done.stderr


def test_list_without_kubernetes_is_that_of_this_machine(raykube):
    done = raykube("cluster", "list")
    assert (done.returncode, done.stdout.split()) == (0, ["NAME", "STATE", "PODS", "AGE", "ADDRESS"])
    assert json.loads(raykube("cluster", "list", "--on", "local", "--json").stdout) == []


def test_list_beside_a_broken_kubeconfig_says_so(raykube, tmp_path):
    (tmp_path / "none").write_text("users: [1")  # where it looks for one
    done = raykube("cluster", "list")
    assert (done.returncode, done.stdout.split()[0]) == (0, "NAME")
    assert f"note: the kubeconfig {tmp_path / 'none'}" in done.stderr


@pytest.mark.parametrize("environ", [{}, {"RAYKUBE_ON": "local"}])
def test_list_of_a_namespace_without_kubernetes_is_refused(raykube, environ):
    done = raykube("cluster", "list", "-n", "lab", **environ)
    assert done.returncode == 2
    assert "no Kubernetes is configured" in done.stderr


@pytest.mark.parametrize("verb", ["status", "why", "forward", "delete"])
def test_local_means_this_machine(raykube, verb):
    done = raykube("cluster", verb, "local")
    assert done.returncode == 2
    assert "no Ray head of raykube runs on this machine" in done.stderr


def test_token_file_is_for_its_owner_and_goes(tmp_path, monkeypatch):
    from raykube.cli import clusters

    monkeypatch.setenv("RAYKUBE_HOME", str(tmp_path))
    with clusters._token_file("secret", "demo") as path:
        assert Path(path).read_text() == "secret"
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


KEEPS = (
    "from raykube.cli import clusters\n"
    "with clusters._token_file('secret', 'demo') as path: print(path, flush=True); input()"
)


def test_token_file_of_a_killed_forward_goes_with_the_next_and_that_of_a_live_one_stays(tmp_path, monkeypatch):
    from raykube.cli import clusters

    monkeypatch.setenv("RAYKUBE_HOME", str(tmp_path))
    words = {"args": [sys.executable, "-c", KEEPS], "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(**words) as killed, subprocess.Popen(**words) as live:
        left, used = Path(killed.stdout.readline().strip()), Path(live.stdout.readline().strip())
        killed.kill()
        killed.wait()
        assert left.read_text() == "secret"
        with clusters._token_file("other", "demo") as path:
            assert sorted(path.parent.iterdir()) == sorted([path, used])
        live.communicate("\n")
    assert list(path.parent.iterdir()) == []


def test_token_without_a_place_for_it_says_so(tmp_path, monkeypatch):
    from raykube.cli import clusters

    (tmp_path / "file").touch()
    monkeypatch.setenv("RAYKUBE_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="RAYKUBE_HOME"), clusters._token_file("secret", "demo"):
        pass


def test_list_beside_a_kubernetes_that_does_not_answer_says_so(raykube, tmp_path):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # taken, and not listened on
        server = f"https://127.0.0.1:{nobody.getsockname()[1]}"
        (tmp_path / "none").write_text(
            yaml.safe_dump(
                {
                    "clusters": [{"name": "c", "cluster": {"server": server}}],
                    "users": [{"name": "u", "user": {}}],
                    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "x",
                }
            )
        )
        done, named = raykube("cluster", "list"), raykube("cluster", "list", "-n", "lab")
    assert (done.returncode, done.stdout.split()[0]) == (0, "NAME")
    assert f"note: no answer from the API server {server}" in done.stderr
    assert named.returncode == 2


class Api(Quiet):
    """Has the cluster that the test says."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        secret = {"data": {"auth_token": base64.b64encode(b"t0ken").decode()}}
        self.answer(200, secret if "/secrets/" in self.path else self.server.cluster)

    def do_DELETE(self):  # noqa: N802
        self.server.asked.append(self.path)
        self.answer(403, {"kind": "Status", "code": 403, "message": "no"})


def test_cluster_that_belongs_to_a_job_is_not_deleted():
    with kubernetes(Api) as server:
        server.cluster = body()
        server.cluster["metadata"]["uid"] = "u"
        server.cluster["metadata"]["ownerReferences"] = [{"kind": "RayJob", "name": "digits", "uid": "other"}]
        with pytest.raises(Conflict, match="cluster demo belongs to RayJob digits") as caught:
            clusters.delete(Kube(), "demo")
    assert caught.value.next_step == "raykube job delete digits"
    assert server.asked == []


class Standing(Quiet):
    """Has a cluster with a run on it; KubeRay notes the run's end when it has been asked for often after that."""

    def do_GET(self):  # noqa: N802
        kind, _, name = self.path.partition("/namespaces/default/")[2].partition("?")[0].partition("/")
        self.server.looks += kind == "rayjobs"
        if kind == "services":  # Ray's own API
            self.answer(200, {"status": self.server.ray, "driver_node_id": ""})
        elif kind == "rayclusters" and self.server.cluster is None:
            self.answer(404, {"kind": "Status", "code": 404, "details": {"kind": kind, "name": name}})
        elif kind == "rayclusters" and name:
            self.answer(200, self.server.cluster)
        elif kind == "rayjobs" and self.server.refuses == "list" and not name:
            self.answer(403, {"kind": "Status", "code": 403, "message": "no", "details": {}})
        else:
            items = {"rayjobs": [self.run()], "rayclusters": [self.server.cluster]}.get(kind, [])
            self.answer(200, self.run() if name else {"metadata": {"resourceVersion": "1"}, "items": items})

    def run(self):
        state = "Complete" if self.server.looks > 6 and self.server.ray != "RUNNING" else "Running"
        status = {"jobDeploymentStatus": state, "jobId": "a-1", "rayClusterName": "demo"}
        status |= {"jobStatus": "RUNNING", "dashboardURL": "demo-head-svc.default.svc.cluster.local:8265"}
        spec = {"submissionMode": "HTTPMode", "clusterSelector": {"ray.io/cluster": "demo"}}
        return {"kind": "RayJob", "metadata": {"name": "a", "uid": "a"}, "spec": spec, "status": status}

    def do_POST(self):  # noqa: N802
        assert self.path.endswith("/api/jobs/a-1/stop")
        if self.server.refuses == "stop":
            return self.answer(403, {"kind": "Status", "code": 403, "message": "no", "details": {}})
        self.server.ray, self.server.looks = "STOPPED", 0
        return self.answer(200, {"stopped": True})

    def do_DELETE(self):  # noqa: N802
        preconditions = json.loads(self.body())["preconditions"]
        self.server.asked.append((preconditions, self.server.ray, self.run()["status"]["jobDeploymentStatus"]))
        self.server.cluster = None
        self.answer(200, {})


@pytest.fixture
def standing(monkeypatch):
    monkeypatch.setattr(clusters, "_TICK_S", 0.01)
    with kubernetes(Standing) as server:
        server.cluster, server.looks, server.ray, server.refuses = body(), 0, "RUNNING", ""
        server.cluster["metadata"]["uid"] = "u"
        server.cluster["spec"].pop("authOptions")
        yield server


def deleted():
    """Delete the cluster, and return what was told over it."""
    told = []
    clusters.delete(Kube(), "demo", tell=told.append)
    return "\n".join(told)


def test_cluster_that_was_looked_at_is_deleted_once_kuberay_has_noted_which_runs_on_it_have_ended(standing):
    standing.ray = "SUCCEEDED"
    assert deleted() == ""
    assert standing.asked == [({"uid": "u"}, "SUCCEEDED", "Complete")]


def test_cluster_with_a_run_on_it_is_deleted_once_that_was_stopped_and_kuberay_knows(standing):
    assert deleted() == "ended with it: a"
    assert standing.asked == [({"uid": "u"}, "STOPPED", "Complete")]


@pytest.mark.parametrize(
    ("refused", "told"), [("stop", "note: a could not be ended: "), ("list", "note: what runs on cluster demo goes on")]
)
def test_run_that_cannot_be_stopped_keeps_no_cluster_from_its_deletion_and_is_told(standing, refused, told):
    standing.refuses = refused
    assert deleted().startswith(told)
    assert standing.asked == [({"uid": "u"}, "RUNNING", "Running")]


def test_run_whose_end_kuberay_has_not_seen_is_told_when_its_cluster_is_deleted(standing, monkeypatch):
    monkeypatch.setattr(clusters, "_NOTED_S", 0)
    said = deleted()
    assert "starts it again once a cluster demo is made; to prevent that, and remove its checkpoints too: " in said
    assert "raykube job delete a" in said
    assert standing.asked == [({"uid": "u"}, "STOPPED", "Running")]


class Serving(Quiet):
    """Has a service and its cluster."""

    def do_GET(self):  # noqa: N802
        status = {"activeServiceStatus": {"rayClusterName": "s-x"}}
        spec = {"serveConfigV2": "applications: [{route_prefix: /hello}]"}
        self.answer(200, {"kind": "RayService", "metadata": {"name": "s"}, "spec": spec, "status": status})

    def do_POST(self):  # noqa: N802
        asked = json.loads(self.body())["spec"]["resourceAttributes"]
        self.server.asked.append((asked["verb"], asked["resource"], asked["subresource"]))
        self.answer(201, {"status": {"allowed": self.server.allowed}})


@pytest.mark.parametrize("noun", ["service", "cluster"])
def test_forward_that_is_interrupted_says_so_by_its_exit_code(tmp_path, noun):
    with serving(Serving) as server:
        server.allowed = True
        config = write_kubeconfig(server, tmp_path / "kubeconfig")
        environ = {**os.environ, "KUBECONFIG": config, "RAYKUBE_HOME": str(tmp_path)}
        words = [sys.executable, "-m", "raykube", noun, "forward", "s", "-n", "default"]
        with subprocess.Popen(
            words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            try:
                lines = [*itertools.takewhile(lambda line: not line.startswith("carrying"), process.stdout)]
                until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_SLEEPING, "it waits", 10)
                process.send_signal(signal.SIGINT)
                rest = process.communicate(timeout=30)[0]
            finally:
                process.kill()
    assert process.returncode == 130
    assert "Traceback" not in rest
    address = lines[-1].split()[-1]
    assert address.endswith("/hello") is (noun == "service")


@pytest.mark.parametrize("noun", ["service", "cluster"])
def test_forward_without_the_right_to_it_is_refused_before_it_tells_an_address(tmp_path, monkeypatch, noun):
    monkeypatch.setenv("RAYKUBE_HOME", str(tmp_path))
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # those of this process are its own
    with kubernetes(Serving) as server:
        server.allowed = False
        done = typed(noun, "forward", "s", "-n", "default", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "this user may not get pods/portforward" in done.stderr
    assert 'resources: ["pods/portforward"], verbs: ["get"]' in done.stderr
    assert server.asked == [("get", "pods", "portforward")]


@pytest.mark.parametrize(("number", "own"), [(signal.SIGTERM, ""), (signal.SIGHUP, "mine")])
def test_forward_that_is_ended_takes_its_token_file_along(tmp_path, number, own):
    with serving(Api) as server:
        server.cluster = body()
        environ = {"KUBECONFIG": write_kubeconfig(server, tmp_path / "kubeconfig"), "RAYKUBE_HOME": str(tmp_path)}
        environ = {**os.environ, **environ, "RAY_AUTH_TOKEN": own}
        words = [sys.executable, "-m", "raykube", "cluster", "forward", "demo", "-n", "default"]
        with subprocess.Popen(
            words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            lines = [*itertools.takewhile(lambda line: not line.startswith("carrying"), process.stdout)]
            kept = [path.read_text() for path in (tmp_path / "tokens").iterdir()]
            process.send_signal(number)
            rest = process.communicate(timeout=30)[0]
    assert [line for line in lines if line.startswith("unset")] == (["unset RAY_AUTH_TOKEN\n"] if own else [])
    assert (kept, [*(tmp_path / "tokens").iterdir()]) == (["t0ken"], [])
    assert "Traceback" not in rest


def test_cluster_for_jobs_has_no_annotations_but_raykubes_own():
    own = {"raykube.io/storage": "/shared", "raykube.io/tracking": "off"}
    cluster = body()
    cluster["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": "PASSWORD=hunter2", **own}
    with kubernetes(Api) as server:
        server.cluster = cluster
        found = KubeRay().cluster("demo")
        assert found.manifest["metadata"] == {"name": "demo", "namespace": "default", "annotations": own}
        del cluster["metadata"]["annotations"]
        assert (KubeRay().cluster("demo").storage, KubeRay().cluster("demo").tracking) == ("", "")
