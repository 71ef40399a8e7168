"""The faults do what they say, and are mended afterwards."""

import signal

import pytest

from tests.cluster import faults, kubectl, layout, operator, workloads
from tests.cluster.shell import ClusterError, run, until

pytestmark = [pytest.mark.cluster, pytest.mark.rig, pytest.mark.usefixtures("own_cluster")]


def sleeper(namespace, name, **values):
    kubectl.apply(workloads.manifest("sleeper", NAME=name, **{"LIMITS": "{}", **values}), namespace=namespace)
    workloads.running(namespace, name)


def shell(namespace, pod, script, *, check=True):
    return kubectl.kubectl("exec", pod, "--", "sh", "-c", script, namespace=namespace, check=check).strip()


def test_deleted_pod_is_gone(namespace):
    sleeper(namespace, "one")
    faults.delete_pod(namespace, "one")
    assert kubectl.get("pod", "one", namespace) is None
    with pytest.raises(ClusterError, match="there is no pod one"):
        faults.delete_pod(namespace, "one")


def test_process_in_a_pod_is_killed_and_the_pod_lives(namespace):
    sleeper(namespace, "one")
    shell(namespace, "one", "sleep 555 >/dev/null 2>&1 &")
    (killed,) = faults.kill_in_pod(namespace, "one", "sleep 555", signal.SIGTERM)
    # Nobody reaps it there, but what is dead has no command line.
    until(lambda: not shell(namespace, "one", f"cat /proc/{killed}/cmdline", check=False), "it is dead", 10)
    assert kubectl.ready(kubectl.get("pod", "one", namespace))
    with pytest.raises(ClusterError, match="no process in one matches"):
        faults.kill_in_pod(namespace, "one", "sleep 555")


def test_api_server_is_down_and_comes_back():
    with faults.api_server_down(), pytest.raises(ClusterError, match="refused"):
        kubectl.get("node", layout.NODE)
    assert kubectl.get("node", layout.NODE)


def test_packets_between_two_pods_are_dropped_and_a_third_goes_on(namespace):
    for name in ("one", "two", "three"):
        sleeper(namespace, name)
    address = kubectl.get("pod", "two", namespace)["status"]["podIP"]

    def reaches(pod):
        """Return whether the other one's kernel answers, if only that nobody listens there."""
        return "refused" in shell(namespace, pod, f"nc -w 1 {address} 9 2>&1 </dev/null", check=False)

    assert reaches("one")
    with faults.network_dropped(namespace, "one", "two"):
        assert not reaches("one")
        assert reaches("three")
        with faults.network_dropped(namespace, "three", "two"):
            assert not reaches("three")
        assert reaches("three")
        assert not reaches("one")
    assert reaches("one")
    assert faults._DROP[1] not in run("nft", "list", "tables")


def test_full_volume_takes_nothing_until_it_is_mended(namespace):
    with faults.small_volume(namespace, "shared", 8):
        kubectl.apply(workloads.manifest("claimer", NAME="claimer"), namespace=namespace)
        workloads.running(namespace, "claimer")
        full = faults.volume_full(namespace, "claimer", "/shared")
        with full, pytest.raises(ClusterError, match=r"No space left|I/O error"):
            shell(namespace, "claimer", "head -c 100000 /dev/zero > /shared/more")
        shell(namespace, "claimer", "head -c 100000 /dev/zero > /shared/more")
        with pytest.raises(ClusterError, match="a disk of this machine"), faults.volume_full(namespace, "claimer", "/"):
            pass
        faults.delete_pod(namespace, "claimer")
    assert not (layout.DATA / "volumes" / f"small-{namespace}-shared").exists()


def test_operator_is_another_pod_after_its_restart():
    def pods():
        return {pod["metadata"]["uid"] for pod in workloads.pods(operator.NAMESPACE)}

    before = pods()
    faults.restart_operator()
    assert pods().isdisjoint(before)


def test_gpus_outlast_the_kubelets_heartbeats():
    def offered():
        status = kubectl.get("node", layout.NODE)["status"]
        return status["capacity"].get(faults.GPU), status["allocatable"].get(faults.GPU)

    def heartbeat():
        conditions = kubectl.get("node", layout.NODE)["status"]["conditions"]
        return next(each["lastHeartbeatTime"] for each in conditions if each["type"] == "Ready")

    faults.offer_gpus(8)
    before = heartbeat()
    kubectl.kubectl("annotate", "node", layout.NODE, "raykube-test/touched=yes", "--overwrite")
    until(lambda: heartbeat() != before, "the kubelet wrote its status", 90)
    assert offered() == ("8", "8")
    faults.withdraw_gpus()
    assert offered() == (None, None)
