"""The add-on that tells what pods use: metrics-server, read from the kubelet."""

from tests.cluster import binaries, images, kubectl
from tests.cluster.shell import until

NAMESPACE = "kube-system"
IMAGE = "raykube-test/metrics-server:local"
_READY_S = 60


def start(folder):
    """Install metrics-server from its own manifests, and wait until it has seen the node."""
    images.load([images.scratch("metrics-server", folder / "metrics-server", "/metrics-server", "1000:1000")])
    kubectl.apply(*(_ours(each) for each in _objects()), namespace=NAMESPACE)
    kubectl.wait_rollout("metrics-server", NAMESPACE)
    until(lambda: usage("nodes", "") != "", "metrics-server has seen the node", _READY_S)


def usage(kind, namespace):
    """Return what ``kubectl top`` says; nothing while nothing was measured."""
    return kubectl.kubectl("top", kind, "--no-headers", namespace=namespace, check=False).strip()


def stop():
    """Take its API away first: while nobody answers for it, no namespace can be deleted."""
    kubectl.deleted("apiservice", "v1beta1.metrics.k8s.io")
    kubectl.deleted("deployment", "metrics-server", NAMESPACE)


def _objects():
    return kubectl.kustomized(binaries.source_of("metrics", "sigs.k8s.io/metrics-server") / "manifests" / "base")


def _ours(item):
    if item["kind"] == "Deployment":
        container = item["spec"]["template"]["spec"]["containers"][0]
        container |= {"image": IMAGE, "imagePullPolicy": "Never"}
        # The kubelet of this node signs its own certificate.
        container["args"] += ["--kubelet-insecure-tls"]
        container["readinessProbe"] |= {"initialDelaySeconds": 1, "periodSeconds": 1}
        container["resources"] = {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}}
    # Those for system:auth-delegator and the API service have namespaces of their own.
    return item
