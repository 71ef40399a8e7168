"""A local port that leads to the head of a Ray cluster, through the API server alone.

Each connection gets its own WebSocket (``pods/NAME/portforward``) to the pod that is the head at that moment. When the
head is replaced or the API server restarts, open connections end; later ones work.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType

from raykube import manifests, marks
from raykube.backends.kuberay.causes.observed import head_pod
from raykube.backends.kubernetes.fields import is_leaving, name_of, status_of
from raykube.backends.kubernetes.kubeapi import Kube, Object, Stop
from raykube.backends.kubernetes.refusals import lacks
from raykube.backends.kubernetes.tunnel import Caller, Tunnel, carry, opened
from raykube.backends.kubernetes.watching import Refusals
from raykube.errors import BackendError, ConfigError, Forbidden, NotFound, Unreachable

#: Seconds that a connection waits for an API server or a head that is away; a killed head is back by then.
PATIENCE_S = 60.0
_PAUSE_S = 0.3
#: Seconds that the end of a forward waits for its connections to end.
_END_S = 1.0
_HOST = "127.0.0.1"
_RIGHT = "pods/portforward"

_log = logging.getLogger(__name__)


class Forward:
    """Listens while its block runs, and carries each connection to the head of a RayCluster.

    A connection that cannot be made while the API server or the head is away waits for it, up to ``PATIENCE_S``
    seconds. What goes wrong with a connection is logged; the next one starts afresh.

    Args:
        cluster: its name, or a function that returns the name for each connection.

    Attributes:
        port: on 127.0.0.1; known once the block has begun.
    """

    def __init__(
        self, kube: Kube, cluster: str | Callable[[], str], port: int = 0, *, remote: str = "dashboard"
    ) -> None:
        self.port = port
        self._kube = kube
        self._cluster = cluster
        self._remote = remote
        self._told = ""
        self._refusals = Refusals()
        self._stop = Stop()
        #: Set once a connection found that the cluster or service no longer exists.
        self.gone = threading.Event()
        self._wake, self._waker = socket.socketpair()
        self._stop.take(self._waker)

    @property
    def address(self) -> str:
        """The address that Ray's own commands take."""
        return f"http://{_HOST}:{self.port}"

    def __enter__(self) -> Forward:  # noqa: PYI034 - typing has no Self before Python 3.11
        listener = _listening(self.port)
        self.port = listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, args=(listener,), daemon=True, name="raykube-forward")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        # A thread that waits for a silent API server ends by itself, or with the process.
        self._thread.join(_END_S)
        if not self._thread.is_alive():
            self._wake.close()
            self._waker.close()

    def _accept(self, listener: socket.socket) -> None:
        """Give each connection a thread; return once all of them have ended."""
        threads: list[threading.Thread] = []
        with listener:
            while not self._stop.is_set():
                _wait_readable(listener, self._wake)
                try:
                    caller = Caller(listener.accept()[0])
                except (BlockingIOError, ConnectionAbortedError):
                    continue
                except OSError as error:  # too many open files: connections that end free some
                    self._tell(f"a connection is not taken yet: {error}")
                    self._stop.wait(_PAUSE_S)
                    continue
                threads = [each for each in threads if each.is_alive()] + self._started(caller)
        for thread in threads:
            thread.join()

    def _started(self, caller: Caller) -> list[threading.Thread]:
        """Start and return a thread that carries a connection; with too many threads, reset it and return none."""
        thread = threading.Thread(target=self._serve, args=(caller,), daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._tell(f"a connection was ended: {error}")
            with caller.socket:
                caller.reset()
            self._stop.wait(_PAUSE_S)
            return []
        return [thread]

    def _serve(self, caller: Caller) -> None:
        """Carry one connection; on an error, try again as long as none of its data has been received."""
        deadline = time.monotonic() + PATIENCE_S
        with caller.socket:
            while error := self._tried(caller):
                waits = (
                    self._may_pass(error)
                    and caller.is_fresh
                    and time.monotonic() < deadline
                    and not self._stop.is_set()
                )
                self._tell(f"{'waiting' if waits else 'a connection was ended'}: {error}")
                if not waits or self._stop.wait(_PAUSE_S):
                    caller.reset()
                    return

    def _may_pass(self, error: BackendError) -> bool:
        """Whether it may work a moment after this error."""
        if isinstance(error, Forbidden):
            return not self._refusals.is_final()
        return isinstance(error, (Unreachable, NotFound))

    def _tell(self, text: str) -> None:
        """Log what is wrong, once for all connections that it affects."""
        if text != self._told and not self._stop.is_set():
            self._told = text
            _log.warning("%s", text)

    def _tried(self, caller: Caller) -> BackendError | None:
        try:
            pod = self._head()
            port = manifests.port(pod["spec"]["containers"][0], self._remote)
            with opened(self._kube, name_of(pod), port, self._stop) as stream:
                self._refusals.end()
                carry(caller, Tunnel(stream), self._wake)
        except BackendError as error:
            return error
        self._told = ""
        return None

    def _head(self) -> Object:
        """Return the pod that is the head now: a replaced head has another name."""
        try:
            cluster = self._cluster if isinstance(self._cluster, str) else self._cluster()
        except NotFound:  # the service is gone
            self.gone.set()
            raise
        selector = f"{marks.CLUSTER}={cluster},{marks.NODE_TYPE}=head"
        pods = self._kube.listed("Pod", labelSelector=selector)
        live = [pod for pod in pods if not is_leaving(pod)]
        head = dict(head_pod(tuple(live)))
        phase = status_of(head).get("phase", "")
        stays = isinstance(self._cluster, str)  # a service's cluster is replaced by another
        if stays and not head and self._kube.find("RayCluster", cluster) is None:
            self.gone.set()
            raise NotFound(f"cluster {cluster} is gone", next_step="see: raykube cluster list")
        if phase != "Running":
            raise Unreachable(
                f"the head of {cluster} does not run",
                why=f"its pod {head['metadata']['name']} is {phase}" if head else "it has no pod",
                next_step=f"raykube cluster why {cluster}",
            )
        return head


def check_right(kube: Kube) -> None:
    """Refuse a user who may not forward ports, before an address is shown.

    Raises:
        Forbidden: this user lacks the one right to do so that every API server requires.
    """
    allowed = True
    with contextlib.suppress(BackendError):  # the first connection then tells what is wrong
        allowed = kube.may("get", _RIGHT)
    if not allowed:
        raise lacks("get", _RIGHT, why=f"the API server says so of namespace {kube.namespace}")


def _listening(port: int) -> socket.socket:
    listener = socket.socket()
    try:
        # As in socketserver: without this option a port that was used a minute ago could not be used again.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_HOST, port))
        listener.listen(128)
        listener.setblocking(False)
    except (OSError, OverflowError) as error:
        listener.close()
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"port {port} cannot be listened on", why=why, next_step="leave out --port for a free one"
        ) from None
    return listener


def _wait_readable(*sockets: socket.socket) -> None:
    poll = select.poll()
    for each in sockets:
        poll.register(each, select.POLLIN)
    poll.poll()
