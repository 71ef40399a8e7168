"""The cluster itself: it comes up twice, heals, and leaves nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.cluster import binaries, kubectl, layout, machine, operator, processes
from tests.cluster.shell import ClusterError, until
from tests.cluster.supervisor import PID_FILE

pytestmark = [pytest.mark.cluster, pytest.mark.rig]


def traces():
    """Return what a cluster could leave on this machine."""
    links = {path.name for path in Path("/sys/class/net").iterdir()}
    mounts = {line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()}
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    spaces = {path.name for path in Path("/var/run/netns").glob("*")}
    cgroups = {str(path) for path in Path("/sys/fs/cgroup").glob("**/kubepods*")}
    return {"links": links, "mounts": mounts, "tables": tables, "namespaces": spaces, "cgroups": cgroups}


def cluster_programs():
    names = processes.COMPONENTS | {"pause", "manager"}
    found = [each for each in psutil.process_iter(["name", "status"]) if each.info["name"] in names]
    return {each.pid for each in found if each.info["status"] != psutil.STATUS_ZOMBIE}


@pytest.mark.usefixtures("own_cluster")
def test_down_leaves_nothing_and_up_takes_half_a_minute():
    machine.down()
    before, running = traces(), cluster_programs()
    machine.up(["policies"])
    assert kubectl.listed("rayclusters", "default") == []
    assert traces() != before
    machine.down()
    assert traces() == before
    assert cluster_programs() == running
    assert not layout.RUN.exists()
    machine.up()


@pytest.mark.usefixtures("own_cluster")
def test_second_up_at_once_waits_and_finds_it_done():
    command = [sys.executable, "-m", "tests.cluster", "up"]
    both = [subprocess.Popen(command, cwd=layout.PROJECT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [each.communicate(timeout=120) and each.returncode for each in both] == [0, 0]
    assert processes.dead() == {}


@pytest.mark.usefixtures("own_cluster")
@pytest.mark.parametrize("name", ["etcd", "kube-apiserver", "kubelet", "containerd", "kube-proxy", "coredns"])
def test_killed_component_is_named_and_up_starts_it_again(name):
    pid = processes.pid(name)
    os.kill(pid, signal.SIGKILL)
    until(processes.dead, f"{name} is known to be dead", 5)
    assert processes.dead() == {name: "signal SIGKILL"}
    machine.up()
    assert processes.dead() == {}
    assert processes.pid(name) != pid
    assert kubectl.ready(kubectl.get("deployment", "kuberay-operator", operator.NAMESPACE), "Available")


@pytest.mark.usefixtures("own_cluster")
def test_killed_supervisor_is_survived_by_a_new_cluster():
    os.kill(int(PID_FILE.read_text()), signal.SIGKILL)
    until(lambda: not processes.alive(), "the supervisor is gone", 5)
    machine.up()
    assert processes.dead() == {}
    operator.wait()


@pytest.mark.usefixtures("own_cluster")
def test_state_of_an_earlier_boot_is_cleared_away(monkeypatch, tmp_path):
    other = tmp_path / "boot_id"
    other.write_text("another boot\n")
    monkeypatch.setattr(machine, "_BOOT", other)
    pid = processes.pid("etcd")
    machine.up()
    assert processes.pid("etcd") != pid
    monkeypatch.undo()
    machine.up()


@pytest.mark.usefixtures("own_cluster")
def test_unknown_component_has_no_log_and_says_which_have():
    with pytest.raises(ClusterError, match="there are:"):
        machine.log("kubelett")


@pytest.mark.usefixtures("own_cluster")
def test_binaries_are_built_once():
    start = time.monotonic()
    binaries.build("kubernetes")
    assert time.monotonic() - start < 2
