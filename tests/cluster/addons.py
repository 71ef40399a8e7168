"""What more a cluster can have: a queue for jobs, a gateway, nodes that do not exist, buckets, enforced policies."""

import json
import urllib.error
import urllib.request
from contextlib import contextmanager

from tests.cluster import binaries, bucket, images, layout, metrics, policies, processes, workloads
from tests.cluster.kubectl import apply, deleted, kubectl, kustomized, listed, ready, wait_rollout
from tests.cluster.shell import ClusterError, step, until, write

NAMES = ("kueue", "gateway", "kwok", "metrics", "bucket", "policies")
GATEWAY_CLASS = "raykube-test"
GATEWAY = f"http://{layout.NODE_ADDRESS}"

_KUEUE = "kueue-system"
_KUEUE_IMAGE = "raykube-test/kueue:local"
_KWOK_HEALTH = "127.0.0.1:10247"
_KWOK_LABEL = "type=kwok"
#: How fake nodes and pods come to live: at once.
_STAGES = ("node/fast", "node/heartbeat-with-lease", "pod/fast")
_READY_S = 60


def start(name):
    """Start an add-on, or what of it is missing, and return when it answers."""
    starts = {
        "kueue": _start_kueue,
        "gateway": _start_gateway,
        "kwok": _start_kwok,
        "metrics": metrics.start,
        "bucket": _start_bucket,
        "policies": _start_policies,
    }
    folder = binaries.build(name)
    with step(f"start add-on {name}"):
        starts[name](folder)


def _start_kueue(folder):
    """Install Kueue from its own manifests, in a pod, for the API server calls it back through its Service."""
    images.load([images.scratch("kueue", folder / "kueue", "/manager", "65532:65532")])
    objects = _kueue()
    first = ("Namespace", "CustomResourceDefinition")
    apply(*(each for each in objects if each["kind"] in first))
    apply(*(each for each in objects if each["kind"] not in first))
    wait_rollout("kueue-controller-manager", _KUEUE)
    # While an aggregated API does not answer no namespace can be deleted.
    kubectl("wait", "apiservice", *_named(objects, "APIService"), "--for=condition=Available", f"--timeout={_READY_S}s")
    flavor = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ResourceFlavor", "metadata": {"name": "any"}}
    until(lambda: _applied(flavor, "webhook"), "Kueue's webhooks answer", _READY_S)


def _applied(item, not_yet):
    """Apply an object and return whether it could be; what is `not_yet` there is waited for."""
    try:
        apply(item)
    except ClusterError as error:
        if not_yet not in str(error):
            raise
        return False
    return True


def _kueue():
    """Return Kueue's manifests with our image."""
    source = binaries.source_of("kueue", "sigs.k8s.io/kueue") / "config" / "default"
    objects = kustomized(source)
    for item in objects:
        if item["kind"] == "Deployment":
            container = item["spec"]["template"]["spec"]["containers"][0]
            container |= {"image": _KUEUE_IMAGE, "imagePullPolicy": "Never"}
            container["resources"] = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}}
            container["readinessProbe"] |= {"initialDelaySeconds": 1, "periodSeconds": 1}
    return objects


def stop_kueue():
    """Take Kueue away again: its webhooks would see, and delay, every job of tests that know nothing of it."""
    objects = _kueue()
    kubectl("delete", "apiservice", *_named(objects, "APIService"), "--ignore-not-found")
    definitions = _named(objects, "CustomResourceDefinition")
    kubectl("delete", "resourceflavors.kueue.x-k8s.io", "--all", "--timeout=30s", check=False)
    kubectl("delete", "crd", *definitions, "--ignore-not-found", "--timeout=60s")
    kinds = "mutatingwebhookconfigurations,validatingwebhookconfigurations"
    kubectl("delete", kinds, "-l", "app.kubernetes.io/name=kueue")
    deleted("namespace", _KUEUE)


def _named(objects, kind):
    return [each["metadata"]["name"] for each in objects if each["kind"] == kind]


@contextmanager
def queue(namespace, *, cpu, memory):
    """Give a namespace a queue, named `queue`, with room for so much, for as long as the block runs."""
    apply(workloads.manifest("queue", NAMESPACE=namespace, CPU=cpu, MEMORY=memory))
    try:
        yield "queue"
    finally:
        kubectl("delete", "rayjobs", "--all", namespace=namespace)
        deleted("localqueue", "queue", namespace)
        deleted("clusterqueue", namespace)


def _start_gateway(folder):
    """Run Traefik as a process of the host, which reaches pods as they reach each other."""
    source = binaries.source_of("gateway", "sigs.k8s.io/gateway-api") / "config" / "crd" / "standard"
    gateway_class = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "GatewayClass",
        "metadata": {"name": GATEWAY_CLASS},
        "spec": {"controllerName": "traefik.io/gateway-controller"},
    }
    apply(*(path.read_text() for path in sorted(source.glob("gateway.*.yaml"))))
    until(lambda: _applied(gateway_class, "no matches for kind"), "the API server knows gateway classes", _READY_S)
    processes.launch("traefik", [folder / "traefik", *_traefik()])
    until(
        lambda: _answers(f"{GATEWAY}/ping"), "traefik answers; its log: python -m tests.cluster logs traefik", _READY_S
    )


def _traefik():
    token = layout.CONF / "traefik.token"
    token.touch(mode=0o600)
    write(token, json.loads(layout.KUBECONFIG.read_text())["users"][0]["user"]["token"])
    provider = "--providers.kubernetesgateway"
    return [
        f"{provider}.endpoint={layout.API}",
        f"{provider}.token={token}",
        f"{provider}.certauthfilepath={layout.PKI / 'ca.crt'}",
        # Without an address in a Gateway's status KubeRay never makes the route.
        f"{provider}.statusaddress.ip={layout.NODE_ADDRESS}",
        f"--entrypoints.web.address={layout.NODE_ADDRESS}:80",
        "--ping=true",
        "--ping.entrypoint=web",
        "--global.checknewversion=false",
        "--global.sendanonymoususage=false",
    ]


def _start_kwok(folder):
    stages = binaries.source_of("kwok", "sigs.k8s.io/kwok") / "kustomize" / "stage"
    files = (path for folder in _STAGES for path in sorted((stages / folder).glob("*.yaml")))
    words = [
        *(f"--config={path}" for path in files if path.name != "kustomization.yaml"),
        f"--kubeconfig={layout.KUBECONFIG}",
        "--manage-all-nodes=false",
        f"--manage-nodes-with-label-selector={_KWOK_LABEL}",
        # The controller manager gives a node up after 20 s; the lease is renewed four times as often.
        "--node-lease-duration-seconds=20",
        f"--server-address={_KWOK_HEALTH}",
        "--cidr=10.245.0.0/16",
        "--node-ip=10.246.0.1",
    ]
    processes.launch("kwok", [folder / "kwok", *words])
    _wait("kwok", lambda: _answers(f"http://{_KWOK_HEALTH}/healthz"))


def _start_bucket(folder):
    processes.launch("versitygw", [folder / "versitygw", *bucket.words()])
    _wait("versitygw", lambda: _answers(bucket.URL + bucket.HEALTH))


def _start_policies(folder):
    processes.launch("kube-router", [folder / "kube-router", *policies.words()])
    _wait("kube-router", policies.enforced)


def _wait(name, fact):
    """Wait for the fact that shows that a process of an add-on works; ClusterError if it ended instead."""

    def works():
        if end := processes.dead().get(name):
            raise ClusterError(f"{name} ended ({end}); why: python -m tests.cluster logs {name}")
        return fact()

    until(works, f"{name} works; its log: python -m tests.cluster logs {name}", _READY_S)


def _answers(url):
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


@contextmanager
def fake_nodes(count, *, cpu="32", memory="256Gi", gpus=8):
    """Have so many nodes that do not exist, each Ready, for as long as the block runs.

    What tolerates their taint and selects them runs there at once, and does nothing.
    """
    offer = {"cpu": cpu, "memory": memory, "pods": "110", "nvidia.com/gpu": str(gpus)}
    items = [_fake_node(f"fake-{number:03}", offer) for number in range(count)]
    try:
        # Not applied: from there the server takes no status.
        kubectl("create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        until(lambda: _ready_fakes() == count, f"{count} fake nodes are Ready", _READY_S)
        yield
    finally:
        kubectl("delete", "nodes", "-l", _KWOK_LABEL)


def _ready_fakes():
    return sum(ready(node) for node in listed("nodes", selector=_KWOK_LABEL))


def _fake_node(name, offer):
    labels = {
        "type": "kwok",
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels, "annotations": {"kwok.x-k8s.io/node": "fake"}},
        "spec": {"taints": [{"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}]},
        "status": {"allocatable": offer, "capacity": offer},
    }
