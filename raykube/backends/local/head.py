"""The one Ray head that raykube owns on this machine: its state, its token, its lock, its processes.

The head has its own token, free ports and folder, so another Ray on the machine is neither used nor
disturbed. The state file names its processes by pid *and* by when they were born, so a stale file is recognised
after a crash or a reboot. starting.py starts and ends the head, keeper.py looks after it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from raykube import wire
from raykube.backends.local import disk
from raykube.backends.rayapi import RayApi
from raykube.errors import ConfigError, Unreachable, install


@dataclass(frozen=True)
class Head:
    """A head that answered once.

    Attributes:
        id: a random word, which is also in the environment of all its processes.
        keeper_pid, keeper_born, ray_pid, ray_born: its two main processes, and what :func:`born` says of them.
        address: of the dashboard, e.g. ``http://127.0.0.1:38265``.
        folder: made for this head, closed to all but its owner.
        session_dir: Ray's own folder within it; ``logs/`` below it.
        serve_port: where Serve listens once something is deployed.
        python: the interpreter that runs it.
        started: Unix time in seconds.
        host: where it runs, as :func:`here` returns it.
    """

    id: str
    keeper_pid: int
    keeper_born: str
    ray_pid: int
    ray_born: str
    address: str
    folder: str
    session_dir: str
    serve_port: int
    python: str
    started: float
    host: str

    def driver_log(self, submission_id: str) -> Path:
        """Return where Ray writes a job's output."""
        return Path(self.session_dir) / "logs" / f"job-driver-{submission_id}.log"


def home() -> Path:
    """Return the folder of the head's own files."""
    return wire.home() / "head"


def cpu_count() -> int:
    """Return how many CPUs this process may use: what the head offers to Ray."""
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(cpus, int(_quota(Path("/sys/fs/cgroup")) or cpus)))


def _quota(cgroup: Path) -> float | None:
    """Return the CPUs that a container is limited to (cgroup v2, then v1); None for no limit."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (int(word) for name in names for word in (cgroup / name).read_text().split())
            return quota / period if quota > 0 else None
    return None


def token() -> str:
    """Return the head's token, made on first use in a file that only its owner can read."""
    path = home() / "token"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = disk.beside(path)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        disk.link(draft, path)
    return path.read_text().strip()


def born(pid: int) -> str:
    """Return what tells a living process from all others that had or will have its pid; "" if no process has it.

    On Linux this is the boot and the time from boot to start: a start as time of day moves when the clock is set.

    Raises:
        ConfigError: psutil is not installed.
    """
    try:
        import psutil
    except ModuleNotFoundError as error:
        what = "whether the Ray head of this machine lives cannot be told"
        raise ConfigError(what, why="psutil is not installed", next_step=install("local")) from error

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return ""
        if not psutil.LINUX:
            return f"{process.create_time():.2f}"
        since_boot = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return ""
    with contextlib.suppress(FileNotFoundError):  # not in every sandbox
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {since_boot}"
    return since_boot


def here() -> str:
    """Return what tells this machine or container from others that share raykube's folder."""
    with contextlib.suppress(OSError):  # only Linux has namespaces
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname()


def alive(pid: int, birth: str) -> bool:
    """Whether exactly this process runs: its pid alone may have been given to another one since."""
    return bool(birth) and born(pid) == birth


def read_state() -> Head | None:
    """Return what the state file says, alive or not. Raises BackendError if it may not be read."""
    path = home() / "state.json"
    try:
        with disk.reading(path):
            said = json.loads(path.read_text())
        # Older versions did not write these two.
        return Head(**{"folder": str(Path(said["session_dir"]).parent), "host": here()} | said)
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):  # none, torn, or of another kind
        return None


def write_state(head: Head) -> None:
    """Publish a head that answers."""
    disk.write(home() / "state.json", json.dumps(asdict(head)))


@dataclass(frozen=True)
class Starting:
    """A keeper whose head does not answer yet."""

    id: str
    keeper_pid: int
    keeper_born: str


def write_starting(starting: Starting | None) -> None:
    """Publish that a head is about to start; None withdraws that."""
    path = home() / "starting.json"
    if starting:
        disk.write(path, json.dumps(asdict(starting)))
    else:
        path.unlink(missing_ok=True)


def read_starting() -> Starting | None:
    """Return the keeper that starts a head now, if it lives."""
    path = home() / "starting.json"
    try:
        with disk.reading(path):
            starting = Starting(**json.loads(path.read_text()))
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None
    return starting if alive(starting.keeper_pid, starting.keeper_born) else None


def current() -> Head | None:
    """Return the head that runs now, if its Ray is alive.

    Raises:
        Unreachable: it runs on a machine or in a container whose processes cannot be seen; it may well be alive.
    """
    head = read_state()
    if head is None or alive(head.ray_pid, head.ray_born):
        return head
    if head.host != here() and _is_kept():
        raise _elsewhere(head)
    return None


def seen() -> Head | None:
    """Return the head that runs now, if it runs here; the files of one elsewhere cannot be read."""
    with contextlib.suppress(Unreachable):
        return current()
    return None


def of(head_id: str) -> Head | None:
    """Return the head with this id if it runs now; a service taken down has the id "". Raises Unreachable."""
    running = current()
    return running if running and running.id == head_id else None


def keep() -> None:
    """Lock a file while this process lives, which shows that the head has a keeper even where it cannot be seen."""
    with contextlib.suppress(OSError):  # the former keeper is just ending, or the disk knows no locks
        fcntl.flock(os.open(home() / "kept", os.O_RDWR | os.O_CREAT, 0o600), fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_kept() -> bool:
    """Whether a keeper lives, on whatever machine; True if that cannot be told."""
    try:
        with (home() / "kept").open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(file, fcntl.LOCK_UN)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _elsewhere(head: Head) -> Unreachable:
    machine, _, container = head.host.partition(" ")
    place = f"another container on {machine}" if machine == socket.gethostname() and container else machine
    step = f"run raykube there, or give {wire.HOME} a folder of its own here; only if all that runs there has ended: "
    return Unreachable(
        f"the Ray head of {wire.home()} runs on {place}",
        why=f"this is {socket.gethostname()}, from where its processes cannot be seen",
        next_step=f"{step}rm {home() / 'state.json'}",
    )


def touch() -> None:
    """Note that the head was used, as it ends after having been idle."""
    (home() / "used").touch()


def api(head: Head) -> RayApi:
    """Return a client for the head's APIs."""
    return _client(head.address, token())


# One client is kept, with open connections: a wait looks at the head several times a second.
_client = functools.lru_cache(maxsize=1)(RayApi.at)
# A forked child would read answers to its parent's requests from connections that both have.
os.register_at_fork(after_in_child=_client.cache_clear)


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """Hold the lock that guards starting, submitting and ending; wait for whoever holds it.

    Raises:
        BackendError: its file cannot be made, e.g. on a read-only disk.
        ConfigError: raykube's folder is another user's.
    """
    with contextlib.ExitStack() as held:
        with disk.errors():
            disk.own_home()
            home().mkdir(exist_ok=True, mode=0o700)
            file = held.enter_context((home() / "lock").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        # Closing the file is not enough: a process forked meanwhile has it open too, and so holds the lock.
        held.callback(fcntl.flock, file, fcntl.LOCK_UN)
        yield


def temp_dir(folder: str) -> str:
    """Return the folder for Ray's files, sockets and logs, inside one that is closed to all but its owner.

    Ray opens the folder that it is given, and all that it makes there, to every user of the machine.
    """
    return f"{folder}/r"


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def remove_files(head: Head) -> None:
    """Remove the head's folder with what Ray left in it; the logs of runs were copied before.

    Raises:
        BackendError: it may not be removed, or somebody keeps writing to it.
    """
    disk.remove_tree(Path(head.folder))


def kill_processes(head: Head) -> None:
    """SIGKILL every process of a head at once; Ray's own SIGTERM drains for up to 30 s."""
    is_anothers = born(head.ray_pid) not in ("", head.ray_born)  # another process has that pid by now
    kill_marked(head.id, None if is_anothers else head.ray_pid)


def kill_marked(head_id: str, session: int | None = None) -> None:
    """SIGKILL every process of a session, and every process with the head's id in its environment.

    Both are needed: a job's driver leads a session of its own, and Ray's workers overwrite the memory
    that holds their environment when they set their titles.
    """
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            # Session 0 is not ours: it has the kernel's own processes, and those that entered a container from outside.
            ours = os.getsid(process.pid) == (session or None) or process.environ().get("RAYKUBE_HEAD_ID") == head_id
            if ours and process.pid != os.getpid():
                process.kill()
