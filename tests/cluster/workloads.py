"""Raw manifests, what becomes of them, and the ways to it through the API server."""

import importlib.metadata
import json
import string
import subprocess
from contextlib import contextmanager

import yaml

from tests.cluster import kubectl, layout
from tests.cluster.shell import ClusterError, until

#: A head takes all of it to end: for the tests' haste.
GRACE_S = 3
_ENDED = ("Complete", "Failed", "ValidationFailed")
_COMMON = {"RAY_IMAGE": layout.RAY_IMAGE, "SMALL_IMAGE": layout.SMALL_IMAGE}


def ray_version():
    """Return the version of Ray that this project pins, which is the image's too."""
    return importlib.metadata.version("ray")


def manifest(name, **values):
    """Return the text of ``manifests/NAME.yaml`` with images, versions and `values` in their places."""
    text = (layout.HERE / "manifests" / f"{name}.yaml").read_text()
    return string.Template(text).substitute({**_COMMON, "RAY_VERSION": ray_version(), **values})


def head_alone(*, storage=True):
    """Return the cluster of ``manifests/house.yaml`` as a head that does the work, with its volume or without."""
    made = yaml.safe_load(manifest("house"))
    del made["spec"]["workerGroupSpecs"]
    head = made["spec"]["headGroupSpec"]
    head["rayStartParams"] = {"num-cpus": "2"}
    pod = head["template"]["spec"]
    pod["terminationGracePeriodSeconds"] = GRACE_S
    if not storage:
        del made["metadata"]["annotations"], pod["volumes"], pod["containers"][0]["volumeMounts"]
    return made


def head_and_worker():
    """Return the cluster of ``manifests/house.yaml`` without its volume, with one worker of one CPU."""
    made = yaml.safe_load(manifest("house"))
    del made["metadata"]["annotations"]
    head, group = made["spec"]["headGroupSpec"], made["spec"]["workerGroupSpecs"][0]
    group |= {"replicas": 1, "minReplicas": 1, "maxReplicas": 1}
    for pod in (head["template"]["spec"], group["template"]["spec"]):
        pod["terminationGracePeriodSeconds"] = GRACE_S
        pod.pop("volumes", None)
        pod["containers"][0].pop("volumeMounts", None)
    return made


def finished_job(namespace, name, timeout_s=240):
    """Wait for a RayJob's success and return it; ClusterError with what is known of its failure."""

    def ended():
        found = kubectl.get("rayjob", name, namespace) or {}
        return found if found.get("status", {}).get("jobDeploymentStatus") in _ENDED else None

    found = until_or_explained(ended, f"RayJob {name} ended", namespace, timeout_s)
    status = found["status"]
    if (status["jobDeploymentStatus"], status.get("jobStatus")) != ("Complete", "SUCCEEDED"):
        told = {key: status.get(key) for key in ("jobDeploymentStatus", "jobStatus", "reason", "message")}
        raise ClusterError(f"RayJob {name}: {told}\n{explained(namespace)}")
    return found


def until_or_explained(fact, what, namespace, timeout_s):
    """Wait for a fact; where it does not come, say what the namespace's pods and events tell."""
    try:
        return until(fact, what, timeout_s)
    except ClusterError as error:
        raise ClusterError(f"{error}\n{explained(namespace)}") from error


def explained(namespace):
    """Return a namespace's pods and last events as text."""
    pods = kubectl.kubectl("get", "pods", "-o", "wide", namespace=namespace, check=False)
    words = ["get", "events", "--sort-by=.lastTimestamp", "-o", "custom-columns=AT:.lastTimestamp,MESSAGE:.message"]
    return f"{pods}\n{kubectl.kubectl(*words, namespace=namespace, check=False)[-3000:]}"


def pods(namespace, node_type=None):
    """Return the pods that are not being deleted, of one type (head, worker) if it is given."""
    selector = f"ray.io/node-type={node_type}" if node_type else ""
    found = kubectl.listed("pods", namespace, selector)
    return [each for each in found if "deletionTimestamp" not in each["metadata"]]


def ready_head(namespace, timeout_s=120):
    """Wait for a head pod that is ready, and return its name."""

    def found():
        return [each["metadata"]["name"] for each in pods(namespace, "head") if kubectl.ready(each)]

    return until_or_explained(found, "a head is ready", namespace, timeout_s)[0]


def running(namespace, name, timeout_s=60):
    """Wait until a pod runs and is ready."""
    fact = f"pod {name} is ready"
    until_or_explained(lambda: kubectl.ready(kubectl.get("pod", name, namespace)), fact, namespace, timeout_s)


def succeeded(namespace, name, timeout_s=120):
    """Wait until a pod ended well, and return what it printed."""

    def phase():
        found = kubectl.get("pod", name, namespace) or {"status": {}}
        return found["status"].get("phase") in ("Succeeded", "Failed") and found["status"]["phase"]

    ended = until_or_explained(phase, f"pod {name} ended", namespace, timeout_s)
    said = kubectl.kubectl("logs", name, namespace=namespace)
    if ended == "Failed":
        raise ClusterError(f"pod {name} failed: {said[-3000:]}")
    return said


def through_proxy(namespace, service, port, path):
    """Return what a service answers through the API server's proxy."""
    return kubectl.kubectl("get", "--raw", f"/api/v1/namespaces/{namespace}/services/{service}:{port}/proxy{path}")


def job_log(namespace, job):
    """Return what a RayJob's driver printed, from the dashboard."""
    status = job["status"]
    service = f"{status['rayClusterName']}-head-svc"
    return json.loads(through_proxy(namespace, service, "dashboard", f"/api/jobs/{status['jobId']}/logs"))["logs"]


@contextmanager
def port_forwarded(namespace, target, port):
    """Give a local port from which kubectl forwards to a pod's or service's."""
    words = ("port-forward", target, f":{port}")
    with kubectl.start(*words, namespace=namespace, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            if not line.startswith("Forwarding from 127.0.0.1:"):
                raise ClusterError(f"kubectl {' '.join(words)} ended: its words are above")
            yield int(line.split(" -> ")[0].rsplit(":", 1)[1])
        finally:
            process.terminate()


class Load:
    """Clients that ask a URL from a pod in the cluster, and what they got.

    Attributes:
        answers: how often each answer came, once the load has ended.
        failed: a line for each request that failed.
    """

    def __init__(self, namespace):
        self._namespace = namespace
        self.answers = {}
        self.failed = []

    def clients(self, count):
        """Have so many clients ask from now on; as many as at the start, at most."""
        words = ("sh", "-c", f"echo {count} > /tmp/next && mv /tmp/next /tmp/clients")
        kubectl.kubectl("exec", "load", "--", *words, namespace=self._namespace)

    def end(self):
        """End the clients, and keep what they got."""
        self.clients(0)
        found = json.loads(succeeded(self._namespace, "load").splitlines()[-1])
        self.answers, self.failed = found["answers"], found["failed"]


@contextmanager
def load(namespace, url, clients):
    """Have clients ask a URL for as long as the block runs."""
    kubectl.apply(manifest("load", URL=url, CLIENTS=clients), namespace=namespace)
    running(namespace, "load")
    asking = Load(namespace)
    yield asking
    asking.end()
