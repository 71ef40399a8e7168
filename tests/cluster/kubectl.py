"""Kubernetes by the hand of kubectl: what the tests and the cluster's own installation need of it."""

import json
import os
import subprocess

import yaml

from tests.cluster import binaries, layout
from tests.cluster.shell import ClusterError, run, until, write

#: Names another cluster to test on.
OTHER = "RAYKUBE_TEST_KUBECONFIG"
_FIELD_MANAGER = "raykube-test"


def is_other():
    """Return whether it is another cluster than this machine's own."""
    return bool(os.environ.get(OTHER))


def kubeconfig():
    """Return the kubeconfig of the cluster under test: the named one, or that of this machine's own."""
    return os.environ.get(OTHER) or str(layout.KUBECONFIG)


def command():
    """Return kubectl's path, or its name where another cluster is used."""
    return "kubectl" if is_other() else str(binaries.program("kubectl"))


def kubectl(*words, stdin=None, namespace=None, config=None, check=True, timeout_s=120):
    """Run kubectl and return what it printed; ClusterError with the server's words if it fails."""
    where = ["-n", namespace] if namespace else []
    text = stdin.encode() if isinstance(stdin, str) else stdin
    argv = [command(), "--kubeconfig", config or kubeconfig(), *where, *words]
    return run(*argv, stdin=text, check=check, timeout_s=timeout_s)


def start(*words, namespace=None, **popen):
    """Start kubectl beside the test, as for ``port-forward`` or ``logs -f``, and return the process."""
    where = ["-n", namespace] if namespace else []
    return subprocess.Popen([command(), "--kubeconfig", kubeconfig(), *where, *words], **popen)


def apply(*objects, namespace=None, **options):
    """Apply objects (dicts), or YAML text, from the server's side."""
    # JSON is YAML, and written and read in a tenth of the time.
    text = "\n---\n".join(item if isinstance(item, str) else json.dumps(item) for item in objects)
    words = ["apply", "--server-side", "--force-conflicts", f"--field-manager={_FIELD_MANAGER}", "-f", "-"]
    return kubectl(*words, stdin=text, namespace=namespace, **options)


def kustomized(source):
    """Return the objects that a folder of Go's module cache describes; kept, because that never changes."""
    kept = layout.CACHE / "manifests" / f"{str(source).strip('/').replace('/', '_')}.json"
    if not kept.exists():
        text = kubectl("kustomize", str(source))
        write(kept, [each for each in yaml.load_all(text, Loader=yaml.CSafeLoader) if each])
    return json.loads(kept.read_text())


def get(kind, name, namespace=None):
    """Return one object as a dict, or None if it is not there."""
    text = kubectl("get", kind, name, "-o", "json", "--ignore-not-found", namespace=namespace)
    return json.loads(text) if text.strip() else None


def listed(kind, namespace=None, selector=""):
    """Return the objects of a kind."""
    words = ["-l", selector] if selector else []
    return json.loads(kubectl("get", kind, "-o", "json", *words, namespace=namespace))["items"]


def ready(condition_of, kind="Ready"):
    """Return whether an object's condition `kind` is true."""
    conditions = ((condition_of or {}).get("status") or {}).get("conditions") or []
    return any(each["type"] == kind and each["status"] == "True" for each in conditions)


def wait_rollout(deployment, namespace, timeout_s=180):
    """Wait until all replicas of a deployment are available; ClusterError with its pods' reasons if not."""
    try:
        kubectl("rollout", "status", f"deployment/{deployment}", f"--timeout={timeout_s}s", namespace=namespace)
    except ClusterError as error:
        pods = kubectl("get", "pods", "-o", "wide", namespace=namespace, check=False)
        events = kubectl("get", "events", "--sort-by=.lastTimestamp", namespace=namespace, check=False)
        raise ClusterError(f"{error}\n{pods}\n{events[-2000:]}") from error


def deleted(kind, name, namespace=None, timeout_s=120):
    """Delete an object and wait until it is gone."""
    kubectl("delete", kind, name, "--ignore-not-found", "--wait=false", namespace=namespace)
    until(lambda: get(kind, name, namespace) is None, f"{kind} {name} is gone", timeout_s)
