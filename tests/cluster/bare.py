"""A second API server, without KubeRay: for what happens where that is missing, does not run or is too old.

It keeps what it holds beside the cluster's in the same etcd, and has its certificates and users. Nothing works on what
is created there: no controller, no scheduler, no node.
"""

import secrets
import subprocess
from contextlib import contextmanager

import yaml

from tests.cluster import binaries, components, kubectl, layout
from tests.cluster.shell import until, write

_PORT = 6444
_READY_S = 60


@contextmanager
def api_server():
    """Give the path of an administrator's kubeconfig for a fresh server, which has ended afterwards."""
    kubeconfig = _kubeconfig()
    log = layout.LOGS / "bare-apiserver.log"
    with log.open("ab") as output:
        server = subprocess.Popen(_argv(), stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        fact = f"the second API server has its default namespace; its log: {log}"
        until(lambda: _has_namespace(kubeconfig), fact, _READY_S)
        yield kubeconfig
    finally:
        server.kill()  # asked to end, it would first wait for open watches
        server.wait()


def _argv():
    changed = {"--secure-port": _PORT, "--etcd-prefix": f"/bare-{secrets.token_hex(3)}"}
    kept = [word for word in components.argv("kube-apiserver") if word.partition("=")[0] not in changed]
    return [*kept, *(f"{key}={value}" for key, value in changed.items())]


def _kubeconfig():
    config = yaml.safe_load(layout.KUBECONFIG.read_text())
    config["clusters"][0]["cluster"]["server"] = f"https://{layout.NODE_ADDRESS}:{_PORT}"
    path = layout.CONF / "bare.kubeconfig"
    path.touch(mode=0o600)
    return write(path, config)


def _has_namespace(kubeconfig):
    return kubectl.kubectl("get", "namespace", "default", "--ignore-not-found", config=kubeconfig, check=False)


def define(kubeconfig, module):
    """Install the definitions of KubeRay as a module of ``go/`` has them, over others; no operator."""
    source = binaries.source_of(module, "github.com/ray-project/kuberay/ray-operator") / "config" / "crd"
    made = kubectl.kustomized(source)
    kubectl.apply(*made, config=kubeconfig)
    kinds = ("rayjobs", "rayclusters", "rayservices")
    until(lambda: _all_in(kinds, kubeconfig, "/apis/ray.io/v1"), f"{kinds} are served", _READY_S)
    # Where others were there before, they are served at once, and with their new fields a moment later.
    fields = {each for item in made if item["spec"]["names"]["plural"] in kinds for each in _fields(item)}
    until(lambda: _all_in(fields, kubeconfig, "/openapi/v3/apis/ray.io/v1"), "all fields are served", _READY_S)


def _fields(definition):
    """Return what the `spec` of a kind may have."""
    (version,) = (each for each in definition["spec"]["versions"] if each["name"] == "v1")
    return version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]


def _all_in(words, kubeconfig, path):
    served = kubectl.kubectl("get", "--raw", path, config=kubeconfig, check=False)
    return all(f'"{word}"' in served for word in words)
