"""A connection inside a WebSocket, against a far end that speaks as a kubelet does."""

import contextlib
import os
import socket
import threading

import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage

from raykube.backends.kubernetes import tunnel
from raykube.backends.kubernetes.tunnel import Caller, Refused, Tunnel, carry
from raykube.errors import Unreachable

GREETING = (b"\0\x49\x20", b"\1\x49\x20")


class Stream:
    """A connection as the HTTP client gives it after the handshake, with what came right after that."""

    def __init__(self, connection, leading):
        self.connection = connection
        self.leading = leading

    def get_extra_info(self, _):
        return self.connection

    def read(self, size, _timeout):
        found, self.leading = self.leading[:size], self.leading[size:]
        return found or self.connection.recv(size)


class Kubelet:
    """The far end, driven by the test."""

    def __init__(self):
        self.far, self.near = socket.socketpair()
        self.far.settimeout(10)
        self.frames = Connection(ConnectionType.SERVER)
        self.stream = Stream(self.near, b"".join(self.frames.send(BytesMessage(each)) for each in GREETING))

    def says(self, *events):
        self.far.sendall(b"".join(map(self.frames.send, events)))

    def answers(self, data):
        self.says(*(BytesMessage(b"\0" + data[at : at + 30_000]) for at in range(0, len(data), 30_000)))

    def hears(self, size):
        """Return so many bytes of what the caller said."""
        data, message = b"", b""
        while len(data) < size:
            self.frames.receive_data(self.far.recv(65536))
            for event in self.frames.events():
                if isinstance(event, BytesMessage):
                    message += event.data
                    if event.message_finished:
                        assert message[:1] == b"\0"
                        data, message = data + message[1:], b""
        return data

    def hears_the_end(self):
        """Return once the near end has closed."""
        with contextlib.suppress(ConnectionResetError):
            while self.far.recv(65536):
                pass


class Carried:
    """A connection that is carried by a thread."""

    def __init__(self):
        self.kubelet = Kubelet()
        self.client, theirs = socket.socketpair()
        self.client.settimeout(10)
        self.caller = Caller(theirs)
        self.wake, self.waker = socket.socketpair()
        self.error = None
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        with self.caller.socket:
            try:
                carry(self.caller, Tunnel(self.kubelet.stream), self.wake)
            except Unreachable as error:
                self.error = error
            self.kubelet.near.close()

    def ended(self):
        """Return what the connection ended with."""
        self.thread.join(10)
        assert not self.thread.is_alive()
        return self.error

    def read_all(self):
        data = b""
        while chunk := self.client.recv(65536):
            data += chunk
        return data


@pytest.fixture
def carried():
    found = Carried()
    yield found
    found.waker.close()
    found.thread.join(10)
    for each in (found.client, found.caller.socket, found.wake, found.kubelet.far, found.kubelet.near):
        each.close()


def test_tunnel_carries_both_ways_at_once_without_a_changed_byte(carried):
    up, down = os.urandom(3_000_000), os.urandom(3_000_000)
    threads = [
        threading.Thread(target=carried.client.sendall, args=(up,)),
        threading.Thread(target=carried.kubelet.answers, args=(down,)),
    ]
    heard = []
    threads.append(threading.Thread(target=lambda: heard.append(carried.kubelet.hears(len(up)))))
    for thread in threads:
        thread.start()
    got = b""
    while len(got) < len(down):
        got += carried.client.recv(65536)
    for thread in threads:
        thread.join(10)
    assert got == down
    assert heard == [up]


def test_tunnel_answers_pings_and_heeds_no_text(carried):
    carried.kubelet.says(Ping(b"there?"), TextMessage("chatter"))
    carried.kubelet.answers(b"data")
    assert carried.client.recv(4) == b"data"


def test_tunnel_joins_the_parts_of_a_message(carried):
    carried.kubelet.says(BytesMessage(b"\0one ", message_finished=False), BytesMessage(b"two", message_finished=True))
    carried.kubelet.says(CloseConnection(1000))
    assert carried.read_all() == b"one two"


def test_tunnel_of_a_far_end_that_closes_ends_after_the_last_byte(carried):
    carried.kubelet.answers(b"x" * 500_000)
    carried.kubelet.says(CloseConnection(1000))
    assert len(carried.read_all()) == 500_000
    assert carried.ended() is None


def test_tunnel_that_breaks_says_so(carried):
    carried.kubelet.answers(b"half an ans")
    assert carried.client.recv(100) == b"half an ans"
    carried.kubelet.far.close()
    assert isinstance(carried.ended(), Unreachable)
    assert not carried.caller.is_fresh


def test_caller_whom_nobody_heard_is_fresh_and_is_sent_again(carried):
    carried.client.sendall(b"question")
    carried.kubelet.hears(8)
    carried.kubelet.says(BytesMessage(b"\1failed to connect to localhost:8265: connection refused"))
    error = carried.ended()
    assert isinstance(error, Refused)
    assert "connection refused" in str(error)
    assert carried.caller.is_fresh
    assert carried.caller.again() == b"question"


def test_caller_who_may_have_been_heard_is_not_sent_again(carried):
    carried.client.sendall(b"question")
    carried.kubelet.hears(8)
    carried.kubelet.says(BytesMessage(b"\1read: connection reset by peer"))
    assert isinstance(carried.ended(), Refused)
    assert not carried.caller.is_fresh
    assert carried.caller.again() == b""


def test_caller_who_said_more_than_is_kept_is_not_sent_again(monkeypatch):
    monkeypatch.setattr(tunnel, "_REPLAYED", 8)
    client, theirs = socket.socketpair()
    caller = Caller(theirs)
    with client, theirs:
        client.sendall(b"question")
        assert (caller.receive(), caller.again(), caller.is_fresh) == (b"question", b"question", True)
        client.sendall(b"?")
        assert (caller.receive(), caller.again(), caller.is_fresh) == (b"?", b"", False)


def test_tunnel_that_can_carry_nothing_now_says_that_nothing_moved():
    # Else who carries it would look again at once, for as long as that lasts.
    kubelet = Kubelet()
    with kubelet.far, kubelet.near:
        far = Tunnel(kubelet.stream)
        assert (far.flush(), far.receive()) == (False, False)
        far.send(bytes(50_000_000))  # of which the far end takes none, and the kernel some hundred KiB
        assert not all(far.flush() for _ in range(500))


def test_caller_who_said_nothing_is_fresh_whatever_breaks(carried):
    carried.kubelet.far.close()
    assert isinstance(carried.ended(), Unreachable)
    assert carried.caller.is_fresh


def test_caller_who_ends_after_the_question_gets_the_answer(carried):
    carried.client.sendall(b"question")
    carried.client.shutdown(socket.SHUT_WR)
    assert carried.kubelet.hears(8) == b"question"
    carried.kubelet.answers(b"answer")
    assert carried.client.recv(6) == b"answer"


def test_caller_who_ends_after_the_answer_ends_the_tunnel(carried):
    carried.client.sendall(b"question")
    carried.kubelet.hears(8)
    carried.kubelet.answers(b"answer")
    assert carried.client.recv(6) == b"answer"
    carried.client.close()
    carried.kubelet.hears_the_end()
    assert carried.ended() is None


def test_tunnel_takes_no_more_than_its_caller_has_room_for(monkeypatch):
    kubelet = Kubelet()
    with kubelet.far, kubelet.near:
        far = Tunnel(kubelet.stream)
        monkeypatch.setattr(tunnel, "_BUFFERED", 4)
        kubelet.answers(b"four")
        assert far.receive()
        kubelet.answers(b"more")
        assert (far.receive(), far.wants, bytes(far.data)) == (False, 0, b"four")
        far.data.clear()
        assert (far.receive(), bytes(far.data)) == (True, b"more")


def test_connection_that_falls_silent_stays_open_and_is_shown_to_be_in_use(carried, monkeypatch):
    monkeypatch.setattr(tunnel, "_REST_S", 0.01)
    monkeypatch.setattr(tunnel, "_PING_S", 0.05)
    carried.client.sendall(b"question")
    carried.kubelet.hears(8)
    carried.kubelet.answers(b"answer")
    assert carried.client.recv(6) == b"answer"
    pings = 0
    while pings < 3:
        data = carried.kubelet.far.recv(65536)
        assert data
        carried.kubelet.frames.receive_data(data)
        pings += sum(isinstance(event, Ping) for event in carried.kubelet.frames.events())
    carried.client.sendall(b"another")
    assert carried.kubelet.hears(7) == b"another"


def test_tunnel_ends_when_it_is_woken(carried):
    carried.waker.close()
    assert carried.ended() is None
