"""Up, down and status of the whole: in the order in which the parts need each other, and healing what is half there."""

import fcntl
import hashlib
import json
import os
from contextlib import contextmanager
from pathlib import Path

from tests.cluster import (
    addons,
    binaries,
    certificates,
    components,
    images,
    kubectl,
    layout,
    node,
    operator,
    policies,
    processes,
)
from tests.cluster.shell import ClusterError, step, until, write

STATE = layout.RUN / "state.json"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_READY_S = 60


@contextmanager
def alone():
    """Hold the machine's one lock: of two at once the second waits, and finds it done."""
    with layout.LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with step("wait for another up or down of this cluster"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def up(with_addons=()):
    """Bring the cluster up, or what of it is missing; return when its operator answers.

    Raises:
        ClusterError: this machine cannot, or a part did not come up; with every reason.
    """
    if found := problems():
        raise ClusterError("this machine cannot run the test cluster:\n" + "\n".join(f"- {each}" for each in found))
    with alone():
        if _stale():
            with step("clear away what an earlier cluster left"):
                _clear()
        for name in ("kubernetes", "coredns", "pause", "kuberay"):
            binaries.build(name)
        _control_plane()
        _node()
        _inside()
        for name in with_addons:
            addons.start(name)


def problems():
    """Return why this machine cannot run the cluster; empty if it can."""
    made = (layout.CONTAINERD / "io.containerd.metadata.v1.bolt").exists()
    return list(dict.fromkeys([*node.problems(), *([] if made else images.problems())]))


def _stale():
    """Return whether something is there that this cluster cannot go on from."""
    state = _state()
    if state and state["cache"] != str(layout.CACHE):
        raise ClusterError(f"a cluster with the cache {state['cache']} is there: take that one down first")
    left = processes.belonging() or layout.RUN.exists()
    return bool(left) and not (state == _expected() and processes.alive())


def _state():
    return json.loads(STATE.read_text()) if STATE.exists() else {}


def _expected():
    return {"boot": _BOOT.read_text().strip(), "cache": str(layout.CACHE), "inputs": inputs()}


def inputs():
    """Return a hash of what a running cluster was made of: another one needs a new cluster."""
    found = hashlib.sha256()
    for name in ("kubernetes", "coredns"):
        found.update(binaries.digest(binaries.MODULES[name]).encode())
    for path in ("components.py", "node.py", "certificates.py", "layout.py", "supervisor.py"):
        found.update((layout.HERE / path).read_bytes())
    return found.hexdigest()[:12]


def _control_plane():
    if not processes.belonging():
        with step("make certificates and configuration"):
            certificates.make()
            node.prepare()
            write(STATE, _expected())
            processes.supervise()
    with step("start the control plane"):
        _start(components.CONTROL_PLANE)


def _start(names):
    for name in names:
        processes.launch(name, components.argv(name))
        until(lambda name=name: _ready(name), f"{name} is ready; its log: {layout.LOGS}/{name}.log", _READY_S)


def _ready(name):
    """Return whether a component answers; ClusterError with its last words if it ended."""
    if end := processes.dead().get(name):
        raise ClusterError(f"{name} ended ({end}); the end of its log:\n{log(name, 15)}")
    return components.ready(name)


def log(name, lines=50):
    """Return the last lines of a component's log."""
    path = layout.LOGS / f"{name}.log"
    if not path.exists():
        known = ", ".join(sorted(each.stem for each in layout.LOGS.glob("*.log")))
        raise ClusterError(f"no log of {name!r}; there are: {known or 'none, the cluster is not up'}")
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def _node():
    with step("start containerd"):
        _start(components.NODE[:1])
    images.load(images.ALL)
    with step("start the node"):
        _start(components.NODE[1:])
        until(lambda: kubectl.ready(kubectl.get("node", layout.NODE)), "the node is Ready", _READY_S)


def _inside():
    with step("install KubeRay's operator and volumes"):
        operator.install()
        operator.volumes()
    with step("wait for the operator"):
        operator.wait()
    with step("install MLflow"):  # last, because its start takes both cores, and nobody waits for it
        operator.mlflow()


def down():
    """End everything and take away what it left; images and binaries stay for the next time."""
    with alone(), step("end the cluster"):
        _clear()


def _clear():
    processes.end_all()
    node.clean()
    policies.clean()


def status():
    """Return ``(name, what it does)`` of every part; ClusterError if there is no cluster."""
    rows = [(name, f"pid {each['pid']}" if each["pid"] else f"ended: {each['end']}") for name, each in _components()]
    if (own := kubectl.get("node", layout.NODE)) is None:
        return [*rows, ("node", "not registered")]
    ready = "Ready" if kubectl.ready(own) else "NotReady"
    found = kubectl.get("deployment", "kuberay-operator", operator.NAMESPACE)
    answers = "Available" if kubectl.ready(found, "Available") else "not available"
    return [*rows, ("node", ready), ("operator", answers)]


def _components():
    return sorted(processes.status().items())


def environment():
    """Return what a shell needs to talk to the cluster."""
    path = f"{binaries.program('kubectl').parent}:{os.environ['PATH']}"
    return {"KUBECONFIG": str(layout.KUBECONFIG), "PATH": path}
