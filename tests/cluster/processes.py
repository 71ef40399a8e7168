"""Talk to the supervisor, and find every process that belongs to the cluster, its supervisor alive or not."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Client
from pathlib import Path

import psutil

from tests.cluster import layout
from tests.cluster.shell import ClusterError, until
from tests.cluster.supervisor import PID_FILE, SOCKET

COMPONENTS = frozenset(
    {
        *("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "coredns"),
        *("containerd", "containerd-shim-runc-v2", "traefik", "kwok", "versitygw", "kube-router"),
    }
)
_GRACE_S = 10
_KEPT = []  # the supervisor outlives whoever started it; forgotten, its process would be warned of


def ask(method, *arguments):
    """Have the supervisor do something, and return its answer."""
    try:
        with Client(str(SOCKET), "AF_UNIX") as connection:
            connection.send((method, arguments))
            done, value = connection.recv()
    except (OSError, EOFError) as error:
        raise ClusterError("the cluster is not up: python -m tests.cluster up") from error
    if not done:
        raise ClusterError(f"{method} {arguments[0] if arguments else ''}: {value}")
    return value


def supervise():
    """Start the supervisor, in a session and process group of its own."""
    layout.LOGS.mkdir(parents=True, exist_ok=True)
    with (layout.LOGS / "supervisor.log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.supervisor"],
            cwd=layout.PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    _KEPT.append(child)
    until(alive, "the supervisor answers; see its log: python -m tests.cluster logs supervisor", 20)


def alive():
    """Return whether the supervisor answers."""
    try:
        ask("status")
    except ClusterError:
        return False
    return True


def launch(name, argv):
    """Start a component under the supervisor, unless it runs."""
    return ask("start", name, [str(word) for word in argv])


def start_again(name):
    """Start a component that was stopped, or that died, as it was started before."""
    return ask("start", name)


def stop(name):
    """End a component and wait for it."""
    ask("signal", name, signal.SIGTERM)
    until(lambda: pid(name) is None, f"{name} ended", _GRACE_S * 2)


def pause(name):
    """Have a component stand still (SIGSTOP)."""
    ask("signal", name, signal.SIGSTOP)


def resume(name):
    """Have a component that was paused go on."""
    ask("signal", name, signal.SIGCONT)


def pid(name):
    """Return a component's process id, or None if it does not run."""
    return status().get(name, {}).get("pid")


def status():
    """Return ``{name: {"pid", "end"}}`` of all components that were started."""
    return ask("status")


def dead():
    """Return ``{name: how it ended}`` of the components that do not run."""
    return {name: each["end"] for name, each in status().items() if each["pid"] is None}


def belonging():
    """Return all processes of the cluster: components that name its folder, and their descendants."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        if _is_component(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                found |= {each.pid: each for each in (process, *process.children(recursive=True))}
    return [each for number, each in found.items() if number not in own and _runs(each)]


def _is_component(process):
    """Return whether it is one of ours; a person's editor or kubectl that names the folder is not."""
    line = process.info["cmdline"] or [""]
    if "tests.cluster.supervisor" in line:
        return True
    return Path(line[0]).name in COMPONENTS and any(f"{layout.RUN}/" in word for word in line[1:])


def _runs(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def end_all():
    """End every process of the cluster; ClusterError naming those that stay.

    First whoever would start others again; only containerd has something to keep; the supervisor last, because it is
    the one who reaps the others.
    """
    _end([each for each in belonging() if _name(each) == "kubelet"], signal.SIGKILL)
    _end([each for each in belonging() if _is_pod(each)], signal.SIGKILL)
    _end([each for each in belonging() if _name(each) == "containerd"], signal.SIGTERM)
    _end([each for each in belonging() if "tests.cluster.supervisor" not in _line(each)], signal.SIGKILL)
    _end(belonging(), signal.SIGTERM)
    PID_FILE.unlink(missing_ok=True)
    if left := belonging():
        raise ClusterError(f"processes that do not end: {[(each.pid, _name(each)) for each in left]}")


def _is_pod(process):
    """Return whether it is a shim or below one."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return any(_name(each).startswith("containerd-shim") for each in (process, *process.parents()))
    return False


def _name(process):
    return Path(_line(process)[0]).name


def _line(process):
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return process.cmdline() or [""]
    return [""]


def _end(chosen, number):
    for process in chosen:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + _GRACE_S
    while (left := [each for each in chosen if _runs(each)]) and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
