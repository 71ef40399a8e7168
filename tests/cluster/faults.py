"""What goes wrong in clusters, made to happen: each fault is one function, or a block that ends with it mended."""

import json
import re
import signal
from contextlib import contextmanager

from tests.cluster import components, layout, namespaces, operator, processes, workloads
from tests.cluster.kubectl import apply, get, kubectl, ready, wait_rollout
from tests.cluster.shell import ClusterError, run, until

GPU = "nvidia.com/gpu"
_DROP = ("inet", "raykube-test-drop")
_FILL = "raykube-fill"
#: A volume that is larger than this is a disk of the machine, and filling that would end more than the test.
_FILL_MAX_MB = 2048
_BACK_S = 60
#: Not every image has pgrep, and not every pgrep finds what busybox runs.
_PROCESSES = r"for at in /proc/[0-9]*; do echo ${at#/proc/} $(tr '\0' ' ' < $at/cmdline); done 2>/dev/null"


def delete_pod(namespace, pod, grace_s=1):
    """Delete a pod and wait until it, not only its name, is gone."""
    uid = _pod(namespace, pod)["metadata"]["uid"]
    kubectl("delete", "pod", pod, f"--grace-period={grace_s}", "--wait=false", namespace=namespace)

    def gone():
        found = get("pod", pod, namespace)
        return found is None or found["metadata"]["uid"] != uid

    until(gone, f"pod {pod} is gone", grace_s + _BACK_S)


def _pod(namespace, pod):
    if (found := get("pod", pod, namespace)) is None:
        raise ClusterError(f"there is no pod {pod} in {namespace}")
    return found


def kill_in_pod(namespace, pod, which, number=signal.SIGKILL, container=None):
    """Send a signal to processes in a pod, and return their ids there.

    Args:
        which: a process id, or a regular expression that command lines match. The container's first process is never
            meant by one: its command line may hold all the others', and the kernel keeps it from signals from inside.
    """
    within = ["exec", pod, *(["-c", container] if container else []), "--"]
    found = [which] if isinstance(which, int) else _matching(namespace, within, which)
    if not found:
        raise ClusterError(f"no process in {pod} matches {which!r}")
    kubectl(*within, "sh", "-c", f"kill -{int(number)} {' '.join(map(str, found))}", namespace=namespace)
    return found


def _matching(namespace, within, pattern):
    shown = kubectl(*within, "sh", "-c", _PROCESSES, namespace=namespace)
    found = (line.partition(" ") for line in shown.splitlines())
    return [int(pid) for pid, _, command in found if pid != "1" and re.search(pattern, command)]


def stop_api_server():
    """Kill the API server: no client, operator or kubelet reaches it until it is started again.

    Asked to end it would first see to its open requests, for up to a minute, in which it answers still.
    """
    processes.ask("signal", "kube-apiserver", signal.SIGKILL)
    until(lambda: processes.pid("kube-apiserver") is None, "kube-apiserver ended", _BACK_S)


def start_api_server():
    """Start the API server again and wait until the cluster works again.

    Those who watch it try again ever more rarely, up to half a minute apart: a pod that runs shows that all of them
    have found it.
    """
    processes.start_again("kube-apiserver")
    until(lambda: components.ready("kube-apiserver"), "kube-apiserver is ready", _BACK_S)
    with namespaces.fresh("after") as name:
        apply(workloads.manifest("sleeper", NAME="probe", LIMITS="{}"), namespace=name)
        workloads.running(name, "probe", 2 * _BACK_S)


@contextmanager
def api_server_down():
    """Have no API server for as long as the block runs."""
    stop_api_server()
    try:
        yield
    finally:
        start_api_server()


@contextmanager
def network_dropped(namespace, pod_a, pod_b):
    """Drop all packets between two pods, those of open connections too, for as long as the block runs.

    Pods are routed through the host, so its forward hook sees every packet between them, after service addresses
    were translated. Blocks may be nested.
    """
    first, second = (_pod(namespace, pod)["status"]["podIP"] for pod in (pod_a, pod_b))
    table, pairs = " ".join(_DROP), f"{{ {first} . {second}, {second} . {first} }}"
    _nft(
        f"add table {table}\n"
        f"add set {table} pairs {{ type ipv4_addr . ipv4_addr; }}\n"
        f"add chain {table} forward {{ type filter hook forward priority -10; policy accept; }}\n"
        f"flush chain {table} forward\n"
        f"add rule {table} forward ip saddr . ip daddr @pairs drop\n"
        f"add element {table} pairs {pairs}\n"
    )
    try:
        yield
    finally:
        _nft(f"delete element {table} pairs {pairs}\n")
        if not _dropped():
            _nft(f"delete table {table}\n")


def _nft(commands):
    run("nft", "-f", "-", stdin=commands.encode())


def _dropped():
    """Return the pairs of addresses between which packets are dropped."""
    shown = json.loads(run("nft", "-j", "list", "set", *_DROP, "pairs"))
    return next(item["set"].get("elem", []) for item in shown["nftables"] if "set" in item)


@contextmanager
def small_volume(namespace, claim, megabytes):
    """Offer a claim of a few megabytes, a file system in memory, so that it can be filled without harm."""
    name = f"small-{namespace}-{claim}"
    folder = layout.DATA / "volumes" / name
    folder.mkdir(parents=True)
    run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0777", name, folder)
    try:
        apply(*_small(namespace, claim, name, folder, f"{megabytes}Mi"))
        yield
    finally:
        kubectl("delete", "pvc", claim, "--ignore-not-found", "--wait=false", namespace=namespace)
        kubectl("delete", "pv", name, "--ignore-not-found", "--wait=false")
        run("umount", "--lazy", folder)
        folder.rmdir()


def _small(namespace, claim, name, folder, size):
    shared = {"storageClassName": "", "accessModes": ["ReadWriteMany"]}
    return (
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                **shared,
                "capacity": {"storage": size},
                "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": str(folder)},
                "claimRef": {"namespace": namespace, "name": claim},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": claim, "namespace": namespace},
            "spec": {**shared, "volumeName": name, "resources": {"requests": {"storage": size}}},
        },
    )


@contextmanager
def volume_full(namespace, pod, path):
    """Fill the volume that a pod has at `path` for as long as the block runs.

    Raises:
        ClusterError: it is so large that it is a disk of the machine: use ``small_volume``, or an emptyDir in memory.
    """
    within = ["exec", pod, "--"]
    free = int(kubectl(*within, "df", "-P", "-m", path, namespace=namespace).splitlines()[-1].split()[3])
    if free > _FILL_MAX_MB:
        raise ClusterError(f"{path} of {pod} has {free} MB: a disk of this machine, which is not filled")
    file = f"{path.rstrip('/')}/{_FILL}"
    try:
        kubectl(*within, "dd", "if=/dev/zero", f"of={file}", "bs=64k", namespace=namespace, check=False)
        yield
    finally:
        kubectl(*within, "rm", "-f", file, namespace=namespace, check=False)


def restart_operator():
    """Delete the operator's pod and wait until another one answers."""
    name = "kuberay-operator"
    labels = get("deployment", name, operator.NAMESPACE)["spec"]["selector"]["matchLabels"]
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    kubectl("delete", "pods", "-l", selector, "--grace-period=1", namespace=operator.NAMESPACE)
    wait_rollout(name, operator.NAMESPACE)


@contextmanager
def node_paused():
    """Have the kubelet stand still, so that the node is NotReady, for as long as the block runs."""
    processes.pause("kubelet")
    try:
        until(lambda: not _node_ready(), "the node is NotReady", _BACK_S)
        yield
    finally:
        processes.resume("kubelet")
        until(_node_ready, "the node is Ready again", _BACK_S)


def _node_ready():
    return ready(get("node", layout.NODE))


@contextmanager
def node_tainted(taint):
    """Have the node take only new pods that tolerate a taint, as in ``team=a:NoSchedule``, while the block runs."""
    kubectl("taint", "node", layout.NODE, taint)
    try:
        yield
    finally:
        kubectl("taint", "node", layout.NODE, f"{taint}-")


def offer_gpus(count):
    """Have the node offer GPUs that it does not have; a kubelet that is started again forgets them."""
    _offer(str(count))
    until(lambda: get("node", layout.NODE)["status"]["allocatable"].get(GPU) == str(count), "GPUs are offered", 30)


def withdraw_gpus():
    """Have the node offer no GPUs."""
    _offer(None)


def _offer(quantity):
    amounts = {GPU: quantity}
    patch = json.dumps({"status": {"capacity": amounts, "allocatable": amounts}})
    kubectl("patch", "node", layout.NODE, "--subresource=status", "--type=merge", f"-p={patch}")
