"""The process that owns all components: it starts and stops them by request, reaps them, and knows how they ended.

Run: python -m tests.cluster.supervisor

It adopts what its children leave behind (``PR_SET_CHILD_SUBREAPER``), so that containerd's shims, and through them
the pods, are its descendants. It restarts nothing: a component that died is a fact that ``status`` and tests report.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from multiprocessing.connection import Listener

from tests.cluster import layout
from tests.cluster.shell import write

SOCKET = layout.RUN / "supervisor.sock"
PID_FILE = layout.RUN / "supervisor.pid"
_PR_SET_CHILD_SUBREAPER = 36
_REAP_S = 0.2


class Supervisor:
    """Components by name: how each is started, its process while it runs, its end afterwards."""

    def __init__(self):
        self._argv = {}
        self._pids = {}
        self._ends = {}
        self._end = threading.Event()

    def start(self, name, argv=None):
        """Start a component, unless it runs; `argv` may be left out to start it as before."""
        if name not in self._pids:
            self._argv[name] = argv or self._argv[name]
            self._ends.pop(name, None)
            self._pids[name] = _spawn(name, self._argv[name])
        return self._pids[name]

    def signal(self, name, number):
        """Send a signal to a component that runs."""
        os.kill(self._pids[name], number)

    def status(self):
        """Return ``{name: {"pid", "end"}}``: the end is None, or how its process ended."""
        return {name: {"pid": self._pids.get(name), "end": self._ends.get(name)} for name in self._argv}

    def end(self):
        """End this process; its components are ended by whoever asked."""
        self._end.set()

    def reap(self):
        """Take note of processes that ended, until asked to end."""
        while not self._end.wait(_REAP_S):
            with contextlib.suppress(ChildProcessError):
                while (found := os.waitpid(-1, os.WNOHANG))[0]:
                    self._note(*found)

    def _note(self, pid, status):
        for name, own in list(self._pids.items()):
            if own == pid:
                code = os.waitstatus_to_exitcode(status)
                self._ends[name] = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
                del self._pids[name]


def _spawn(name, argv):
    log = os.open(layout.LOGS / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
    try:
        return os.posix_spawnp(argv[0], argv, os.environ, file_actions=actions)
    finally:
        os.close(log)
        os.close(null)


def main():
    """Serve one request a connection: ``(method, arguments)``, answered by ``(True, value)`` or ``(False, text)``."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    layout.LOGS.mkdir(parents=True, exist_ok=True)
    SOCKET.unlink(missing_ok=True)
    supervisor = Supervisor()
    with Listener(str(SOCKET), "AF_UNIX") as listener:
        SOCKET.chmod(0o600)
        write(PID_FILE, str(os.getpid()))
        threading.Thread(target=_serve, args=(listener, supervisor), daemon=True).start()
        supervisor.reap()


def _serve(listener, supervisor):
    while True:
        with contextlib.suppress(EOFError, ConnectionError), listener.accept() as connection:
            method, arguments = connection.recv()
            try:
                connection.send((True, getattr(supervisor, method)(*arguments)))
            except (OSError, KeyError) as error:
                connection.send((False, f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    main()
