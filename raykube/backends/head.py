"""The one Ray head that raykube owns on this machine: find it, start it, end it.

A keeper process (keeper.py) starts Ray and watches over it; this module is the side of everybody
else. The head has its own token, free ports and folder, so another Ray on the machine is neither
used nor disturbed. A lock file guards the start. A state file names the processes by pid *and*
creation time, so a stale one is recognised after a crash or a reboot.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from raykube import wire
from raykube.backends import records
from raykube.backends.rayapi import RayApi
from raykube.errors import BackendError, ConfigError, Unreachable
from raykube.settings import setting

START_TIMEOUT_S = 90.0

#: The keepers that this process started. They outlive it on purpose; forgetting one would be warned about.
_keepers: list[subprocess.Popen[bytes]] = []
_log = logging.getLogger("raykube")


@dataclass(frozen=True)
class Head:
    """A head that answered once.

    Attributes:
        id: a random word, also in the environment of all its processes.
        keeper_pid, keeper_created, ray_pid, ray_created: its two main processes.
        address: of the dashboard, as in ``http://127.0.0.1:38265``.
        session_dir: Ray's folder for this head; ``logs/`` below it.
        serve_port: where Serve listens once something is deployed.
        python: the interpreter that runs it.
        started: Unix time in seconds.
    """

    id: str
    keeper_pid: int
    keeper_created: float
    ray_pid: int
    ray_created: float
    address: str
    session_dir: str
    serve_port: int
    python: str
    started: float

    def driver_log(self, submission_id: str) -> Path:
        """Return where Ray writes a job's output."""
        return Path(self.session_dir) / "logs" / f"job-driver-{submission_id}.log"


def home() -> Path:
    """Return the folder of the head's own files."""
    return wire.home() / "head"


def cpu_count() -> int:
    """Return how many CPUs this process may use: what the head offers to Ray."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def token() -> str:
    """Return the head's token, made on first use in a file that only its owner can read."""
    path = home() / "token"
    with contextlib.suppress(FileExistsError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    return path.read_text().strip()


def alive(pid: int, created: float) -> bool:
    """Whether exactly that process runs: a pid alone may have been given to another one since."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return abs(process.create_time() - created) < 1 and process.status() != psutil.STATUS_ZOMBIE
    return False


def read_state() -> Head | None:
    """Return what the state file says, alive or not."""
    try:
        return Head(**json.loads((home() / "state.json").read_text()))
    except FileNotFoundError:
        return None


def write_state(head: Head) -> None:
    """Publish a head that answers."""
    records.write(home() / "state.json", json.dumps(asdict(head)))


def current() -> Head | None:
    """Return the head that runs now, if its Ray is alive."""
    head = read_state()
    return head if head and alive(head.ray_pid, head.ray_created) else None


def touch() -> None:
    """Note that the head was used: it ends after having been idle."""
    (home() / "used").touch()


def api(head: Head) -> RayApi:
    """Return a client for the head's APIs."""
    return _client(head.address, token())


# One a head: connections are kept open between the looks of a wait, which come several a second.
_client = functools.cache(RayApi)


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """Hold the lock that guards starting, submitting and ending; waits for whoever holds it."""
    home().mkdir(parents=True, exist_ok=True)
    with (home() / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def ensure() -> Head:
    """Return a head that answers, starting one if need be. The caller holds :func:`lock`.

    Raises:
        BackendError: it did not start; the end of its own log says why.
        ConfigError: the Serve port asked for is taken, or Ray is not installed.
    """
    head = current()
    if head and _answers(head):
        if not alive(head.keeper_pid, head.keeper_created):
            head = _spawn_keeper(head.id, adopt=True)
        touch()
        return head
    if head:
        kill(head)
    _check_can_start()
    _log.info("starting a Ray head on this machine")
    return _spawn_keeper(secrets.token_hex(4), adopt=False)


def _answers(head: Head) -> bool:
    try:
        return bool(api(head).version())
    except Unreachable:
        return False


def _check_can_start() -> None:
    """Refuse what is sure to fail before starting anything."""
    import importlib.util

    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("psutil") is None:
        raise ConfigError("running on this machine needs Ray", next_step="pip install 'raykube[local]'")
    port = int(setting("serve_port").value)
    if port and not _is_free(port):
        raise ConfigError(
            f"port {port} for Serve is in use by another process",
            why=setting("serve_port").source,
            next_step="choose another RAYKUBE_SERVE_PORT, or unset it to get a free one",
        )


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _spawn_keeper(head_id: str, *, adopt: bool) -> Head:
    """Start a keeper in a session of its own, so that it outlives us, and wait for its head."""
    token()
    home().mkdir(parents=True, exist_ok=True)
    touch()
    command = [sys.executable, "-m", "raykube.backends.keeper", head_id, *(["--adopt"] if adopt else [])]
    with (home() / "keeper.log").open("wb") as log:
        keeper = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
        )
    _keepers.append(keeper)
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and keeper.poll() is None:
        head = current()
        if head and head.id == head_id and head.keeper_pid == keeper.pid:
            return head
        time.sleep(0.05)
    keeper.kill()
    raise _start_failure(head_id)


def _start_failure(head_id: str) -> BackendError:
    """Say why no head came up, from the end of its logs; leave nothing of it running."""
    kill_marked(head_id)
    words = [line for name in ("ray.log", "keeper.log") for line in _tail(home() / name, 5)]
    return BackendError(
        "the Ray head on this machine did not start",
        why="\n        ".join(words) or f"no answer within {START_TIMEOUT_S:g} s",
        next_step=f"read {home() / 'ray.log'}; raykube doctor",
    )


def _tail(path: Path, count: int) -> list[str]:
    text = path.read_text(errors="replace") if path.exists() else ""
    return [line for line in text.splitlines() if line.strip()][-count:]


def kill(head: Head) -> None:
    """End a head and all its processes at once. Ray's own SIGTERM drains for up to 30 s."""
    if alive(head.keeper_pid, head.keeper_created):
        os.kill(head.keeper_pid, signal.SIGKILL)
    kill_marked(head.id, head.ray_pid)
    (home() / "state.json").unlink(missing_ok=True)


def remove_files(head: Head) -> None:
    """Remove what Ray left in its own folder; the logs of runs have been kept by then."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(Path(head.session_dir).parent)


def kill_marked(head_id: str, session: int | None = None) -> None:
    """SIGKILL every process of a head: those of Ray's session, and those with its id in their environment.

    Both are needed: a job's driver leads a session of its own, and Ray's workers overwrite the memory
    that holds their environment when they set their titles.
    """
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            ours = os.getsid(process.pid) == session or process.environ().get("RAYKUBE_HEAD_ID") == head_id
            if ours and process.pid != os.getpid():
                process.kill()
