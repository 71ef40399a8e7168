"""Starting, adopting and retiring the local head: the way to it for everybody but its keeper."""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from raykube import wire
from raykube.backends.local import following, head, observe, records
from raykube.backends.local.head import Head
from raykube.errors import BackendError, ConfigError, Unreachable, install
from raykube.settings import setting

START_TIMEOUT_S = 180.0  # Ray gives up after 30 s on a busy machine, and is then started again
_PAUSE_S = 0.2

#: The running keepers that this process started. They outlive it on purpose; Python warns of one that is dropped.
_keepers: list[subprocess.Popen[bytes]] = []
_log = logging.getLogger("raykube")


def ensure() -> Head:
    """Return a head that answers, starting one if need be. The caller holds the head's lock.

    Raises:
        BackendError: it did not start; the end of its own log says why.
        ConfigError: the Serve port asked for is taken, or Ray is not installed.
        Unreachable: it lives but does not answer; it is left alone, as runs on it may be well.
    """
    adopt_if_orphaned()
    running = head.current()
    if running and _answers(running):
        head.touch()
        return running
    if stale := head.read_state():
        retire(stale)
    if starting := head.read_starting():  # whoever started it was killed meanwhile
        return _wait_until_published(starting.id, lambda: head.read_starting() is not None)
    _check_can_start()
    _log.info("starting a Ray head on this machine")
    return _spawn_keeper(secrets.token_hex(4))


def adopt_if_orphaned() -> None:
    """Give a living head a new keeper if its keeper was killed. The caller holds the head's lock."""
    running = head.current()
    if running and not head.alive(running.keeper_pid, running.keeper_born):
        _spawn_keeper(running.id, "--adopt")


def keep_watched() -> None:
    """Make sure that the head has a keeper: without one nothing is retried and no deadline enforced."""
    running = head.current()
    if running and not head.alive(running.keeper_pid, running.keeper_born):
        with head.lock():
            adopt_if_orphaned()


def retire(gone: Head) -> None:
    """End a head with all that runs on it: note the end of its runs, keep their logs, leave nothing behind.

    For a dead head this cleans up what it left. Two processes at once do no harm.
    """
    if gone.keeper_pid != os.getpid() and head.alive(gone.keeper_pid, gone.keeper_born):
        os.kill(gone.keeper_pid, signal.SIGKILL)
    head.kill_processes(gone)
    for record in records.unfinished(gone.id):
        if record.kind == "job":
            observe.settle_lost(record, gone)
    state = head.read_state()
    if state and state.id == gone.id:
        (head.home() / "state.json").unlink(missing_ok=True)
    head.remove_files(gone)


def end_head() -> bool:
    """End the head and note the end of what ran on it; return False if none runs. The caller holds the lock."""
    running = head.current()
    if running:
        retire(running)
    return running is not None


def _answers(running: Head) -> bool:
    """Whether a head answers, now or before long; False if its Ray has ended. Raises Unreachable."""
    try:
        for answer in following.answers(lambda: head.api(running).version()):
            if answer is not None:
                return True
            if not head.alive(running.ray_pid, running.ray_born):
                return False
            time.sleep(_PAUSE_S)
    except Unreachable as error:
        if head.alive(running.ray_pid, running.ray_born):
            step = "try again; or end it with all that runs on it: raykube cluster delete local"
            raise Unreachable(error.what, why=error.why, next_step=step) from error
    return False


def _check_can_start() -> None:
    """Refuse what is sure to fail, before anything is started."""
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("psutil") is None:
        raise ConfigError("running on this machine needs Ray", next_step=install("local"))
    port = int(setting("serve_port").value)
    if port and not _is_free(port):
        raise ConfigError(
            f"port {port} for Serve is in use by another process",
            why=setting("serve_port").source,
            next_step="choose another RAYKUBE_SERVE_PORT, or unset it to get a free one",
        )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def keeper_environ() -> dict[str, str]:
    """Return the environment of a keeper, and so of its Ray and of every job.

    They run in other folders than this process. So the settings from pyproject.toml in its folder are passed on, and a
    relative ``RAYKUBE_HOME`` is made absolute.
    """
    settings = {f"RAYKUBE_{name.upper()}": setting(name).value for name in ("idle_timeout_s", "serve_port")}
    return {**os.environ, **settings, wire.HOME: str(wire.home())}


def _spawn_keeper(head_id: str, *options: str) -> Head:
    """Start a keeper in a session of its own, so that it outlives us, and wait for its head."""
    head.token()
    head.touch()
    environ = keeper_environ()
    with (head.home() / "keeper.log").open("wb") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "raykube.backends.local.keeper", head_id, *options],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    _keepers[:] = [*(other for other in _keepers if other.poll() is None), keeper]  # poll() reaps those that have ended
    try:
        return _wait_until_published(head_id, lambda: keeper.poll() is None, keeper.pid, adopts=bool(options))
    except BackendError:
        keeper.kill()
        if not options:  # an adopted head is not ours to end
            head.kill_marked(head_id)
        raise


def _wait_until_published(
    head_id: str, goes_on: Callable[[], bool], keeper_pid: int | None = None, *, adopts: bool = False
) -> Head:
    """Wait until a keeper has published the head that it starts, or that it adopts."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        going = goes_on()
        running = head.current()
        if running and running.id == head_id and keeper_pid in (None, running.keeper_pid):
            return running
        if not going:
            break
        time.sleep(0.05)
    raise _not_started(adopts=adopts)


def _not_started(*, adopts: bool) -> BackendError:
    """Return the error that a head, or the new keeper of a running one, did not start, with the ends of its logs."""
    what = "the keeper of the Ray head on this machine" if adopts else "the Ray head on this machine"
    names = ("keeper.log",) if adopts else ("ray.log", "keeper.log")
    words = [line for name in names for line in _tail(head.home() / name, 5)]
    return BackendError(
        f"{what} did not start",
        why="\n".join(words) or f"no answer within {START_TIMEOUT_S:g} s",
        next_step=f"read {head.home() / names[0]}; raykube doctor",
    )


def _tail(path: Path, count: int) -> list[str]:
    text = path.read_text(errors="replace") if path.exists() else ""
    return [line for line in text.splitlines() if line.strip()][-count:]
