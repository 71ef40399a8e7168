"""A TCP connection inside a WebSocket, as kubelets speak it for port forwarding (``v4.channel.k8s.io``).

Each message begins with the byte of its channel: 0 for data, 1 for an error in words. The first message of each channel
only repeats the port. The protocol cannot say that one side ended while the other goes on.

One thread carries a connection in both directions, over sockets that do not block: two threads must not use one TLS
connection at once.
"""

from __future__ import annotations

import base64
import contextlib
import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from typing import Any

import httpcore
import httpx
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import ProtocolError

from raykube.backends.kubernetes.kubeapi import Kube, Stop
from raykube.errors import BackendError, Unreachable

_PROTOCOL = "v4.channel.k8s.io"
_TIMEOUT = httpx.Timeout(10, connect=5)
_CHUNK = 64 * 1024
_BUFFERED = 256 * 1024
_REPLAYED = 1024 * 1024
_DATA, _ERROR = 0, 1
_PORT_BYTES = 2
_GREETING_S = 10.0
#: Many proxies end a connection that is silent for a minute.
_PING_S = 25.0
#: How long to wait for an answer to a caller that sends no more, and then for the rest of the answer.
_ANSWER_S, _REST_S = 60.0, 1.0
_ORDERLY = (CloseReason.NORMAL_CLOSURE, CloseReason.NO_STATUS_RCVD)
_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
#: Words of containerd and CRI-O that say that nobody listened, so that nothing was received.
_NOBODY = ("failed to connect", "refused", "not found", "not running")


@contextlib.contextmanager
def opened(kube: Kube, pod: str, port: int, stop: Stop) -> Iterator[Any]:
    """Open a stream to a port of a pod, for a :class:`Tunnel`.

    Raises:
        BackendError: the API server opens none, or an https proxy keeps it from carrying anything.
    """
    path = f"/api/v1/namespaces/{kube.namespace}/pods/{pod}/portforward"
    with kube.stream(path, stop, params={"ports": port}, headers=_handshake(), timeout=_TIMEOUT) as response:
        if response.status_code != httpx.codes.SWITCHING_PROTOCOLS:
            raise BackendError(
                f"the API server opened no WebSocket to {pod}",
                why=f"HTTP {response.status_code}",
                next_step="a proxy before the API server must let WebSockets through",
            )
        _check_socket(response)
        yield response.extensions["network_stream"]


def _handshake() -> dict[str, str]:
    return {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": base64.b64encode(os.urandom(16)).decode(),
        "sec-websocket-protocol": _PROTOCOL,
    }


def _check_socket(response: httpx.Response) -> None:
    """Refuse TLS inside TLS: data sent on its socket would bypass the inner TLS."""
    if isinstance(response.extensions["network_stream"].get_extra_info("ssl_object"), ssl.SSLObject):
        raise BackendError(
            "a port cannot be carried through a proxy that is itself reached by https",
            why="TLS to the API server would be inside TLS to the proxy",
            next_step="name the proxy by http:// or socks5://: what it passes on is TLS all the same",
        )


class Caller:
    """The near end: a connection that somebody made to this machine.

    Attributes:
        has_ended: it sends no more; whether it still reads cannot be known.
        is_gone: it takes no more either.
        is_fresh: what it sent so far can be sent again, because nobody got it.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.has_ended = False
        self.is_gone = False
        self.is_fresh = True
        self._sent = bytearray()

    def again(self) -> bytes:
        """Return what is to be sent again, for the far end did not get it."""
        return bytes(self._sent)

    def receive(self) -> bytes:
        """Return what it has sent since the last call, or nothing."""
        if self.has_ended or self.is_gone:
            return b""
        try:
            data = self.socket.recv(_CHUNK)
        except BlockingIOError:
            return b""
        except OSError:
            self.is_gone = True
            return b""
        self.has_ended = not data
        self._keep(data)
        return data

    def send(self, data: bytearray) -> bool:
        """Send it as much of `data` as it takes, and remove that from `data`; return whether it took any."""
        self._forget()
        try:
            taken = self.socket.send(data)
        except BlockingIOError:
            return False
        except OSError:
            self.is_gone = True
            return False
        del data[:taken]
        return taken > 0

    def finish(self) -> None:
        """Close in order: send the end and read what still comes, because closing with unread data is a reset."""
        deadline = time.monotonic() + _REST_S
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
            self.socket.settimeout(_REST_S)
            while self.socket.recv(_CHUNK) and time.monotonic() < deadline:
                pass

    def reset(self) -> None:
        """Have the close break the connection visibly: an answer that was cut off must not look complete."""
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def settle(self) -> None:
        """Never send again what it sent so far, for the far end may have received it."""
        if self._sent:
            self._forget()

    def _keep(self, data: bytes) -> None:
        if self.is_fresh and len(self._sent) + len(data) <= _REPLAYED:
            self._sent += data
        else:
            self._forget()

    def _forget(self) -> None:
        self.is_fresh = False
        self._sent.clear()


class Tunnel:
    """The far end: a port of a pod, at the end of a WebSocket that was just opened.

    Attributes:
        data: what has arrived and was not taken yet.
        has_ended: no more will come.
    """

    def __init__(self, stream: Any) -> None:
        self.socket: socket.socket = stream.get_extra_info("socket")
        self.data = bytearray()
        self.has_ended = False
        self._frames = Connection(ConnectionType.CLIENT)
        self._unsent = bytearray()
        self._message: bytearray | None = None
        self._greeted: set[int] = set()
        try:
            # Not from the socket: the HTTP client may hold what arrived right after the handshake.
            self._take(stream.read(_CHUNK, _GREETING_S))
        except (httpcore.NetworkError, httpcore.TimeoutException) as error:
            raise _broken(repr(error)) from error
        self.socket.setblocking(False)

    @property
    def is_full(self) -> bool:
        """Whether nothing more should be sent now."""
        return self.has_ended or len(self._unsent) >= _BUFFERED

    @property
    def wants(self) -> int:
        """The events to wait for before going on, as for ``poll``."""
        if self.has_ended:
            return 0
        reads = select.POLLIN if len(self.data) < _BUFFERED else 0
        return reads | (select.POLLOUT if self._unsent else 0)

    def send(self, data: bytes) -> None:
        """Add data to what :meth:`flush` sends."""
        if data:
            self._unsent += self._frames.send(BytesMessage(bytes([_DATA]) + data))

    def ping(self) -> None:
        """Add a ping to what :meth:`flush` sends: it shows proxies in between that the connection is in use."""
        self._unsent += self._frames.send(Ping())

    def flush(self) -> bool:
        """Send what can be sent now; return whether anything was."""
        if self.has_ended or not self._unsent:
            return False
        try:
            sent = self.socket.send(bytes(self._unsent[:_CHUNK]))
        except _NOT_NOW:
            return False
        except OSError as error:
            raise _broken(str(error)) from error
        del self._unsent[:sent]
        return sent > 0

    def receive(self) -> bool:
        """Take what has arrived; return whether anything had.

        Raises:
            Unreachable: the other side said why it ends, or the connection broke.
        """
        if self.has_ended or len(self.data) >= _BUFFERED:
            return False
        try:
            raw = self.socket.recv(_CHUNK)
        except _NOT_NOW:
            return False
        except OSError as error:
            raise _broken(str(error)) from error
        self._take(raw)
        return True

    def close(self) -> None:
        """Tell the far end that this is the end, if that can be sent at once."""
        with contextlib.suppress(OSError, ProtocolError):
            self.socket.send(self._frames.send(CloseConnection(code=1000)))

    def _take(self, raw: bytes) -> None:
        if not raw:
            raise _broken("it ended without a word")
        try:
            self._frames.receive_data(raw)
            for event in self._frames.events():
                self._handle(event)
        except ProtocolError as error:
            raise _broken(str(error)) from error

    def _handle(self, event: Event) -> None:
        if isinstance(event, Ping):
            self._unsent += self._frames.send(event.response())
        elif isinstance(event, CloseConnection):
            if event.code not in _ORDERLY:
                raise _broken(f"WebSocket closed: {event.code} {event.reason or ''}")
            self.has_ended = True
        elif isinstance(event, BytesMessage):
            self._message = (self._message or bytearray()) + event.data
            if event.message_finished:
                message, self._message = self._message, None
                self._read(message)

    def _read(self, message: bytearray) -> None:
        channel, body = (message[0], message[1:]) if message else (_DATA, message)
        if channel not in self._greeted:
            self._greeted.add(channel)
            body = body[_PORT_BYTES:]
        if channel == _ERROR and body:
            raise Refused("the port of the pod takes no connection", why=body.decode("utf-8", "replace"))
        if channel == _DATA:
            self.data += body


class Refused(Unreachable):
    """The kubelet's side has given up a connection, and says why."""

    @property
    def is_unheard(self) -> bool:
        """Whether nobody listened, so that nothing that was sent was received."""
        return any(words in self.why.lower() for words in _NOBODY)


def carry(caller: Caller, tunnel: Tunnel, wake: socket.socket) -> None:
    """Carry a connection until either side ends it, or until `wake` can be read.

    Raises:
        Unreachable: it broke. If it can be carried again, the caller is still fresh.
    """
    try:
        _carry(caller, tunnel, wake)
        tunnel.close()
    except Unreachable as error:
        if not (isinstance(error, Refused) and error.is_unheard):
            caller.settle()
        raise


def _carry(caller: Caller, tunnel: Tunnel, wake: socket.socket) -> None:
    tunnel.send(caller.again())
    last, patience = time.monotonic(), _ANSWER_S
    while not caller.is_gone:
        said = not tunnel.is_full and caller.receive()
        tunnel.send(said or b"")
        moved = tunnel.flush() | tunnel.receive()
        given = bool(tunnel.data) and caller.send(tunnel.data)
        if tunnel.has_ended and not tunnel.data:
            caller.finish()
            return
        if said or given:
            # A caller that ends after an answer is done; one that ends after a question may wait for its answer.
            last, patience = time.monotonic(), _REST_S if given else _ANSWER_S
        elif caller.has_ended and time.monotonic() - last > patience:
            return
        elif not moved and _wait(caller, tunnel, wake):
            caller.reset()
            return


def _wait(caller: Caller, tunnel: Tunnel, wake: socket.socket) -> bool:
    """Wait until one of them can go on; return whether it was `wake`."""
    reads = select.POLLIN if not caller.has_ended and not tunnel.is_full else 0
    wanted = {wake: select.POLLIN, tunnel.socket: tunnel.wants}
    wanted[caller.socket] = reads | (select.POLLOUT if tunnel.data else 0)
    poll = select.poll()
    for each, events in wanted.items():
        if events:  # with none, poll would still report a closed end, again and again
            poll.register(each, events)
    found = poll.poll(1000 * (_REST_S if caller.has_ended else _PING_S))
    if not found and not caller.has_ended:
        tunnel.ping()
    return any(number == wake.fileno() for number, _ in found)


def _broken(why: str) -> Unreachable:
    return Unreachable("the connection to the pod broke", why=why, next_step="connect again")
