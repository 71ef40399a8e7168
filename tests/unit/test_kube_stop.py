"""What ends a stream from another thread."""

import datetime as dt
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from raykube.backends.kubernetes.kubeapi import Kube, Stop
from tests.servers import Quiet, kubernetes


@pytest.fixture
def connected(tmp_path):
    """Return a TLS connection whose other end sends x without end."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.timezone.utc)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + dt.timedelta(days=1))
    file = tmp_path / "pair.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    client = ssl.create_default_context(cafile=str(file))
    client.check_hostname = False
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=send, args=(listener, server))
        thread.start()
        with client.wrap_socket(socket.create_connection(listener.getsockname())) as connection:
            yield connection
        thread.join()


def send(listener, context):
    accepted, _ = listener.accept()
    with context.wrap_socket(accepted, server_side=True) as connection:
        connection.settimeout(1)  # the kernel may hold what nobody reads any more for a minute
        try:
            while True:
                connection.sendall(b"x" * 5000)
        except OSError:
            return


def only_what_was_sent(connection, times):
    return all(received(connection).strip(b"x") == b"" for _ in range(times))


def received(connection):
    """Return what came; nothing of a connection that was ended, which some versions of OpenSSL call an error."""
    try:
        return connection.recv(65536)
    except BrokenPipeError:
        return b""


def test_stream_that_is_stopped_gives_nothing_but_what_was_sent(connected):
    stop = Stop()
    stop.take(connected)
    assert only_what_was_sent(connected, 20)
    stop.set()
    assert only_what_was_sent(connected, 20)


def test_stop_wakes_whoever_waits_for_data():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stop = Stop()
        stop.take(ours)
        threading.Timer(0.05, stop.set).start()
        assert ours.recv(1) == b""


def test_connection_that_comes_too_late_is_ended_at_once():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stop = Stop()
        stop.set()
        stop.take(ours)
        assert theirs.recv(1) == b""


def test_stop_sets_those_that_are_chained_to_it():
    stop, other, late = Stop(), Stop(), Stop()
    stop.chain(other)
    stop.set()
    stop.chain(late)
    assert other.is_set()
    assert late.is_set()


class Api(Quiet):
    """Ends each watch in order, as a server does after an hour, and makes an object when the test says so."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        self.answer(200, {})

    def do_POST(self):  # noqa: N802
        self.body()
        self.server.begun.set()
        self.server.goes_on.wait(10)
        self.answer(201, {"metadata": {"name": "b"}})


def test_stop_cuts_nobody_who_asks_after_a_stream_has_ended():
    with kubernetes(Api) as server:
        server.begun, server.goes_on = threading.Event(), threading.Event()
        kube, stop = Kube(), Stop()
        assert len([*kube.watch("RayJob", "7", stop)]) == 1
        with ThreadPoolExecutor() as pool:
            made = pool.submit(kube.create, {"kind": "RayJob", "metadata": {"name": "b"}})
            assert server.begun.wait(10)
            stop.set()
            server.goes_on.set()
            assert made.result() == {"metadata": {"name": "b"}}
