"""The command line of every component, and how one sees that it is ready."""

import json
import socket
import urllib.error
import urllib.request
from ssl import create_default_context

from tests.cluster import binaries, layout
from tests.cluster.node import CONTAINERD_SOCKET

_PKI = layout.PKI
#: In the order of their start; those of a group need the group before.
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
NODE = ("containerd", "kubelet", "kube-proxy", "coredns")


def argv(name):
    """Return the command line of a component."""
    return [_program(name), *_ARGUMENTS[name]()]


def _program(name):
    return "containerd" if name == "containerd" else str(binaries.program(name))


def _etcd():
    client = f"http://127.0.0.1:{layout.ETCD_PORT}"
    peer = f"http://127.0.0.1:{layout.ETCD_PORT + 1}"
    return [
        f"--data-dir={layout.DATA / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        # What a test cluster holds need not outlive a power failure, and a disk that syncs slowly slows every test.
        "--unsafe-no-fsync",
        "--log-level=warn",
        f"--log-outputs={layout.LOGS / 'etcd.log'}",
    ]


def _apiserver():
    return [
        f"--bind-address={layout.NODE_ADDRESS}",
        f"--advertise-address={layout.NODE_ADDRESS}",
        f"--secure-port={layout.API_PORT}",
        f"--etcd-servers=http://127.0.0.1:{layout.ETCD_PORT}",
        f"--service-cluster-ip-range={layout.SERVICES}",
        f"--client-ca-file={_PKI / 'ca.crt'}",
        f"--tls-cert-file={_PKI / 'apiserver.crt'}",
        f"--tls-private-key-file={_PKI / 'apiserver.key'}",
        f"--kubelet-client-certificate={_PKI / 'apiserver-kubelet-client.crt'}",
        f"--kubelet-client-key={_PKI / 'apiserver-kubelet-client.key'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--proxy-client-cert-file={_PKI / 'front-proxy-client.crt'}",
        f"--proxy-client-key-file={_PKI / 'front-proxy-client.key'}",
        f"--requestheader-client-ca-file={_PKI / 'front-proxy-ca.crt'}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-username-headers=X-Remote-User",
        f"--service-account-key-file={_PKI / 'service-account.pub'}",
        f"--service-account-signing-key-file={_PKI / 'service-account.key'}",
        f"--service-account-issuer={layout.API}",
        f"--token-auth-file={_PKI / 'tokens.csv'}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--enable-aggregator-routing=true",
        "--profiling=false",
    ]


def _controller_manager():
    kubeconfig = layout.CONF / "kube-controller-manager.kubeconfig"
    return [
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--bind-address=127.0.0.1",
        f"--root-ca-file={_PKI / 'ca.crt'}",
        f"--service-account-private-key-file={_PKI / 'service-account.key'}",
        f"--cluster-signing-cert-file={_PKI / 'ca.crt'}",
        f"--cluster-signing-key-file={_PKI / 'ca.key'}",
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        # So that a test of a node that is gone need not wait for a minute.
        "--node-monitor-grace-period=20s",
    ]


def _scheduler():
    kubeconfig = layout.CONF / "kube-scheduler.kubeconfig"
    return [
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
    ]


def _kubelet():
    return [
        f"--config={layout.CONF / 'kubelet.json'}",
        f"--kubeconfig={layout.CONF / 'kubelet.kubeconfig'}",
        f"--root-dir={layout.DATA / 'kubelet'}",
        f"--cert-dir={layout.DATA / 'kubelet-pki'}",
        f"--hostname-override={layout.NODE}",
        f"--node-ip={layout.NODE_ADDRESS}",
    ]


_ARGUMENTS = {
    "etcd": _etcd,
    "kube-apiserver": _apiserver,
    "kube-controller-manager": _controller_manager,
    "kube-scheduler": _scheduler,
    "containerd": lambda: ["--config", layout.CONF / "containerd.toml"],
    "kubelet": _kubelet,
    "kube-proxy": lambda: [f"--config={layout.CONF / 'kube-proxy.json'}"],
    "coredns": lambda: ["-conf", layout.CONF / "Corefile"],
}


def ready(name):
    """Return whether a component answers."""
    if name == "containerd":
        return _listens(CONTAINERD_SOCKET)
    return _answers(_HEALTH[name])


def _listens(path):
    """Return whether someone listens on a socket: one that was killed leaves its socket behind."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


_HEALTH = {
    "etcd": f"http://127.0.0.1:{layout.ETCD_PORT}/health",
    "kube-apiserver": f"{layout.API}/readyz",
    "kube-controller-manager": "https://127.0.0.1:10257/healthz",
    "kube-scheduler": "https://127.0.0.1:10259/healthz",
    "kubelet": "http://127.0.0.1:10248/healthz",
    "kube-proxy": "http://127.0.0.1:10256/livez",
    "coredns": "http://127.0.0.1:18181/ready",
}


def _answers(url):
    context = create_default_context()
    context.check_hostname = False
    context.verify_mode = 0  # a health check of a process on this machine, with no credentials
    request = urllib.request.Request(url)
    if url.startswith(layout.API):
        request.add_header("Authorization", f"Bearer {_admin_token()}")
    try:
        with urllib.request.urlopen(request, timeout=2, context=context if url.startswith("https") else None):
            return True
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def _admin_token():
    return json.loads(layout.KUBECONFIG.read_text())["users"][0]["user"]["token"]
