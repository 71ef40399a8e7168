"""How a process connects to Ray, its job's cluster or else a Ray of its own, and shows its progress."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import secrets
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raykube.errors import BackendError, ConfigError, install
from raykube.inside.room import head_runs_no_work

log = logging.getLogger("raykube")

RAY_ENVIRON = {
    # Ray would log what a worker prints besides printing it, and so show every line twice.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # The controller takes one report per poll: at Ray's default of 2 s, each report waits 2 s and a run ends 4 s late.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Without a limit, ranks that report unequally often wait for each other for ever.
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "300",
    # Relative paths in a loop mean the same as in the driver.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}
_BASE_MAX = 28  # bytes, so that the paths of Ray's sockets have no more than 107
_AUTH_MODE, _AUTH_TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"

_lock = threading.Lock()
#: How many hold a Ray of our own, its folder, and the authentication variables as they were before it.
_holders = 0
_folder: str | None = None
_before: Mapping[str, str | None] = {}


def apply_environ() -> None:
    """Set Ray's variables that raykube relies on, unless they are set already."""
    for name, value in RAY_ENVIRON.items():
        os.environ.setdefault(name, value)


class _Stdout(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes each line to the present ``sys.stdout``, which a notebook's cell or ``redirect_stdout`` may replace."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stdout


def show_progress() -> None:
    """Send raykube's log lines to stdout, unless the script has set up logging itself."""
    if log.handlers or logging.root.handlers:
        return
    handler = _Stdout()
    handler.setFormatter(logging.Formatter("raykube: %(message)s"))
    log.addHandler(handler)
    # MLflow gives the root logger a handler of its own later, which would show every line again.
    log.propagate = False
    log.setLevel(logging.INFO)


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Hold a connection to Ray: to the cluster of the job that we run in, else to an instance of our own.

    Several threads may train at once, so our own instance ends when its last holder leaves, whatever happened. A Ray
    that runs on this machine for others is neither used nor touched. Meanwhile, what dead controllers had reserved is
    freed.

    Raises:
        BackendError: Ray cannot be started, or does not answer.
    """
    apply_environ()
    own = _hold()
    try:
        from raykube.inside.deaths import orphans_removed

        settle()
        with orphans_removed():
            yield
    finally:
        if own:
            _release()


def settle() -> None:
    """Adapt Ray Train to the connected cluster, in this process and in those that it starts."""
    import ray

    from raykube.inside.deaths import heed_memory_kills

    heed_memory_kills()
    if sum(1 for node in ray.nodes() if node["Alive"]) == 1 and not head_runs_no_work():
        # Nobody drains a single machine; the watcher would be one more process to start.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


def _hold() -> bool:
    """Connect; return whether that is to an instance of our own."""
    global _holders, _folder, _before  # noqa: PLW0603 # a process has one Ray, and its threads share it
    with _lock:
        if not _holders:
            _before = _auth_variables()
            try:
                _folder = _start()
            except BaseException:
                _end(None, _before)
                raise
            if _folder is None:
                return False
        _holders += 1
        return True


def _release() -> None:
    global _holders  # noqa: PLW0603
    with _lock:
        _holders -= 1
        if not _holders:
            _end(_folder, _before)


def _auth_variables() -> dict[str, str | None]:
    """Return Ray's authentication variables as they are, for :func:`_end` to restore."""
    return {name: os.environ.get(name) for name in (_AUTH_MODE, _AUTH_TOKEN)}


def check_installed() -> None:
    """Refuse to go on without Ray, before it is needed.

    Raises:
        ConfigError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("train and sweep need Ray, which is not installed", next_step=install("local"))


def _start() -> str | None:
    """Connect to Ray unless connected; return the folder of an instance of our own if this started one, else None.

    Raises:
        BackendError: Ray cannot be started, or does not answer.
    """
    early = "ray" not in sys.modules
    joins = bool(os.environ.get("RAY_ADDRESS"))
    if early and not joins:
        # Ray caches the mode when it is imported; given a token of our own, it writes none below HOME.
        os.environ.setdefault(_AUTH_MODE, "token")
    import ray

    if ray.is_initialized():
        return None
    if joins:
        _join()
        return None
    os.environ.setdefault(_AUTH_TOKEN, secrets.token_hex(32))
    # This logger would warn that a token is now needed; nobody but this process needs one.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    return _start_own()


def _base() -> Path:
    """Return the folder in which to make Ray's own: by default a short path, as a socket's has 107 bytes at most."""
    usual = os.environ.get("TMPDIR", "") if sys.platform == "linux" else ""
    if len(os.fsencode(usual)) > _BASE_MAX:  # as on batch systems; nobody asked for Ray to be there
        usual = ""
    asked = os.environ.get("RAY_TMPDIR") or usual
    return Path(asked or "/tmp").absolute()  # noqa: S108 - what is made there has a name that nobody can foresee


def _join() -> None:
    what = f"no Ray answers at RAY_ADDRESS={os.environ['RAY_ADDRESS']}"
    with _as_backend_error(what, "unset RAY_ADDRESS for a Ray of its own, or set it to one that runs"):
        _init()


def _start_own() -> str:
    """Start an instance in a new folder, and return the folder; if Ray does not start, it stays for the logs."""
    base = _base()
    logs = f"{base}/ray-*/r/session_latest/logs, and RAY_TMPDIR names another place for them"
    with _as_backend_error("Ray cannot be started on this machine", f"run raykube doctor; Ray's logs are in {logs}"):
        base.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix="ray-", dir=base)
        # Ray opens its folder, sockets included, to every user of the machine, so it gets one inside a folder
        # that is ours alone. No dashboard: nobody is told of it, and it is one more process to start.
        _init(address="local", include_dashboard=False, _temp_dir=f"{folder}/r")
    return folder


@contextlib.contextmanager
def _as_backend_error(what: str, next_step: str) -> Iterator[None]:
    """Turn whatever keeps Ray from starting or answering into a BackendError."""
    try:
        yield
    except Exception as error:  # Ray raises errors of any type, some of them plain
        raise BackendError(what, why=f"{type(error).__name__}: {error}", next_step=next_step) from error


def _init(**asked: Any) -> None:
    import ray

    ray.init(logging_level=logging.WARNING, **asked)


def _end(folder: str | None, environ: Mapping[str, str | None]) -> None:
    """End our own instance, remove its folder, and set the variables in `environ` back to these values."""
    import ray

    ray.shutdown()
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    for name, value in environ.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    # Otherwise this process would keep a token that the processes of its next Ray do not know. The loader is
    # an internal of Ray, which may move; only such a next Ray would miss it.
    if loader := getattr(sys.modules.get("ray._raylet"), "AuthenticationTokenLoader", None):
        loader.instance().reset_cache()
