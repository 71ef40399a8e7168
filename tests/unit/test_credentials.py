"""What reaches an API server, and by which way: a real server of TLS, a real proxy, real exec plugins."""

import base64
import importlib.util
import json
import os
import pty
import ssl
import traceback

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from raykube.backends.kubernetes import kubeconfig, tunnel
from raykube.backends.kubernetes.credentials import NoCredential
from raykube.backends.kubernetes.kubeapi import Kube
from raykube.doctor import server
from raykube.errors import BackendError, ConfigError, Forbidden, Unreachable
from tests.cluster import certificates
from tests.servers import Proxy, Quiet, serving

NAME = "kubernetes.test"
TIMEOUT = httpx.Timeout(10)


class Authority:
    """Whose certificates are trusted here."""

    def __init__(self, folder):
        self.folder = folder
        self.pair = certificates._authority("test")
        self.path = folder / "ca.crt"
        self.path.write_bytes(pem_of(self.pair.certificate))

    def issue(self, name):
        """Return a certificate for a name, and its key, as PEM."""
        pair = certificates._issued(self.pair, name, names=[x509.DNSName(name)])
        key = pair.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return pem_of(pair.certificate).decode(), key.decode()

    def tls(self, name):
        """Return TLS for a server of that name, which asks for certificates and needs none."""
        path = self.folder / f"{name}.pem"
        path.write_text("".join(self.issue(name)))
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.path))
        tls.verify_mode = ssl.CERT_OPTIONAL
        tls.verify_flags &= ~ssl.VERIFY_X509_STRICT  # a server in Go is not
        tls.load_cert_chain(path)
        return tls


def pem_of(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM)


class Api(Quiet):
    """Answers who asked, by token and certificate; those in the server's `refused` are not known to it."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        subject = dict(each[0] for each in (self.connection.getpeercert() or {}).get("subject", ()))
        who = [self.headers.get("authorization", "").removeprefix("Bearer "), subject.get("commonName", "")]
        known = not self.server.refused & {*who}
        self.answer(*((200, who) if known else (401, {"message": "Unauthorized"})))


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def api(authority):
    """Give an API server whose certificate is for another name than its address."""
    with serving(Api, authority.tls(NAME)) as server:
        yield server


@pytest.fixture
def context(api, authority, tmp_path, monkeypatch):
    """Return a function that writes a kubeconfig of one context and loads it."""

    def load(user=None, **cluster):
        server = f"https://127.0.0.1:{api.server_port}"
        cluster = {"server": server, "certificate-authority": "ca.crt", "tls-server-name": NAME} | cluster
        cluster = {key: value for key, value in cluster.items() if value}
        config = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": user or {"token": "t"}}],
        }
        path = authority.folder / "kubeconfig"
        path.write_text(json.dumps(config))
        monkeypatch.setenv("KUBECONFIG", str(path))
        return kubeconfig.load()

    for name in ("HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.chdir(tmp_path)
    return load


@pytest.fixture
def plugin(tmp_path):
    """Return a function that makes an exec plugin of its answers; the last one is repeated."""

    def user(*answers, **more):
        for number, answer in enumerate(answers):
            (tmp_path / f"answer-{number}").write_text(json.dumps({"status": answer}))
        (tmp_path / f"answer-{len(answers)}").symlink_to(f"answer-{len(answers) - 1}")
        program = tmp_path / "plugin"
        lines = (
            "#!/bin/sh",
            'echo "$KUBERNETES_EXEC_INFO" > asked',
            "n=$(cat count 2>/dev/null || echo 0)",
            "cat answer-$n",
            "echo $((n + 1)) > count",
        )
        program.write_text("\n".join(lines))
        program.chmod(0o755)
        return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(program), **more}}

    return user


@pytest.fixture
def terminal():
    """Give the other end of a terminal that is standard input meanwhile."""
    other, end = pty.openpty()
    before = os.dup(0)
    os.dup2(end, 0)
    yield other
    os.dup2(before, 0)
    for each in (before, end, other):
        os.close(each)


def who(config):
    """Return the token and the name in the certificate that the server sees."""
    with kubeconfig.client(config, TIMEOUT) as client:
        return client.get("/").json()


def test_certificate_is_for_the_name_that_the_kubeconfig_says(context):
    assert who(context()) == ["t", ""]
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        who(context(**{"tls-server-name": ""}))


def test_authority_that_newer_pythons_refuse_and_kubectl_does_not_is_trusted(context, monkeypatch):
    made = ssl.create_default_context

    def strict(*words, **options):
        tls = made(*words, **options)
        tls.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python has it from 3.13 on
        return tls

    monkeypatch.setattr(ssl, "create_default_context", strict)
    assert who(context()) == ["t", ""]


def test_proxy_of_the_kubeconfig_carries_all_and_its_name_of_the_server_holds(context, api, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")  # kubectl heeds it only where the kubeconfig says nothing
    with serving(Proxy) as proxy:
        address = f"http://127.0.0.1:{proxy.server_port}"
        assert who(context(**{"proxy-url": address})) == ["t", ""]
        assert proxy.asked == [f"127.0.0.1:{api.server_port}"]
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            who(context(**{"proxy-url": address, "tls-server-name": ""}))


def test_proxy_of_the_environment_for_all_is_taken_where_there_is_none_for_https(context, api, monkeypatch):
    with serving(Proxy) as proxy:
        proxy.names = {"server.test": "127.0.0.1"}
        monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{proxy.server_port}")
        assert who(context(server=f"https://server.test:{api.server_port}")) == ["t", ""]
        assert proxy.asked == [f"server.test:{api.server_port}"]


@pytest.mark.parametrize("said", ["", "10.0.0.0/16,fd00::/8,server"])
def test_proxy_of_the_environment_carries_all_but_what_stays_on_this_machine(context, api, monkeypatch, said):
    monkeypatch.setenv("NO_PROXY", said)
    with serving(Proxy) as proxy:
        proxy.names = {"10.1.2.3": "127.0.0.1", "server.test": "127.0.0.1"}
        monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{proxy.server_port}")
        for host in ("10.1.2.3", "server.test"):
            assert who(context(server=f"https://{host}:{api.server_port}")) == ["t", ""]
        assert proxy.asked == [f"{host}:{api.server_port}" for host in ("10.1.2.3", "server.test")]
        assert who(context()) == ["t", ""]
        assert len(proxy.asked) == 2


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("10.1.2.3", "192.168.0.0/16, 10.0.0.0/8,.test"),
        ("10.1.2.3", "10.1.9.9/16"),
        ("10.1.2.3", "10.1.2.3"),
        ("fd00::1", "fd00::/8"),
        ("server.test", "test,other"),
        ("server.test", "x,*"),
        ("server.test", "server.test:6443"),
        *((host, "") for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1")),
    ],
)
def test_what_the_environment_excepts_goes_through_no_proxy(context, monkeypatch, host, said):
    monkeypatch.setenv("NO_PROXY", said)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    address = f"[{host}]" if ":" in host else host
    assert kubeconfig._proxy_of(context(server=f"https://{address}:6443")) is None


def test_proxy_reached_by_tls_carries_requests_and_no_port(context, authority, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    with serving(Proxy, authority.tls("localhost")) as proxy:
        config = context(**{"proxy-url": f"https://localhost:{proxy.server_port}"})
        assert who(config) == ["t", ""]
        with kubeconfig.client(config, TIMEOUT) as client, client.stream("GET", "/") as response:
            with pytest.raises(BackendError, match="itself reached by https"):
                tunnel._check_socket(response)
            response.read()


@pytest.mark.parametrize(
    ("address", "words"), [("socks5://127.0.0.1:1", "socksio"), ("gopher://127.0.0.1", "Unknown scheme")]
)
@pytest.mark.skipif(bool(importlib.util.find_spec("socksio")), reason="what SOCKS needs is installed")
def test_proxy_that_cannot_be_used_is_said(context, address, words):
    with pytest.raises(ConfigError, match=words):
        who(context(**{"proxy-url": address}))


def test_proxy_that_does_not_answer_is_no_answer_of_the_server(context):
    context(**{"proxy-url": "http://127.0.0.1:1"})
    with pytest.raises(Unreachable):
        Kube().send("GET", "/version")


def test_certificate_file_that_is_missing_is_said(context):
    user = {"client-certificate": "none.crt", "client-key": "none.key"}
    with pytest.raises(ConfigError, match="No such file") as told:
        who(context(user=user, **{"certificate-authority": "none"}))
    keys = ["certificate-authority", "client-certificate", "client-key"]
    assert [problem.path for problem in told.value.problems] == keys
    assert "none.crt" in told.value.problems[1].what


@pytest.mark.parametrize(("data", "words"), [("abc", "is not base64"), ("YWJj", "holds no PEM")])
def test_certificate_data_that_is_none_is_named_by_its_field(context, data, words):
    with pytest.raises(ConfigError, match=f"certificate-authority-data: {words}"):
        who(context(**{"certificate-authority": "", "certificate-authority-data": data}))


def test_token_file_is_read_for_each_request(context, tmp_path):
    (tmp_path / "token").write_text("first\n")
    with kubeconfig.client(context(user={"tokenFile": "token"}), TIMEOUT) as client:
        assert client.get("/").json() == ["first", ""]
        # As a kubelet does it: the name leads to another file from one moment to the next.
        (tmp_path / "new").write_text("second\n")
        (tmp_path / "new").replace(tmp_path / "token")
        assert client.get("/").json() == ["second", ""]


def test_token_file_that_is_missing_is_waited_for(context):
    context(user={"tokenFile": "nowhere"})
    with pytest.raises(NoCredential, match="No such file"):
        Kube().send("GET", "/version")


def test_newline_at_the_end_of_a_token_is_not_sent(context, plugin):
    assert who(context(user={"token": "static\n"})) == ["static", ""]
    assert who(context(user=plugin({"token": "given\n"}))) == ["given", ""]
    assert who(context(user={"token": "", "username": "jane", "password": "x"}))[0].startswith("Basic ")


@pytest.mark.parametrize("token", ["SECRET\nline", "SECRET\u2026", "SECRET\0"])
def test_token_that_cannot_be_sent_is_refused_without_its_words(context, plugin, tmp_path, token):
    (tmp_path / "token").write_text(token)
    for user, kind in (({"token": token}, ConfigError), ({"tokenFile": "token"}, NoCredential)):
        context(user=user)
        with pytest.raises(kind, match="several lines, or characters") as told:
            Kube().send("GET", "/version")
        assert "SECRET" not in "".join(traceback.format_exception(told.value))
    context(user=plugin({"token": token}))
    with pytest.raises(NoCredential, match="several lines, or characters") as told:
        Kube().send("GET", "/version")
    assert "SECRET" not in "".join(traceback.format_exception(told.value))


@pytest.mark.parametrize("end", ["tomorrow", 7, "2999-01-01T25:00:00Z"])
def test_plugin_whose_answer_ends_at_no_time_gave_no_credential(context, plugin, end):
    context(user=plugin({"token": "t", "expirationTimestamp": end}))
    with pytest.raises(NoCredential, match="gave no credential"):
        Kube().send("GET", "/version")


def test_plugin_is_asked_again_only_when_its_token_is_refused(context, plugin, api, tmp_path):
    with kubeconfig.client(context(user=plugin({"token": "one"}, {"token": "two"})), TIMEOUT) as client:
        assert [client.get("/").json() for _ in range(2)] == [["one", ""]] * 2
        assert (tmp_path / "count").read_text() == "1\n"
        api.refused.add("one")
        assert client.get("/").json() == ["two", ""]
    assert (tmp_path / "count").read_text() == "2\n"


def test_plugin_is_asked_again_when_its_token_has_expired(context, plugin):
    over = {"token": "old", "expirationTimestamp": "2020-01-01T00:00:00Z"}
    new = {"token": "new", "expirationTimestamp": "2999-01-01T00:00:00Z"}
    with kubeconfig.client(context(user=plugin(over, new)), TIMEOUT) as client:
        assert [client.get("/").json()[0] for _ in range(3)] == ["old", "new", "new"]


def certified(authority, name):
    certificate, key = authority.issue(name)
    return {"clientCertificateData": certificate, "clientKeyData": key}


def test_plugin_gives_a_certificate_and_another_when_it_is_refused(context, plugin, api, authority):
    one, two = certified(authority, "one"), certified(authority, "two")
    with kubeconfig.client(context(user=plugin(one, two | {"token": "t"})), TIMEOUT) as client:
        assert client.get("/").json() == ["", "one"]
        api.refused.add("one")
        assert client.get("/").json() == ["t", "two"]


def test_plugin_whose_answer_stays_refused_is_a_user_whom_the_server_does_not_know(context, plugin, api):
    api.refused.add("one")
    context(user=plugin({"token": "one"}))
    with pytest.raises(Forbidden):
        Kube().send("GET", "/version")


@pytest.mark.parametrize(
    ("command", "words"), [("/nowhere/plugin", "No such file"), ("false", "exit status 1"), ("true", "Expecting value")]
)
def test_plugin_that_gives_nothing_is_named_with_its_hint(context, command, words):
    version = "client.authentication.k8s.io/v1"
    context(user={"exec": {"apiVersion": version, "command": command, "installHint": "install it so"}})
    with pytest.raises(NoCredential, match=words) as told:
        Kube().send("GET", "/version")
    assert command in told.value.what
    assert told.value.next_step == "install it so"
    *_, check = server.checks(Kube())  # what doctor says
    assert (check.name, check.ok, check.next_step) == ("server", False, "install it so")


def test_plugin_that_fails_is_told_without_its_arguments(context):
    command = {"command": "false", "args": ["--client-secret", "SECRET"]}
    context(user={"exec": {"apiVersion": "client.authentication.k8s.io/v1", **command}})
    with pytest.raises(NoCredential, match="exit status 1") as told:
        Kube().send("GET", "/version")
    assert "SECRET" not in "".join(traceback.format_exception(told.value))


def test_plugin_is_told_of_its_cluster_where_it_wants_that(context, plugin, authority, tmp_path):
    extension = {"name": "client.authentication.k8s.io/exec", "extension": {"audience": "lab"}}
    user = plugin({"token": "t"}, provideClusterInfo=True)
    config = context(user, extensions=[{"name": "other"}, extension])
    assert who(config) == ["t", ""]
    assert json.loads((tmp_path / "asked").read_text())["spec"]["cluster"] == {
        "server": config.cluster.server,
        "tls-server-name": NAME,
        "certificate-authority-data": base64.b64encode(authority.path.read_bytes()).decode(),
        "config": {"audience": "lab"},
    }
    del user["exec"]["provideClusterInfo"]
    who(context(user))
    assert "cluster" not in json.loads((tmp_path / "asked").read_text())["spec"]


@pytest.mark.parametrize(("mode", "may"), [("Always", True), ("IfAvailable", True), ("Never", False), (None, True)])
def test_plugin_has_the_terminal_unless_it_wants_none(context, plugin, tmp_path, terminal, mode, may):
    os.write(terminal, b"word\n")
    user = plugin({"token": "t"}, interactiveMode=mode)
    with (tmp_path / "plugin").open("a") as program:
        program.write("\nhead -n 1 > read\n")
    assert who(context(user)) == ["t", ""]
    assert json.loads((tmp_path / "asked").read_text())["spec"]["interactive"] == may
    assert (tmp_path / "read").read_text() == ("word\n" if may else "")


def test_plugin_that_has_to_ask_somebody_is_refused_without_a_terminal(context, plugin):
    context(plugin({"token": "t"}, interactiveMode="Always"))
    with pytest.raises(NoCredential, match="not a terminal") as told:
        Kube().send("GET", "/version")
    assert "in a terminal" in told.value.next_step


def test_plugin_of_an_unknown_mode_is_refused_with_the_nearest(context, plugin):
    with pytest.raises(ConfigError, match="interactiveMode never") as told:
        context(plugin({"token": "t"}, interactiveMode="never"))
    assert "Never" in told.value.next_step


def test_client_certificate_of_the_kubeconfig_is_shown(context, authority):
    certificate, key = (base64.b64encode(each.encode()).decode() for each in authority.issue("jane"))
    user = {"client-certificate-data": certificate, "client-key-data": key}
    assert who(context(user=user)) == ["", "jane"]
