"""Each cause is made to happen and named within five seconds of the fact being visible in any object."""

import contextlib
import functools
import http.server
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest

from raykube import handles
from raykube.backends.kuberay.backend import KubeRay
from raykube.backends.kuberay.causes.clustercauses import INCOMPLETE_S, OPERATOR_S
from raykube.backends.kuberay.causes.diagnosis import cause
from raykube.backends.kuberay.causes.observed import Observed
from raykube.backends.kuberay.serve import servelook
from raykube.backends.kubernetes.kubeapi import Kube
from raykube.errors import WaitTimeout
from tests.cluster import faults, kubectl, layout, workloads
from tests.cluster.shell import ClusterError, console, until

pytestmark = pytest.mark.cluster

RAY_KINDS = "rayjobs.ray.io,rayservices.ray.io,rayclusters.ray.io"
WITHIN_S = 5.0
ALIVE = {"httpGet": {"path": "/api/healthz", "port": 52365}, "initialDelaySeconds": 1, "periodSeconds": 1}
ALIVE |= {"timeoutSeconds": 2, "failureThreshold": 120}
OWN_COMMAND = {"annotations": {"ray.io/overwrite-container-cmd": "true"}}


@pytest.fixture
def namespace(namespace):
    """Give a namespace in which there is nothing left to wait for at its end: these pods need no time to end."""
    yield namespace
    kubectl.kubectl("delete", RAY_KINDS, "--all", "--wait=false", namespace=namespace)


def template(image=layout.SMALL_IMAGE, command="sleep 999", container=(), **spec):
    """Return a pod template that needs next to nothing; with Ray's own command if `command` is empty."""
    amounts = {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "3Gi"}}
    made = {"name": "ray", "image": image, "imagePullPolicy": "IfNotPresent", "resources": amounts}
    own = {"command": ["sh", "-c", command]} if command else {"readinessProbe": ALIVE, "livenessProbe": ALIVE}
    return {
        "metadata": OWN_COMMAND if command else {},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{**made, **own, **dict(container)}], **spec},
    }


def cluster(head, workers=(), **spec):
    counts = {"replicas": 1, "minReplicas": 1, "maxReplicas": 1, "rayStartParams": {}}
    groups = [{"groupName": name, "template": pod, **counts} for name, pod in dict(workers).items()]
    heads = {"rayStartParams": {"num-cpus": "4"}, "template": head}
    return {"rayVersion": workloads.ray_version(), "headGroupSpec": heads, "workerGroupSpecs": groups, **spec}


def resource(kind, name, spec, **metadata):
    return {"apiVersion": "ray.io/v1", "kind": kind, "metadata": {"name": name, **metadata}, "spec": spec}


def job(name, head=None, *, entrypoint="true", cluster_spec=(), **spec):
    made = {"submissionMode": "HTTPMode", "entrypoint": entrypoint, **spec}
    if "clusterSelector" not in spec:
        made["rayClusterSpec"] = cluster(head or template(), **dict(cluster_spec))
    return resource("RayJob", name, made)


def amounts(**limits):
    return {"resources": {"requests": limits, "limits": limits}}


def mounted(**volume):
    return {"container": {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}, "volumes": [{"name": "v", **volume}]}


@dataclass
class Case:
    """A cause that is expected, and the word by which one sees in an object that it has come."""

    reason: str
    word: str
    made: dict


def gathered(namespace):
    """Return what is known of each name in the namespace."""
    items = kubectl.listed(f"{RAY_KINDS},pods,events", namespace)
    kinds = {kind: [each for each in items if each["kind"] == kind] for kind in ("Pod", "Event", "RayCluster")}
    owners = {each["metadata"]["name"]: each for each in items if each["kind"] in ("RayJob", "RayService")}
    alone = {
        each["metadata"]["name"]: each for each in kinds["RayCluster"] if "ownerReferences" not in each["metadata"]
    }
    return {name: _seen(name, owners.get(name, {}), kinds) for name in (*owners, *alone)}


def _seen(name, owner, kinds):
    cluster_name = _cluster_of(owner.get("status") or {}) or name
    named = [each for each in kinds["RayCluster"] if each["metadata"]["name"] == cluster_name]
    pods = [each for each in kinds["Pod"] if each["metadata"]["labels"].get("ray.io/cluster") == cluster_name]
    claims = [volume.get("persistentVolumeClaim", {}) for pod in pods for volume in pod["spec"].get("volumes", ())]
    names = {
        name,
        cluster_name,
        *(pod["metadata"]["name"] for pod in pods),
        *(each.get("claimName") for each in claims),
    }
    about = [each for each in kinds["Event"] if each["involvedObject"].get("name") in names]
    # A client that watches has no use for the others, of which there are many more.
    events = [each for each in about if each["type"] == "Warning" or each["reason"].startswith("Deleted")]
    return Observed(owner, named[0] if named else {}, tuple(pods), tuple(events), now=time.time())


def _cluster_of(status):
    services = (status.get(key) or {} for key in ("pendingServiceStatus", "activeServiceStatus"))
    return status.get("rayClusterName") or next(
        (each["rayClusterName"] for each in services if each.get("rayClusterName")), ""
    )


def named_in_time(cases, look, timeout_s):
    """Wait until each case's cause is named, and say how long after its fact was visible that was.

    Raises:
        ClusterError: a fact did not come, or its cause was not named in time.
    """
    visible, named = {}, {}

    def all_named():
        seen, now = look(), time.monotonic()
        for name in [name for name in cases if name in seen and name not in named]:
            _note(name, cases[name], seen[name], now, visible, named)
        return len(named) == len(cases)

    with contextlib.suppress(ClusterError):
        until(all_named, "", timeout_s, poll_s=0.5)
    took = {name: round(named[name] - visible.get(name, named[name]), 1) for name in named}
    console.print(f"seconds from fact to name: {took}")
    if missing := {name: case for name, case in cases.items() if name not in named}:
        seen = look()
        raise ClusterError(f"not named: { {name: (cause(seen[name]), name in visible) for name in missing} }")
    return took


def _note(name, case, seen, now, visible, named):
    if case.word in json.dumps([seen.owner, seen.cluster, seen.pods, seen.events, seen.ray]):
        visible.setdefault(name, now)
    found = cause(seen)
    if found and found.reason == case.reason:
        assert found.message
        assert found.next_step
        assert found.where
        named[name] = now


def expect(namespace, cases, *others, look=None, timeout_s=60):
    kubectl.apply(*others, *(case.made for case in cases.values()), namespace=namespace)
    took = named_in_time(cases, look or functools.partial(gathered, namespace), timeout_s)
    assert {name: each for name, each in took.items() if each > WITHIN_S} == {}


@pytest.fixture(scope="module")
def registry():
    """Give the address of a registry that has nothing, and denies half of that."""

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(401 if "private" in self.path else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_HEAD(self):
            self.do_GET()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"localhost:{server.server_address[1]}"
        server.shutdown()


UNBOUND = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "unbound"},
    "spec": {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "none",
        "resources": {"requests": {"storage": "1Gi"}},
    },
}
SECRET = {"name": "A", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k"}}}
FULL = {"command": "tail /dev/zero", "container": {"resources": {"limits": {"memory": "32Mi"}}}}
PULLED = {"none": "ImageNotFound", "private": "ImagePullDenied"}
WAITING = {
    "never": ("ImageNotFound", "ErrImageNeverPull", {"image": "none:1", "container": {"imagePullPolicy": "Never"}}),
    "cpu": ("Unschedulable", "Insufficient cpu", {"container": amounts(cpu="6400")}),
    "memory": ("Unschedulable", "Insufficient memory", {"container": amounts(memory="900Ti")}),
    "gpu": ("Unschedulable", "Insufficient nvidia.com/gpu", {"container": amounts(**{"nvidia.com/gpu": "2000"})}),
    "selector": ("Unschedulable", "affinity/selector", {"nodeSelector": {"kind": "a100"}}),
    "claim": ("VolumeClaimMissing", "not found", mounted(persistentVolumeClaim={"claimName": "none"})),
    "unbound": ("VolumeClaimUnbound", "has unbound", mounted(persistentVolumeClaim={"claimName": "unbound"})),
    "map": ("ConfigMapMissing", "FailedMount", mounted(configMap={"name": "none"})),
    "secret": ("SecretMissing", "CreateContainerConfigError", {"container": {"env": [SECRET]}}),
    "crash": ("CrashLoopBackOff", "CrashLoopBackOff", {"command": "exit 7"}),
    "command": ("RunContainerError", "StartError", {"container": {"command": ["/none"]}}),
    "oom": ("HeadOOMKilled", "OOMKilled", FULL),
    # KubeRay deletes such pods in no time.
    "fails": ("PodFailed", "ExitCode:7", {"command": "exit 7", "restartPolicy": "Never"}),
    "gone": ("HeadOOMKilled", "OOMKilled", {**FULL, "restartPolicy": "Never"}),
}


#: The first stands in a pod, the second in a warning about a claim, the third in an event that is no warning.
WAITED_FOR = ("never", "unbound", "fails")


def test_causes_in_a_head_s_pod_are_named(namespace, monkeypatch):
    cases = {name: Case(*told, job(name, template(**made))) for name, (*told, made) in WAITING.items()}
    expect(namespace, cases, UNBOUND)
    monkeypatch.setenv("KUBECONFIG", str(kubectl.kubeconfig()))
    with ThreadPoolExecutor() as pool:
        heard = [*pool.map(functools.partial(reasons, namespace), WAITED_FOR)]
    assert [cases[name].reason for name in WAITED_FOR] == heard


def reasons(namespace, name):
    """Return the last reason that who waits for a run has heard within the time in which it is to be named."""
    heard = []
    with pytest.raises(WaitTimeout):
        handles.Run(name, KubeRay(namespace=namespace)).wait(timeout_s=WITHIN_S, on_event=heard.append)
    return [event.status.failure.reason for event in heard if event.status.failure][-1]


@pytest.mark.usefixtures("own_cluster")  # whose node is this machine, where the registry is
def test_images_that_a_registry_lacks_or_denies_are_named(namespace, registry):
    made = {name: job(name, template(f"{registry}/{name}:1")) for name in PULLED}
    expect(namespace, {name: Case(reason, "ErrImagePull", made[name]) for name, reason in PULLED.items()})


def test_eviction_is_named(namespace):
    case = Case("Evicted", "DisruptionTarget", job("drained", template(terminationGracePeriodSeconds=9)))
    kubectl.apply(case.made, namespace=namespace)

    def runs():
        found = workloads.pods(namespace, "head")
        return found and found[0]["status"].get("phase") == "Running" and found[0]["metadata"]["name"]

    pod = until(runs, "the head's container runs", 30)
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
    kubectl.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
    assert named_in_time({"drained": case}, functools.partial(gathered, namespace), 20)["drained"] <= WITHIN_S


@pytest.mark.usefixtures("own_cluster")
def test_taint_that_no_pod_tolerates_is_named_until_it_is_gone(namespace):
    with faults.node_tainted("team=research:NoSchedule"):
        expect(namespace, {"keep-out": Case("Unschedulable", "untolerated taint", job("keep-out"))})
        next_step = cause(gathered(namespace)["keep-out"]).next_step
        assert "add a toleration to the group's pod template" in next_step
    until(lambda: cause(gathered(namespace)["keep-out"]) is None, "it is scheduled", 30)


@pytest.mark.usefixtures("own_cluster")
def test_lost_node_is_named_until_it_is_back(namespace):
    is_ready = {"readinessProbe": {"exec": {"command": ["true"]}, "periodSeconds": 1}}
    case = Case("NodeLost", "NodeNotReady", job("alone", template(container=is_ready)))
    kubectl.apply(case.made, namespace=namespace)
    until(lambda: any(map(kubectl.ready, workloads.pods(namespace, "head"))), "the head is ready", 30)
    assert cause(gathered(namespace)["alone"]) is None
    with faults.node_paused():
        assert named_in_time({"alone": case}, functools.partial(gathered, namespace), 30)["alone"] <= WITHIN_S
    until(lambda: cause(gathered(namespace)["alone"]) is None, "the node is back", 30)


def test_quota_that_keeps_a_pod_from_being_made_is_named(namespace):
    metadata = {"name": "few", "namespace": namespace}
    kubectl.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata, "spec": {"hard": {"pods": "0"}}})
    until(lambda: kubectl.get("resourcequota", "few", namespace).get("status", {}).get("hard"), "the quota counts", 30)
    expect(namespace, {"much": Case("QuotaExceeded", "exceeded quota", job("much"))})


def test_refused_specs_and_deadlines_are_named(namespace):
    late = template("none:1", container={"imagePullPolicy": "Never"})
    timeout = {"annotations": {"ray.io/initializing-timeout": "3s"}}
    bad = cluster(template())
    bad["headGroupSpec"]["headService"] = {"metadata": {"name": "x"}}
    recreate = {"upgradeStrategy": {"type": "Recreate"}}
    applications = {"serveConfigV2": "applications: []"}
    services = {
        "slow": resource("RayService", "slow", {**applications, "rayClusterConfig": cluster(late)}, **timeout),
        "bad": resource("RayService", "bad", {**applications, "rayClusterConfig": bad}),
    }
    cases = {
        "cluster": Case("InvalidRayClusterSpec", "InvalidRayClusterSpec", job("cluster", cluster_spec=recreate)),
        "job": Case("InvalidRayJobSpec", "ValidationFailed", job("job", ttlSecondsAfterFinished=5)),
        "bad": Case("InvalidRayServiceSpec", "ValidationFailed", services["bad"]),
        "slow": Case("InitializingTimeout", "InitializingTimeout", services["slow"]),
        "pending": Case(
            "PreRunningDeadlineExceeded", "passed the preRunning", job("pending", late, preRunningDeadlineSeconds=4)
        ),
        "active": Case("DeadlineExceeded", "passed the activeDeadline", job("active", late, activeDeadlineSeconds=4)),
    }
    expect(namespace, cases)
    found = cause(gathered(namespace)["pending"])
    assert "ImageNotFound: Container image" in found.message
    assert "`image`" in found.next_step


def test_job_that_no_operator_sees_is_named_and_another_controller_s_is_not(namespace):
    kubectl.apply(job("queued", managedBy="kueue.x-k8s.io/multikueue"), namespace=namespace)
    seen = gathered(namespace)["queued"]
    late = replace(seen, now=seen.now + 2 * OPERATOR_S)
    assert cause(late) is None
    owner = {**late.owner, "spec": {}}
    assert cause(replace(late, owner=owner, now=seen.now)) is None
    assert cause(replace(late, owner=owner)).reason == "OperatorNotRunning"


APP = {
    "exits.py": "import sys; print('hello'); sys.exit(3)",
    "syntax.py": "print('a')\ndef f(:\n    pass\n",
    "long.py": "import threading; threading.Event().wait(300)",
    # Slowly: Ray looks at the memory four times a second, and where it comes too late the kernel kills without a word.
    "fills.py": """
import threading
import ray
@ray.remote(max_retries=0)
def fill():
    kept = []
    while True:
        kept.append(b"x" * 5_000_000)
        threading.Event().wait(0.04)
ray.get(fill.remote())
""",
}
SERVED = "applications: [{name: app, import_path: 'none:app', route_prefix: /}]"
RAY = {"image": layout.RAY_IMAGE, "command": ""}


def with_ray(namespace, head):
    """Return what is known of each job, with what Ray says of it once its head answers."""
    seen, told = gathered(namespace), {}
    with contextlib.suppress(ClusterError):
        told = {
            each["submission_id"]: each
            for each in json.loads(workloads.through_proxy(namespace, head, 8265, "/api/jobs/"))
        }
    jobs = {name: (each.owner.get("status") or {}).get("jobId") for name, each in seen.items()}
    return {name: replace(each, ray=told.get(jobs[name], {})) for name, each in seen.items()}


def undeployed(namespace, name):
    """Return why a service's application is not up: Serve's word, which its status has and the cause does not."""
    until(lambda: "DEPLOY_FAILED" in json.dumps(gathered(namespace)[name].owner), "KubeRay says so", 120)
    kube = Kube(namespace=namespace)
    until(lambda: servelook.status(kube, name).state == "FAILED", "its status says so", WITHIN_S)
    failure = servelook.status(kube, name).failure
    assert failure.reason == "DeployFailed"
    assert failure.next_step
    return failure


def test_ends_of_jobs_and_the_loss_of_their_head_are_named(namespace, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", kubectl.kubeconfig())
    head = template(**RAY, **mounted(configMap={"name": "app"}))
    head["spec"]["containers"][0]["resources"]["limits"]["memory"] = "2Gi"
    on = {"clusterSelector": {"ray.io/cluster": "ray"}}
    spec = {"serveConfigV2": SERVED, "rayClusterConfig": cluster(template(**RAY))}
    nowhere = {"runtimeEnvYAML": "working_dir: file:///none.zip", **on}
    late = {"entrypoint": "python /v/long.py", "activeDeadlineSeconds": 30, **on}
    cases = {
        "code": Case("EntrypointFailed", "exit code 3", job("code", entrypoint="python /v/exits.py", **on)),
        "syntax": Case("SyntaxError", "SyntaxError", job("syntax", entrypoint="python /v/syntax.py", **on)),
        "memory": Case("OutOfMemory", "out of memory", job("memory", entrypoint="python /v/fills.py", **on)),
        "nowhere": Case("RuntimeEnvSetupFailed", "runtime_env setup failed", job("nowhere", **nowhere)),
        "late": Case("DeadlineExceeded", "passed the activeDeadline", job("late", **late)),
    }
    long = job("long", entrypoint="python /v/long.py", **on)
    served = resource("RayService", "served", spec)
    code = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "app"}, "data": APP}
    look = functools.partial(with_ray, namespace, "ray-head-svc")
    ray = resource("RayCluster", "ray", cluster(head))
    expect(namespace, cases, code, ray, long, served, look=look, timeout_s=120)
    found = {name: cause(seen) for name, seen in look().items()}
    assert (found["code"].exit_code, found["code"].tail) == (3, ("hello",))
    assert "/v/syntax.py, line 2" in found["syntax"].message
    assert found["long"] is None
    assert "No module named 'none'" in undeployed(namespace, "served").message
    pod = next(each for each in workloads.pods(namespace, "head") if each["metadata"]["name"].startswith("ray-"))
    kubectl.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false", namespace=namespace)
    took = named_in_time({"long": Case("HeadLost", "deletionTimestamp", long)}, look, 20)
    assert took["long"] <= WITHIN_S
    until(lambda: cause(look()["long"]) is None, "the job runs again", 60)


PRETEND = "import ray, ray._private.utils as utils; {pretence}; from ray.scripts.scripts import main; main()"
STARTED = 'exec python -c "{code}" ${{KUBERAY_GEN_RAY_START_CMD#*ray }}'


def pretending(pretence):
    """Return a worker that takes itself for another version's."""
    code = PRETEND.format(pretence=pretence)
    last_words = {"terminationMessagePolicy": "FallbackToLogsOnError"}
    return template(layout.RAY_IMAGE, STARTED.format(code=code), last_words)


def test_causes_in_a_worker_s_pod_are_named(namespace):
    small = {"resources": {"requests": {"cpu": "10m"}, "limits": {"memory": "700Mi"}}}
    workers = {
        "oom": template(layout.RAY_IMAGE, "tail /dev/zero", small),
        "ray": pretending("ray.__version__ = '2.0.0'"),
        "python": pretending("utils.compute_version_info = lambda: (ray.__version__, '3.9.1')"),
        "stuck": template(layout.RAY_IMAGE),
    }
    house = resource("RayCluster", "house", cluster(template(**RAY), workers))

    def look():
        """Return the cluster as often as it has groups, each time with one of them."""
        seen = gathered(namespace).get("house", Observed())
        groups = {name: {"headgroup", name} for name in workers}
        return {
            name: replace(
                seen, pods=tuple(pod for pod in seen.pods if pod["metadata"]["labels"]["ray.io/group"] in both)
            )
            for name, both in groups.items()
        }

    cases = {
        "oom": Case("WorkerOOMKilled", "OOMKilled", house),
        "ray": Case("RayVersionMismatch", "Version mismatch", house),
        "python": Case("PythonVersionMismatch", "Version mismatch", house),
    }
    kubectl.apply(house, namespace=namespace)
    took = named_in_time(cases, look, 120)
    assert {name: each for name, each in took.items() if each > WITHIN_S} == {}
    stuck = look()["stuck"]
    assert cause(stuck) is None
    assert cause(replace(stuck, now=stuck.now + INCOMPLETE_S)).reason == "WorkerGroupIncomplete"
