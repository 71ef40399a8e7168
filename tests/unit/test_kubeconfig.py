"""Which Kubernetes, as whom; and what the API server says no with."""

import json
import ssl
import stat
import traceback
from pathlib import Path

import certifi
import httpx
import pytest

from raykube.backends.kubernetes import kubeapi, kubeconfig
from raykube.backends.kubernetes.credentials import auth_of
from raykube.backends.kubernetes.refusals import Denied, Unable, UnknownKind, VersionGone, refusal
from raykube.backends.rayapi import RayApi
from raykube.errors import BackendError, ConfigError, Conflict, Forbidden, ManifestError, NotFound, Unreachable


def write(path, name, server, **user):
    config = {
        "current-context": name,
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": f"ns-{name}"}}],
        "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority": "ca.crt"}}],
        "users": [{"name": name, "user": user}],
    }
    path.write_text(json.dumps(config))
    return path


def test_first_of_two_entries_of_one_name_in_a_file_counts(tmp_path, monkeypatch):
    path = write(tmp_path / "one", "one", "https://one")
    config = json.loads(path.read_text())
    config["clusters"].append({"name": "one", "cluster": {"server": "https://other"}})
    path.write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(path))
    assert kubeconfig.load().cluster.server == "https://one"


def test_variable_of_a_plugin_without_a_value_is_told(tmp_path, monkeypatch):
    plugin = {"command": "x", "apiVersion": "client.authentication.k8s.io/v1", "env": [{"name": "AWS_PROFILE"}]}
    monkeypatch.setenv("KUBECONFIG", str(write(tmp_path / "one", "one", "https://one", exec=plugin)))
    with pytest.raises(ConfigError, match=r"exec\.env\[0\]\.value: is required"):
        kubeconfig.load()


def test_files_are_joined_and_the_first_word_counts(tmp_path, monkeypatch):
    first = write(tmp_path / "one", "one", "https://one")
    (tmp_path / "sub").mkdir()
    second = write(tmp_path / "sub" / "two", "two", "https://two")
    monkeypatch.setenv("KUBECONFIG", f"{first}:{tmp_path / 'none'}:{second}")
    assert kubeconfig.load().cluster.server == "https://one"
    two = kubeconfig.load("two")
    assert (two.cluster.server, two.namespace) == ("https://two", "ns-two")
    assert two.cluster.certificate_auth == str(tmp_path / "sub" / "ca.crt")


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_exec_plugin_is_told_its_version_and_gives_the_token(tmp_path, monkeypatch, version):
    plugin = tmp_path / "plugin"
    plugin.write_text(
        "#!/bin/sh\n"
        'echo "$KUBERNETES_EXEC_INFO" > ' + str(tmp_path / "asked") + "\n"
        'echo \'{"status": {"token": "from-plugin"}}\'\n'
    )
    plugin.chmod(plugin.stat().st_mode | stat.S_IXUSR)
    api_version = f"client.authentication.k8s.io/{version}"
    path = write(tmp_path / "c", "c", "https://c", exec={"apiVersion": api_version, "command": str(plugin)})
    monkeypatch.setenv("KUBECONFIG", str(path))
    auth = auth_of(kubeconfig.load().user, ssl.create_default_context())
    request = next(auth.sync_auth_flow(httpx.Request("GET", "https://c")))
    assert request.headers["Authorization"] == "Bearer from-plugin"
    assert json.loads((tmp_path / "asked").read_text())["apiVersion"] == api_version


@pytest.mark.parametrize(("said", "is_moved"), [("bin/plugin", True), ("/bin/plugin", False), ("plugin", False)])
def test_exec_plugin_with_a_folder_is_named_from_that_of_its_kubeconfig(tmp_path, monkeypatch, said, is_moved):
    path = write(tmp_path / "c", "c", "https://c", exec={"apiVersion": "v1", "command": said})
    monkeypatch.setenv("KUBECONFIG", str(path))
    assert kubeconfig.load().user.exec.command == (str(tmp_path / said) if is_moved else said)


def test_pod_without_a_token_is_told_how_to_have_one_and_a_machine_where_to_look(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="kubectl config get-contexts"):
        kubeconfig.load()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "192.0.2.1")
    with pytest.raises(ConfigError, match="automountServiceAccountToken: true") as caught:
        kubeconfig.load()
    assert "kubectl" not in caught.value.next_step


def test_config_that_is_none_is_said(tmp_path, monkeypatch):
    (tmp_path / "odd").write_text("contexts: []")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "odd"))
    with pytest.raises(ConfigError, match="no Kubernetes is configured"):
        kubeconfig.load()


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ("SECRET", "", "is text, not a mapping"),
        ("[1]", "", "is a list, not a mapping"),
        ("contexts: 1", "contexts", "is a whole number, not a list"),
        ("users: [SECRET]", "users[0]", "is text, not a mapping"),
        ("users: [{name: u}]", "users[0]", "has no user"),
        ("clusters: [{cluster: {}}]", "clusters[0]", "has no name"),
        ("users: [{name: u, user: {exec: SECRET}}]", "users[0].user.exec", "is text, not a mapping"),
        ("clusters: [{name: c, cluster: {server: 5}}]", "clusters[0].cluster.server", "not text"),
        ("clusters: [{name: c, cluster: {proxy-url: [1]}}]", "clusters[0].cluster.proxy-url", "not text"),
        ("users: [{name: u, user: {password: 12345}}]", "users[0].user.password", "is a whole number, not text"),
        ("users: [{name: u, user: {token: 12345}}]", "users[0].user.token", "is a whole number, not text"),
        ("users: [{name: u, user: {username: 5}}]", "users[0].user.username", "is a whole number, not text"),
        (
            "users: [{name: u, user: {client-certificate-data: 5}}]",
            "users[0].user.client-certificate-data",
            "is a whole number, not text",
        ),
        ("current-context: [c]", "current-context", "is a list, not text"),
    ],
)
def test_config_with_a_value_of_another_kind_is_refused(tmp_path, monkeypatch, text, path, words):
    (tmp_path / "c").write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "c"))
    with pytest.raises(ConfigError, match=str(tmp_path / "c")) as told:
        kubeconfig.load()
    (problem,) = told.value.problems
    assert problem.path == path
    assert words in problem.what
    assert "SECRET" not in str(told.value)


@pytest.mark.parametrize(
    ("text", "why"), [("token: 2024-99-99", "looks like a number or a date"), ("[" * 600, "nested too deeply")]
)
def test_config_with_a_value_that_yaml_breaks_on_is_refused(tmp_path, monkeypatch, text, why):
    (tmp_path / "c").write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "c"))
    with pytest.raises(ConfigError, match=why):
        kubeconfig.load()


def test_plugin_of_the_chosen_context_is_whole_and_others_may_be_unfinished(tmp_path, monkeypatch):
    path = write(tmp_path / "c", "c", "https://c", token="t")
    config = json.loads(path.read_text())
    config["users"].append({"name": "other", "user": {"exec": {}}})
    config["contexts"].append({"name": "other", "context": {"cluster": "c", "user": "other"}})
    path.write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(path))
    assert kubeconfig.load().user.token == "t"
    with pytest.raises(
        ConfigError, match=r"(?s)user other .*exec\.command: is required.*exec\.apiVersion: is required"
    ):
        kubeconfig.load("other")


def test_value_of_nothing_is_one_that_is_not_there(tmp_path, monkeypatch):
    path = write(tmp_path / "c", "c", None, exec=None, token="t")
    monkeypatch.setenv("KUBECONFIG", str(path))
    assert kubeconfig.load().cluster.server == "http://localhost:8080"
    path.write_text(path.read_text().replace('"cluster": "c", "user"', '"cluster": null, "user"'))
    with pytest.raises(ConfigError, match="context c names no cluster"):
        kubeconfig.load()


@pytest.mark.parametrize("extension", [{"name": "client.authentication.k8s.io/exec"}, {"extension": {}}])
def test_extension_that_was_only_begun_tells_a_plugin_nothing(tmp_path, monkeypatch, extension):
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": "true", "provideClusterInfo": True}
    path = write(tmp_path / "c", "c", "https://c", exec=plugin)
    config = json.loads(path.read_text())
    config["clusters"][0]["cluster"]["extensions"] = [extension]
    path.write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(path))
    assert kubeconfig.load().manner.cluster == {"server": "https://c"}


def test_context_that_names_what_is_not_there_is_said(tmp_path, monkeypatch):
    path = write(tmp_path / "c", "c", "https://c")
    monkeypatch.setenv("KUBECONFIG", str(path))
    path.write_text(path.read_text().replace('"cluster": "c"', '"cluster": "c2"'))
    with pytest.raises(ConfigError, match=r"context c names cluster c2, which is not in .*/c"):
        kubeconfig.load()


@pytest.mark.parametrize(
    ("value", "why"),
    [('"SECRET', "unexpected end of stream"), ("!SECRET", "constructor for the tag '…'"), ("*SECRET", "alias '…'")],
)
def test_config_that_is_no_yaml_is_named_by_file_and_line_without_its_words(tmp_path, monkeypatch, value, why):
    path = tmp_path / "c"
    path.write_text(f"users:\n- name: u\n  user:\n    token: {value}\n")
    monkeypatch.setenv("KUBECONFIG", str(path))
    with pytest.raises(ConfigError) as told:
        kubeconfig.load()
    assert (f"{path}:" in told.value.what, why in told.value.why) == (True, True)
    assert "SECRET" not in "".join(traceback.format_exception(told.value))


def answered(code, message, details=None, method="POST"):
    body = {"kind": "Status", "message": message, "details": details or {}}
    return refusal(method, "/apis/ray.io/v1/rayjobs", httpx.Response(code, json=body))


def test_missing_right_is_told_with_the_rule_that_grants_it():
    words = 'rayjobs.ray.io is forbidden: User "jane" cannot create resource "rayjobs" in API group "ray.io" in …'
    error = answered(403, words)
    assert isinstance(error, Forbidden)
    assert 'apiGroups: ["ray.io"], resources: ["rayjobs"], verbs: ["create"]' in error.next_step


@pytest.mark.parametrize("before", ["", 'rayjobs.ray.io "a" is forbidden: '])
def test_refusal_by_a_webhook_is_of_the_manifest_and_in_its_words(before):
    own = "spec.suspend: Invalid value: false: it is\nno good"
    words = f'{before}admission webhook "vrayjob.kb.io" denied the request: {own}'
    error = answered(403, words, {"kind": "rayjobs", "name": "a"})
    assert type(error) is Denied
    assert isinstance(error, ManifestError)
    assert error.what == "the cluster's admission webhook vrayjob.kb.io refused rayjobs a"
    assert [problem.what for problem in error.problems] == [own]
    assert type(answered(403, words, method="DELETE")) is Forbidden
    (silent,) = answered(403, 'admission webhook "x" denied the request without explanation').problems
    assert silent.what == "without explanation"


def test_unknown_fields_are_problems_with_their_paths():
    words = 'strict decoding error: unknown field "spec.a", unknown field "spec.b[0].c"'
    error = answered(400, words)
    assert isinstance(error, ManifestError)
    assert [problem.path for problem in error.problems] == ["spec.a", "spec.b[0].c"]


def test_namespace_that_there_is_not_is_said_with_how_to_make_it():
    error = answered(404, 'namespaces "nothere" not found', {"kind": "namespaces", "name": "nothere"})
    assert (error.what, error.next_step) == ("there is no namespace nothere", "kubectl create namespace nothere")


@pytest.mark.parametrize(("path", "is_kuberays"), [("/apis/ray.io/v1/rayjobs", True), ("/api/v1/pods", False)])
def test_unknown_field_is_a_matter_of_kuberay_in_its_objects_alone(path, is_kuberays):
    words = 'strict decoding error: unknown field "spec.containers[0].imag"'
    error = refusal("POST", path, httpx.Response(400, json={"kind": "Status", "message": words}))
    assert "is unknown to this cluster" in str(error)
    assert ("KubeRay" in str(error), "KubeRay" in error.next_step) == (is_kuberays, is_kuberays)


@pytest.mark.parametrize(
    ("code", "details", "kind", "words"),
    [
        (404, {"kind": "rayjobs", "name": "a"}, NotFound, "there is no rayjobs a"),
        (404, {}, UnknownKind, "KubeRay's definitions are not installed"),
        (401, {}, Forbidden, "does not know who asks"),
        (409, {"kind": "rayjobs", "name": "a"}, Conflict, "exists already"),
        (410, {}, VersionGone, "no longer knows the version"),
        (503, {}, Unreachable, "no answer by way of the API server"),
        (500, {}, Unable, "the API server cannot do"),
        (429, {}, Unable, "the API server cannot do"),
        (418, {}, BackendError, "the API server refused"),
    ],
)
def test_refusal_becomes_the_error_that_says_what_it_is(code, details, kind, words):
    error = answered(code, "its words", details)
    assert type(error) is kind
    assert words in str(error)
    assert error.why == "its words"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ({"text": "A file is not found at: /tmp/ray"}, BackendError),
        ({"json": {"kind": "Status", "message": "etcdserver: leader changed"}}, Unable),
    ],
)
def test_failure_of_a_head_is_told_from_the_servers_that_passes_it_on(answer, kind):
    path = "/api/v1/namespaces/n/services/head:dashboard/proxy/api/v0/logs/stream"
    assert type(refusal("GET", path, httpx.Response(500, **answer))) is kind


def test_answer_that_is_no_json_is_told_as_it_is():
    assert refusal("GET", "/x", httpx.Response(502, text="bad gateway")).why == "bad gateway"
    assert refusal("GET", "/x", httpx.Response(503, json={})).why == "HTTP 503"


def test_lines_of_a_stream_that_breaks_off_are_whole():
    response = httpx.Response(200, content=iter([b'{"a":', b' 1}\n{"b": 2}\n{"c"', b": "]))
    assert list(kubeapi._lines(response)) == [b'{"a": 1}', b'{"b": 2}']


def test_context_without_a_cluster_hurts_only_who_chooses_it(tmp_path, monkeypatch):
    entries = {
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "contexts": [{"name": "good", "context": {"cluster": "c"}}, {"name": "begun", "context": {}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", "current-context": "good", **entries}))
    monkeypatch.setenv("KUBECONFIG", str(path))
    assert kubeconfig.load().cluster.server
    with pytest.raises(ConfigError, match="context begun names no cluster"):
        kubeconfig.load("begun")


def test_user_who_acts_as_another_says_so_with_each_request(tmp_path, monkeypatch):
    acting = {"as": "alice", "as-uid": "7", "as-groups": ["readers", "team"], "as-user-extra": {"a/b": ["x"]}}
    path = write(tmp_path / "c", "c", "https://c", token="admin", **acting)
    (tmp_path / "ca.crt").write_bytes(Path(certifi.where()).read_bytes())
    monkeypatch.setenv("KUBECONFIG", str(path))
    with kubeconfig.client(kubeconfig.load(), httpx.Timeout(1)) as client:
        sent = client.build_request("GET", "/").headers
    assert (sent["Impersonate-User"], sent["Impersonate-Uid"]) == ("alice", "7")
    assert sent.get_list("Impersonate-Group") == ["readers", "team"]
    assert sent["Impersonate-Extra-a%2Fb"] == "x"


def test_extra_of_a_user_may_be_called_by_a_number(tmp_path, monkeypatch):
    (tmp_path / "c").write_text(
        "{current-context: c, clusters: [{name: c, cluster: {server: 'https://c'}}],"
        " contexts: [{name: c, context: {cluster: c, user: u}}], users: [{name: u, user: {as-user-extra: {1: [a]}}}]}"
    )
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "c"))
    assert kubeconfig.load().impersonated == (("Impersonate-Extra-1", "a"),)


def test_extra_of_a_user_who_is_acted_as_is_a_list(tmp_path, monkeypatch):
    path = write(tmp_path / "c", "c", "https://c", **{"as": "alice", "as-user-extra": {"scopes": "view"}})
    monkeypatch.setenv("KUBECONFIG", str(path))
    with pytest.raises(ConfigError, match=r"as-user-extra\.scopes"):
        kubeconfig.load()


def test_certificate_that_stands_in_the_kubeconfig_comes_before_a_file(tmp_path, monkeypatch):
    path = write(tmp_path / "c", "c", "https://c")
    config = json.loads(path.read_text())
    config["clusters"][0]["cluster"]["certificate-authority-data"] = "eA=="
    path.write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(path))
    found = kubeconfig.load().cluster
    assert (found.certificate_auth, found.certificate_auth_data) == (None, "eA==")


def test_server_whose_address_is_none_is_said(tmp_path, monkeypatch):
    path = write(tmp_path / "c", "c", "https://host:port")
    (tmp_path / "ca.crt").write_bytes(Path(certifi.where()).read_bytes())
    monkeypatch.setenv("KUBECONFIG", str(path))
    with pytest.raises(ConfigError, match="context c of the kubeconfig cannot be used"):
        kubeconfig.client(kubeconfig.load(), httpx.Timeout(1))


@pytest.mark.parametrize("password", ["hunter2/x", "hunter2#x"])
@pytest.mark.parametrize("where", ["server", "proxy-url", "HTTPS_PROXY"])
def test_password_that_breaks_an_address_is_not_shown(tmp_path, monkeypatch, password, where):
    address = f"http://me:{password}@10.1.2.3:1"
    path = write(tmp_path / "c", "c", address if where == "server" else "https://10.1.2.4")
    if where == "proxy-url":
        path.write_text(path.read_text().replace('"server"', f'"proxy-url": "{address}", "server"'))
    (tmp_path / "ca.crt").write_bytes(Path(certifi.where()).read_bytes())
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.setenv("HTTPS_PROXY", address if where == "HTTPS_PROXY" else "")
    with pytest.raises(ConfigError, match="is no URL; a / or # in a password is written %2F") as caught:
        kubeapi.Kube()
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_password_and_token_of_a_kubeconfig_are_shown_nowhere(tmp_path, monkeypatch):
    path = write(tmp_path / "c", "c", "http://me:hunter2@127.0.0.1:1/k8s", token="hunter2")
    path.write_text(path.read_text().replace('"server"', '"proxy-url": "http://me:hunter2@127.0.0.1:1", "server"'))
    monkeypatch.setenv("KUBECONFIG", str(path))
    (tmp_path / "ca.crt").write_bytes(Path(certifi.where()).read_bytes())
    config = kubeconfig.load()
    assert (config.user.token, config.proxy) == ("hunter2", "http://me:hunter2@127.0.0.1:1")
    assert "hunter2" not in repr(config)
    with pytest.raises(Unreachable, match=r"the API server http://127.0.0.1:1/k8s") as caught:
        kubeapi.Kube().get("Pod", "a")
    assert "hunter2" not in str(caught.value)
    kube = kubeapi.Kube()
    with pytest.raises(Unreachable, match=r"the Ray head at http://127.0.0.1:1/k8s/x") as caught:
        RayApi.behind(kube.http, "x", "").version()
    assert "hunter2" not in str(caught.value)
