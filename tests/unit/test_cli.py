"""The command line with wrong input, and with right input that needs no Ray.

Wrong input gives one clear error and exit code 2, before anything is started.
"""

import json
import os
import shlex
import shutil
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import click
import pytest
import yaml
from click.shell_completion import BashComplete
from click.testing import CliRunner

import raykube as rk
from raykube.backends import Status
from raykube.backends.local import records
from raykube.cli import args, common, names, place
from raykube.cli import raykube as raykube_command
from raykube.cli.jobs import submit
from raykube.entrypoints import check_import_path
from raykube.errors import BackendError, ConfigError, Failure, RunFailed
from raykube.package import collect
from raykube.specs import Job
from tests.servers import Quiet, kubernetes, serving, write_kubeconfig
from tests.support import BIN, ROOT, run, run_without_root_rights, typed
from tests.unit.test_records import record


@pytest.fixture
def code(tmp_path):
    """Return a working directory."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "hello.py").write_text("print('hello')\n")
    return tmp_path / "code"


@pytest.fixture
def raykube(code, tmp_path):
    """Return a function that types one raykube command in the working directory, with an empty home."""

    def type_(*words, **environ):
        return typed(*words, cwd=code, **{"RAYKUBE_HOME": str(tmp_path / "home")} | environ)

    return type_


def refused(done, *words):
    """Assert wrong use: exit code 2, these words on stderr, no traceback, nothing on stdout."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr


def test_home_folder_is_sent_only_when_it_is_named(raykube, code):
    words = ("job", "submit", "--dry-run=client", "-o", "name", "--name", "a")
    for home in (code, code / "below"):
        refused(raykube(*words, "--", "python", "hello.py", HOME=str(home)), f"be {code}", "name the folder: --work")
    refused(raykube("service", "deploy", "a", "hello:app", "--dry-run=client", HOME=str(code)), f"would be {code}")
    done = raykube(*words, "--working-dir", ".", "--", "python", "hello.py", HOME=str(code))
    assert (done.stdout, " of raykube, " in done.stderr) == ("a\n", True)


def test_unknown_preset_names_the_nearest(raykube, code):
    shutil.copytree(ROOT / "cluster-configs", code / "cluster-configs")
    refused(raykube("job", "submit", "--on", "gpu-t5", "--", "python", "hello.py"), "no cluster 'gpu-t5'", "gpu-t4")


def test_unknown_key_names_the_nearest(raykube):
    done = raykube("job", "submit", "--runtime-env-json", '{"pips": []}', "--", "python", "hello.py")
    refused(done, "runtime_env.pips: unknown key", "did you mean pip?")


def test_unknown_option_names_the_nearest(raykube):
    refused(raykube("job", "submit", "--workerz", "2", "--", "python", "hello.py"), "'--workerz'", "--workers")


def test_option_after_the_command_is_refused(raykube):
    refused(raykube("job", "submit", "python", "hello.py", "--dry-run=client"), "--dry-run stands after", "put -- bef")
    refused(
        raykube("job", "submit", "--no-wait", "python", "hello.py", "--name", "a", "--json"), "--name, --json stand"
    )


def test_option_after_the_command_is_the_script_s_own_behind_two_dashes(raykube):
    own = ("python", "hello.py", "--dry-run=client", "--name", "a")
    done = raykube("job", "submit", "--dry-run=client", "-o", "json", "--", *own)
    assert json.loads(done.stdout)[0]["entrypoint"] == " ".join(own)


def test_option_after_the_command_that_is_none_of_raykube_s_goes_to_the_script(raykube):
    done = raykube("job", "submit", "--dry-run=client", "-o", "json", "python", "hello.py", "--epochs=2", "-n", "1")
    assert json.loads(done.stdout)[0]["entrypoint"] == "python hello.py --epochs=2 -n 1"


def test_missing_script_names_the_nearest(raykube):
    refused(raykube("job", "submit", "--", "python", "hell.py"), "'hell.py' is not in the code", "hello.py")


def test_missing_module_is_refused(raykube):
    refused(raykube("job", "submit", "--", "python", "-m", "nothing.here"), "nothing.here")


def test_syntax_error_names_file_and_line(raykube, code):
    (code / "bad.py").write_text("x = 1\ndef f(:\n")
    refused(raykube("job", "submit", "--", "python", "bad.py"), "bad.py:2", "syntax error")


def test_name_that_kubernetes_would_refuse_is_refused_here(raykube):
    refused(raykube("job", "submit", "--name", "A_b", "--", "python", "hello.py"), "'A_b'", "Kubernetes")


def test_more_workers_than_cpus_says_what_fits(raykube):
    done = raykube("job", "submit", "--workers", "4096", "--", "python", "hello.py")
    refused(done, "4096 workers x 1 CPU need 4096 CPUs", "fits")


def test_workers_that_are_no_number_are_refused(raykube):
    refused(raykube("job", "submit", "--workers", "two", "--", "python", "hello.py"), "'two' is not a count")


def test_range_that_goes_down_is_refused_as_one(raykube):
    for words in (("job", "submit", "--workers", "4..1", "--", "true"), ("service", "deploy", "--replicas", "4..1")):
        rest = ("a", "hello:app") if "service" in words else ()
        refused(raykube(*words, *rest), f"{words[2]}: the first number of '4..1' must not be larger than the second")


def test_env_without_value_is_refused(raykube):
    refused(raykube("job", "submit", "--env", "A", "--", "python", "hello.py"), "number 1 has no '='")


def test_broken_json_is_refused(raykube):
    for text in ("{x", "[" * 3000):
        refused(raykube("job", "submit", "--metadata-json", text, "--", "python", "hello.py"), "is not JSON")


def test_json_that_is_no_object_is_refused_by_its_option(raykube):
    refused(raykube("service", "deploy", "a", "hello:app", "--args", "[1]"), "--args: must be a JSON object")
    for option in ("--metadata-json", "--runtime-env-json", "--entrypoint-resources"):
        refused(raykube("job", "submit", option, "[1]", "--", "true"), f"{option}: must be a JSON object")


def test_broken_manifest_names_file_and_line(raykube, code):
    (code / "c.yaml").write_text("kind: RayCluster\n  apiVersion: x\n")
    refused(raykube("job", "submit", "--on", "c.yaml", "--", "python", "hello.py"), "c.yaml:2")


def test_huge_file_is_refused_by_name(raykube, code):
    with (code / "weights.bin").open("wb") as file:
        file.truncate(2 << 30)
    refused(raykube("job", "submit", "--", "python", "hello.py"), "weights.bin", "exclude")


def test_unreadable_file_is_named(code, tmp_path):
    (code / "secret.txt").write_text("x")
    (code / "secret.txt").chmod(0)
    words = ("raykube", "job", "submit", "--", "python", "hello.py")
    refused(run_without_root_rights(*words, cwd=code, RAYKUBE_HOME=str(tmp_path / "home")), "secret.txt", "Permission")


def test_unreadable_working_directory_is_refused(code, tmp_path):
    code.chmod(0)
    words = ("raykube", "job", "submit", "--working-dir", str(code), "--", "python", "hello.py")
    done = run_without_root_rights(*words, cwd=tmp_path, RAYKUBE_HOME=str(tmp_path / "home"))
    code.chmod(0o755)
    refused(done, str(code), "Permission")


def test_port_in_use_is_refused_before_the_head_starts(raykube):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = raykube("job", "submit", "--", "python", "hello.py", RAYKUBE_SERVE_PORT=str(port))
    assert done.returncode == 2
    assert f"port {port}" in done.stderr
    assert "RAYKUBE_SERVE_PORT" in done.stderr


def test_full_disk_is_found_before_anything_starts(code, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=40k tmpfs {disk} && exec "$@"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount, "sh", str(BIN / "raykube"), "job", "submit", "--", "python", "hello.py"],
        cwd=code,
        env={"RAYKUBE_HOME": str(disk / "home"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "No space left on device" in done.stderr
    assert "free some disk space" in done.stderr


def test_output_option_without_dry_run_is_refused(raykube):
    refused(raykube("job", "submit", "-o", "json", "--", "python", "hello.py"), "--dry-run=client")


@pytest.mark.parametrize("command", [("job", "submit", "--name", "a"), ("service", "deploy", "a", "hello:app")])
def test_json_of_a_plan_is_asked_for_by_its_own_option(raykube, command):
    script = ("--", "python", "hello.py") if command[0] == "job" else ()
    refused(raykube(*command, "--dry-run=client", "--json", *script), "-o json")


def test_service_of_a_missing_module_is_refused(raykube):
    refused(raykube("service", "deploy", "a", "helo:app"), "'helo' is not in the code", "hello")


@pytest.mark.parametrize(
    ("path", "step"),
    [("jobs.digits", "write jobs.digits:app"), ("jobs.gone", "jobs.MODULE:app"), ("jobs:app", "jobs.MODULE:app")],
)
def test_service_of_no_application_is_told_how_to_name_one(code, path, step):
    (code / "jobs").mkdir()
    (code / "jobs" / "digits.py").write_text("app = 1\n")
    with pytest.raises(ConfigError) as caught:
        check_import_path(path, collect(code))
    assert step in caught.value.next_step
    check_import_path("jobs.digits.app", collect(code))


def test_service_of_a_run_without_result_is_refused(raykube):
    refused(raykube("service", "deploy", "a", "hello:app", "--model", "run:nobody"), "apps[0].model", "'nobody' has no")
    refused(raykube("service", "deploy", "a", "hello:app", "--model", "nowhere"), "no checkpoint 'nowhere'")


def test_timeout_without_end_is_refused(raykube):
    refused(raykube("job", "submit", "--timeout-s", "inf", "--", "python", "hello.py"), "timeout_s", "finite")


def test_settings_that_are_no_table_are_refused(raykube, code):
    (code / "pyproject.toml").write_text("[tool]\nraykube = 3\n")
    refused(raykube("job", "submit", "--", "python", "hello.py"), "tool.raykube", "[tool.raykube]")


def test_notes_of_a_plan_are_shown_with_it(raykube, code):
    shutil.copytree(ROOT / "cluster-configs", code / "cluster-configs")
    done = raykube("job", "submit", "--on", "gpu-t4", "--dry-run=client", "--", "python", "hello.py")
    assert "note: " in done.stderr
    assert "raykube.io/storage" in done.stderr


def test_unknown_run_is_not_found(raykube):
    refused(raykube("job", "status", "nope"), "nothing is called 'nope'", "raykube job list")


@pytest.mark.parametrize("command", [("job", "stop"), ("job", "delete"), ("service", "delete"), ("cluster", "delete")])
def test_unknown_names_are_each_told(raykube, nothing, command):  # noqa: ARG001 - it is asked
    done = raykube(*command, "nope", "nada", "-n", "team", KUBECONFIG="kubeconfig")
    refused(done, "nope", "nada")


def test_known_name_after_an_unknown_one_is_acted_on():
    acted = []

    def act(name):
        if name in ("wrong", "failed"):
            raise {"wrong": BackendError, "failed": RunFailed}[name](name)
        acted.append(name)

    with pytest.raises(SystemExit) as ended:
        common.each(["wrong", "a", "failed", "b"], act)
    assert (acted, ended.value.code) == (["a", "b"], 2)
    common.each(["c"], act)


def test_dry_run_without_a_word_is_that_of_the_client(raykube):
    done = raykube("job", "submit", "--dry-run", "-o", "name", "--name", "a", "--", "python", "hello.py")
    assert (done.returncode, done.stdout) == (0, "a\n")
    done = raykube("job", "submit", "--dry-run", "--", "python", "hello.py")
    assert "entrypoint: python hello.py" in done.stdout


def test_manifest_in_place_of_an_application_is_told_where_it_goes(raykube):
    refused(raykube("service", "deploy", "a", "serve.yaml"), "serve.yaml", "kubectl apply -f")


def test_dry_run_prints_the_plan_and_starts_nothing(raykube, code, tmp_path):
    shutil.copytree(ROOT / "cluster-configs", code / "cluster-configs")
    done = raykube(
        "job", "submit", "--on", "gpu-t4", "--name", "a", "--dry-run=client", "-o", "yaml", "--", "python", "hello.py"
    )
    config_map, job = yaml.safe_load_all(done.stdout)
    assert (config_map["kind"], job["kind"], job["metadata"]["name"]) == ("ConfigMap", "RayJob", "a")
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("place", "kib", "told"),
    [
        ("cpu-small", 1, []),
        ("cpu-small", 200, ["kubectl apply --server-side -f -"]),
        ("cpu-small", 1100, ["the code is not in this plan"]),
        ("local", 800, []),
    ],
)
def test_dry_run_says_what_its_plan_lacks_for_kubectl(raykube, code, place, kib, told):
    (code / "weights").write_bytes(os.urandom(kib * 1024))
    words = ("job", "submit", "--on", place, "--dry-run=client", "-o")
    possible = ("kubectl apply --server-side -f -", "the code is not in this plan")
    for output, expected in (("yaml", told), ("name", [])):
        done = raykube(*words, output, "--", "python", "hello.py")
        assert (done.returncode, [each for each in possible if each in done.stderr]) == (0, expected)


def test_dry_run_of_a_local_job_is_ray_s_own_body(raykube):
    done = raykube("job", "submit", "--name", "a", "--dry-run=client", "-o", "json", "--", "python", "hello.py")
    (body,) = json.loads(done.stdout)
    assert (body["submission_id"], body["entrypoint"]) == ("a-1", "python hello.py")


def test_submit_without_a_kubeconfig_says_where_it_looked(raykube, code):
    shutil.copytree(ROOT / "cluster-configs", code / "cluster-configs")
    done = raykube("job", "submit", "--on", "gpu-t4", "--", "python", "hello.py", KUBECONFIG="none.yaml")
    refused(done, "no Kubernetes is configured: neither none.yaml", "kubectl config get-contexts")


def test_unknown_context_names_the_nearest(raykube, code):
    (code / "kubeconfig").write_text(
        "{current-context: a, users: [{name: u, user: {}}], clusters: [{name: c, cluster: {server: 'https://h'}}], "
        "contexts: [{name: staging, context: {cluster: c, user: u}}]}"
    )
    done = raykube("job", "list", "--context", "stagin", KUBECONFIG="kubeconfig")
    refused(done, "there is no context 'stagin'", "did you mean staging?")


@pytest.mark.parametrize("size", [(), ("--workers", "4"), ("--workers", "2..4")])
def test_plan_on_kubernetes_alone_asks_for_a_cluster(raykube, size):
    refused(raykube("job", "submit", "-n", "team", *size, "--", "python", "hello.py"), "--on NAME|PATH")
    refused(raykube("service", "deploy", "a", "hello:app", "-n", "team", *size), "--on NAME|PATH")
    refused(raykube("cluster", "create", "a", "-n", "team", *size), "--on NAME|PATH")


def test_commands_that_are_told_name_the_place_of_this_one(raykube, code):
    (code / "kubeconfig").write_text(
        "{current-context: a, users: [{name: u, user: {}}], "
        "clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}], "
        "contexts: [{name: a, context: {cluster: c, user: u}}]}"
    )
    place._PLACE_WORDS[:] = ["-n", "team"]
    try:
        assert place.with_place("see: raykube job logs a") == "see: raykube job logs -n team a"
    finally:
        place._PLACE_WORDS.clear()
    done = raykube("job", "list", "-n", "team", KUBECONFIG="kubeconfig")
    refused(done, "no answer from the API server http://127.0.0.1:1", "why:  ConnectError")


def test_manifest_of_something_else_is_refused(raykube, code):
    (code / "pod.yaml").write_text("{kind: Pod, metadata: {name: a}}")
    refused(raykube("job", "submit", "-f", "pod.yaml"), "pod.yaml holds Pod", "one RayJob")


@pytest.mark.parametrize(("kind", "is_meant"), [("RayJobs", True), ("Rayjob", True), ("Job", False)])
def test_kind_that_is_nearly_a_rayjob_is_told_to_be_one(raykube, code, kind, is_meant):
    (code / "job.yaml").write_text(f"{{kind: {kind}, metadata: {{name: a}}}}")
    done = raykube("job", "submit", "-f", "job.yaml")
    refused(done, f"job.yaml holds {kind}")
    assert ("did you mean RayJob?" in done.stderr) is is_meant


@pytest.mark.parametrize("option", ["-f", "--runtime-env"])
def test_file_that_is_not_utf8_is_refused(raykube, code, option):
    (code / "env.yaml").write_bytes("pip: [caf\xe9]\n".encode("latin-1"))
    refused(raykube("job", "submit", option, "env.yaml", "--", "true"), f"{option}: cannot read env.yaml: 'utf-8'")


def test_manifest_of_a_cluster_is_told_what_it_is_for(raykube, code):
    shutil.copy(ROOT / "cluster-configs" / "cpu-small.yaml", code / "c.yaml")
    done = raykube("job", "submit", "-f", "c.yaml")
    refused(done, "c.yaml holds RayCluster", "--on c.yaml -- COMMAND", "raykube cluster create NAME --on c.yaml")
    (code / "c.yaml").write_text("{apiVersion: ray.io/v1, kind: RayService, metadata: {name: a}, spec: {}}")
    done = raykube("job", "submit", "-f", "c.yaml")
    refused(done, "c.yaml holds RayService", "kubectl apply -f c.yaml; then: raykube service status|why|logs")


def test_working_directory_elsewhere_is_refused_as_what_it_is():
    done = CliRunner().invoke(submit, ["--working-dir", "s3://b/x.zip", "--", "python", "hello.py"])
    assert "'s3://b/x.zip' is not a folder here; raykube packs a local folder" in str(done.exception)


def test_options_that_a_cluster_that_stays_cannot_obey_are_refused(raykube):
    words = ("--workers", "2", "--keep-cluster-s", "0")
    done = raykube("job", "submit", "--cluster", "demo", *words, "--", "python", "hello.py", KUBECONFIG="none.yaml")
    refused(done, "--workers: is for a cluster of the job's own", "--keep-cluster-s: ", "demo has its own size")
    refused(raykube("job", "submit", "--cluster", "demo", "--on", "local", "--", "true"), "demo is in Kubernetes")


def test_queue_on_this_machine_is_refused(raykube):
    refused(
        raykube("job", "submit", "--queue", "q", "--dry-run=client", "--", "python", "hello.py"), "queue: is of Kueue"
    )


def test_queue_of_a_file_is_refused_on_this_machine_too(raykube, code):
    (code / "job.yaml").write_text("entrypoint: python hello.py\nqueue: q\n")
    refused(raykube("job", "submit", "-f", "job.yaml", "--dry-run=client"), "queue: is of Kueue", "leave it out")


@pytest.mark.parametrize("words", [("-n", "team"), ("--context", "c")])
@pytest.mark.parametrize("command", [("job", "list"), ("cluster", "list"), ("service", "status", "a")])
def test_namespace_on_this_machine_is_refused(command, words):
    done = CliRunner().invoke(raykube_command, [*command, "--on", "local", *words])
    assert f"leave out {' '.join(words)}" in str(done.exception)


def test_options_beside_a_rayjob_are_refused_together(raykube, code):
    (code / "job.yaml").write_text("{apiVersion: ray.io/v1, kind: RayJob, metadata: {name: a}, spec: {entrypoint: b}}")
    done = raykube("job", "submit", "-f", "job.yaml", "--workers", "2", "--", "python", "hello.py")
    refused(done, "workers: is said by the RayJob itself", "the command after --")


def test_date_in_a_file_is_the_text_that_it_is(raykube, code):
    (code / "env.yaml").write_text("env_vars: {SINCE: 2025-01-31}\n")
    (code / "job.yaml").write_text(
        "{apiVersion: ray.io/v1, kind: RayJob, metadata: {name: a, labels: {since: 2025-01-31}}, spec: {entrypoint: b}}"
    )
    dry = ("--dry-run=client", "-o", "json")
    (planned,) = json.loads(raykube("job", "submit", "-f", "job.yaml", "-n", "team", *dry).stdout)["items"]
    assert planned["metadata"]["labels"]["since"] == "2025-01-31"
    (body,) = json.loads(raykube("job", "submit", "--runtime-env", "env.yaml", *dry, "--", "true").stdout)
    assert body["runtime_env"]["env_vars"]["SINCE"] == "2025-01-31"


def test_rayjob_of_a_file_is_planned_as_it_is(raykube, code):
    (code / "job.yaml").write_text(
        "{apiVersion: ray.io/v1, kind: RayJob, metadata: {generateName: a-}, spec: {entrypoint: b, newField: 1}}"
    )
    done = raykube("job", "submit", "-f", "job.yaml", "-n", "team", "--dry-run=client", "-o", "json")
    (planned,) = json.loads(done.stdout)["items"]
    assert planned["spec"] == {"entrypoint": "b", "newField": 1}
    assert planned["metadata"]["name"].startswith("a-")
    assert planned["metadata"]["namespace"] == "team"


@pytest.fixture
def house(code):
    """Write a manifest that names a namespace, and return its path."""
    manifest = yaml.safe_load((ROOT / "cluster-configs" / "cpu-small.yaml").read_text())
    manifest["metadata"]["namespace"] = "of-house"
    (code / "house.yaml").write_text(yaml.safe_dump(manifest))
    return "./house.yaml"


def test_namespace_leaves_the_manifest_that_the_environment_names(raykube, code, house):  # noqa: ARG001
    words = ("job", "submit", "-n", "said", "--dry-run=client", "-o", "json", "--", "python", "hello.py")
    *_, planned = json.loads(raykube(*words, RAYKUBE_ON=house).stdout)["items"]
    assert (planned["metadata"]["namespace"], "rayClusterSpec" in planned["spec"]) == ("said", True)
    refused(raykube(*words, RAYKUBE_ON="local"), "nothing says what cluster")


@pytest.mark.parametrize(
    ("own", "words", "namespace"), [("", (), "of-house"), ("of-job", (), "of-job"), ("of-job", ("-n", "said"), "said")]
)
def test_rayjob_goes_where_an_option_says_or_itself_or_the_manifest_of_the_place(
    raykube, code, house, own, words, namespace
):
    metadata = {"name": "a"} | ({"namespace": own} if own else {})
    body = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": {"entrypoint": "b"}}
    (code / "job.yaml").write_text(yaml.safe_dump(body))
    submitted = ("job", "submit", "-f", "job.yaml", *words, "--dry-run=client", "-o", "json")
    (planned,) = json.loads(raykube(*submitted, RAYKUBE_ON=house).stdout)["items"]
    assert planned["metadata"]["namespace"] == namespace


class Nothing(Quiet):
    """An API server that has nothing, and notes what it was asked for."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        self.server.asked.append(self.path)
        kind, name = self.path.split("/")[-2:]
        self.answer(404, {"message": f"{kind} {name} not found", "details": {"kind": kind, "name": name}})


@pytest.fixture
def nothing(code):
    """Give an API server that has nothing, and a kubeconfig for it in the working directory."""
    with serving(Nothing) as server:
        write_kubeconfig(server, code / "kubeconfig")
        yield server


def test_commands_that_are_told_name_the_place_of_a_cluster(raykube, nothing):  # noqa: ARG001 - it is asked
    done = raykube("job", "submit", "--cluster", "demo", "--", "python", "hello.py", KUBECONFIG="kubeconfig")
    refused(done, "raykube cluster list --on kubernetes")


class Taken(Nothing):
    """An API server on which a RayJob has every name already."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        if "/rayservices/" in self.path or "/rayclusters/" in self.path:
            super().do_GET()
        else:
            self.answer(200, {"metadata": {"name": "a", "resourceVersion": "1"}, "spec": {"entrypoint": "other"}})

    def do_POST(self):  # noqa: N802 - http.server calls it so
        self.body()
        self.answer(409, {"message": "exists", "details": {"kind": "rayjobs", "name": "a"}})


@pytest.mark.parametrize(
    ("own", "words", "told"),
    [("", (), "--on kubernetes"), ("of-job", (), "-n of-job"), ("of-job", ("-n", "said"), "-n said")],
)
def test_commands_that_are_told_name_the_place_that_a_file_chose(raykube, code, own, words, told):
    metadata = {"name": "a"} | ({"namespace": own} if own else {})
    body = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": {"entrypoint": "b"}}
    (code / "job.yaml").write_text(yaml.safe_dump(body))
    with serving(Taken) as server:
        done = raykube(
            "job", "submit", "-f", "job.yaml", *words, KUBECONFIG=write_kubeconfig(server, code / "kubeconfig")
        )
    refused(done, "the name 'a' is taken by another run", f"raykube job delete {told} a")


def test_why_of_several_lines_stands_below_its_first():
    error = BackendError("taken", why="a: 1 there, 2 here\nb: 3 there, 4 here", next_step="choose")
    assert str(error) == "taken\n  why:  a: 1 there, 2 here\n        b: 3 there, 4 here\n  next: choose"


@pytest.mark.parametrize(("words", "namespace"), [((), "of-house"), (("-n", "said"), "said")])
@pytest.mark.parametrize(
    "command", [("job", "submit", "--cluster", "demo", "--", "python", "hello.py"), ("cluster", "status", "demo")]
)
def test_cluster_is_looked_for_where_the_manifest_of_the_place_says(raykube, nothing, house, command, words, namespace):
    done = raykube(*command[:2], *words, *command[2:], RAYKUBE_ON=house, KUBECONFIG="kubeconfig")
    assert done.returncode == 2
    assert nothing.asked == [f"/apis/ray.io/v1/namespaces/{namespace}/rayclusters/demo"]


def test_fields_of_a_file_are_a_job_and_options_win(raykube, code):
    (code / "job.yaml").write_text("{entrypoint: python hello.py one, name: a, max_retries: 2}")
    done = raykube("job", "submit", "-f", "job.yaml", "--max-retries", "3", "--dry-run=client", "-o", "json")
    (planned,) = json.loads(done.stdout)
    assert planned["entrypoint"] == "python hello.py one"
    assert '"max_retries": 3' in planned["metadata"]["raykube.limits"]


#: Every field of a job, each with another value than it has by itself.
FIELDS = {
    "entrypoint": "python hello.py",
    "name": "a",
    "working_dir": "code",
    "excludes": ["*.bin"],
    "pip": ["x"],
    "env_vars": {"A": "1"},
    "runtime_env": {"py_modules": ["s3://b/m.zip"]},
    "metadata": {"owner": "me"},
    "max_retries": 2,
    "timeout_s": 60.0,
    "pending_timeout_s": 5.0,
    "keep_cluster_s": 7.0,
    "queue": "q",
    "entrypoint_num_cpus": 1.0,
    "entrypoint_num_gpus": 0.5,
    "entrypoint_memory": 1024,
    "entrypoint_resources": {"x": 1.0},
    "entrypoint_label_selector": {"zone": "z"},
}


def test_every_field_of_a_job_can_stand_in_a_file(tmp_path):
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(FIELDS))
    made = args.job_of((), {}, args.manifest_of(tmp_path / "job.yaml")[0])
    assert FIELDS.keys() == Job.model_fields.keys()
    assert made == Job(**FIELDS | {"working_dir": tmp_path / "code"})
    plain = Job(entrypoint="true")
    assert [key for key in FIELDS if getattr(made, key) == getattr(plain, key)] == []


@pytest.mark.parametrize("form", ["{{working_dir: {}}}", "{{runtime_env: {{working_dir: {}}}}}"])
@pytest.mark.parametrize(
    ("said", "meant"), [("sub", "jobs/sub"), (".", "jobs"), ("../x", "jobs/../x"), ("/abs", "/abs"), ("~/x", "~/x")]
)
def test_working_directory_in_a_file_is_one_from_the_file_s_folder(tmp_path, monkeypatch, form, said, meant):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "job.yaml").write_text(form.format(said))
    (fields,) = args.manifest_of(Path("jobs/job.yaml"))
    assert args.job_of(("true",), {}, fields).working_dir == Path(meant)
    assert args.job_of(("true",), {"working_dir": "here"}, fields).working_dir == Path("here")


def test_working_directory_of_a_piped_file_is_one_from_the_shell_s_folder():
    reading, writing = os.pipe()
    os.write(writing, b"working_dir: sub")
    os.close(writing)
    (fields,) = args.manifest_of(Path(f"/dev/fd/{reading}"))
    os.close(reading)
    assert fields == {"working_dir": "sub"}


def test_options_win_over_a_file_and_over_its_runtime_env():
    env = {"pip": ["x"], "working_dir": "a", "env_vars": {"A": "file", "B": "file"}}
    options = {"pip": ("y",), "working_dir": "b", "env_vars": ("A=option", "C=option"), "metadata_json": '{"k": "v"}'}
    made = args.job_of(("true",), options, {"runtime_env": env, "env_vars": {"D": "file"}, "metadata": {"k": "w"}})
    assert (made.pip, str(made.working_dir), made.metadata) == (("y",), "b", {"k": "v"})
    assert made.env_vars == {"A": "option", "C": "option", "D": "file"}
    assert made.runtime_env == {"env_vars": {"B": "file"}}
    assert args.job_of(("true",), {"runtime_env_json": '{"pip": ["y"]}'}, {"pip": ["x"]}).pip == ("y",)


def test_key_of_a_file_that_is_no_field_is_refused(tmp_path):
    (path := tmp_path / "job.yaml").write_text('{entrypoint: "true", true: gpu-t4, 7: 2, metadata_json: "{}"}')
    with pytest.raises(ConfigError) as caught:
        args.job_of((), {}, *args.manifest_of(path))
    assert [problem.path for problem in caught.value.problems] == ["true", "7", "metadata_json"]


def test_problems_of_options_and_of_the_job_are_told_at_once():
    options = {"env_vars": ("FOO",), "runtime_env_json": "{bad", "metadata_json": "[", "max_retries": -1}
    with pytest.raises(ConfigError) as caught:
        args.job_of(("true",), options, {})
    told = {problem.path for problem in caught.value.problems}
    assert told == {"--env", "--runtime-env-json", "--metadata-json", "max_retries"}


@pytest.mark.parametrize(
    "given",
    [
        {"runtime_env_json": '{"env_vars": {"PW": "hunter2"}'},
        {"env_vars": ("A=1", "hunter2")},
    ],
)
def test_option_that_cannot_be_read_is_told_without_what_may_be_secret(given):
    with pytest.raises(ConfigError, match=r"is not JSON|number 2 has no '='") as caught:
        args.job_of(("true",), given, {})
    assert "hunter2" not in str(caught.value)


def test_problems_of_a_service_are_told_at_once():
    options = {"import_path": "a", "args_json": "{", "replicas": "x", "env_vars": ("FOO",)}
    with pytest.raises(ConfigError) as caught:
        args.service_of("a", options)
    assert {problem.path for problem in caught.value.problems} == {
        "--args",
        "--replicas",
        "--env",
        "apps[0].import_path",
    }


@pytest.mark.parametrize(
    ("place", "option", "text", "key", "value"),
    [
        ("local", "--entrypoint-num-cpus", "0.5", "entrypoint_num_cpus", 0.5),
        ("local", "--entrypoint-num-gpus", "0.5", "entrypoint_num_gpus", 0.5),
        ("local", "--entrypoint-memory", "1024", "entrypoint_memory", 1024),
        ("local", "--entrypoint-resources", '{"disk": 2}', "entrypoint_resources", {"disk": 2}),
        ("gpu-t4", "--entrypoint-num-cpus", "2", "entrypointNumCpus", 2),
        ("gpu-t4", "--entrypoint-num-gpus", "1", "entrypointNumGpus", 1),
        ("gpu-t4", "--entrypoint-resources", '{"disk": 2}', "entrypointResources", '{"disk": 2.0}'),
    ],
)
def test_what_a_driver_reserves_is_in_its_plan(raykube, place, option, text, key, value):
    words = ("--on", place, option, text, "--dry-run=client", "-o", "json", "--", "python", "hello.py")
    planned = json.loads(raykube("job", "submit", *words).stdout)
    assert (planned[0] if place == "local" else planned["items"][-1]["spec"])[key] == value


def test_words_and_variables_of_a_job_are_in_its_plan_as_they_were_typed(raykube):
    odd = "a $HOME ${HOME} `id` \"q\" 'p' \\ é\n\ttail"
    words = ("--env", f"ODD={odd}", "--dry-run=client", "-o", "json", "--", "python", "hello.py", odd)
    planned = json.loads(raykube("job", "submit", *words).stdout)[-1]
    assert shlex.split(planned["entrypoint"]) == ["python", "hello.py", odd]
    # Ray puts a $ in the place of this again.
    assert planned["runtime_env"]["env_vars"]["ODD"] == odd.replace("$", "$${0}")


def test_arguments_and_path_of_an_application_are_in_its_plan(raykube):
    words = ("--args", '{"word": "hi"}', "--route-prefix", "/hello", "--dry-run=client", "-o", "json")
    (app,) = json.loads(raykube("service", "deploy", "a", "hello:app", *words).stdout)
    assert (app["args"], app["route_prefix"]) == ({"word": "hi"}, "/hello")


@pytest.mark.parametrize(("state", "exit_code"), [("SUCCEEDED", 0), ("FAILED", 1)])
def test_end_of_a_run_that_was_waited_for_is_told_as_json(raykube, tmp_path, monkeypatch, state, exit_code):
    monkeypatch.setenv("RAYKUBE_HOME", str(tmp_path / "home"))
    records.save(record("a"))
    failure = Failure("EntrypointFailed", "exit code 3", 3) if exit_code else None
    records.set_final(Status("a", "job", state, failure=failure))
    done = raykube("job", "wait", "a", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["name"], told["state"], told["result"]) == (exit_code, "a", state, None)


@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize(("state", "exit_code"), [("SUCCEEDED", 0), ("FAILED", 1), ("STOPPED", 1)])
def test_result_of_a_run_that_did_not_end_well_and_has_none_is_an_error(
    raykube, tmp_path, monkeypatch, state, exit_code, options
):
    monkeypatch.setenv("RAYKUBE_HOME", str(tmp_path / "home"))
    records.save(record("a"))
    records.set_final(Status("a", "job", state))
    done = raykube("job", "result", "a", *options)
    assert (done.returncode, done.stdout) == (exit_code, "null\n" if options else "")
    assert (f"error: a {state}: it has recorded no result" in done.stderr) is bool(exit_code)


def test_service_without_replicas_names_no_deployment(raykube):
    done = raykube("service", "deploy", "a", "hello:app", "--dry-run=client", "-o", "json")
    (app,) = json.loads(done.stdout)
    assert (app["import_path"], "deployments" in app) == ("hello:app", False)


@pytest.mark.parametrize(
    ("words", "deployment"),
    [
        (("--replicas", "2"), {"name": "Model", "num_replicas": 2}),
        (("--replicas", "2", "--deployment", "Hello"), {"name": "Hello", "num_replicas": 2}),
        (("--num-gpus", "0.5"), {"name": "Model", "ray_actor_options": {"num_gpus": 0.5}}),
    ],
)
def test_replicas_are_those_of_the_deployment_that_is_named(raykube, words, deployment):
    done = raykube("service", "deploy", "a", "hello:app", *words, "--dry-run=client", "-o", "json")
    assert json.loads(done.stdout)[0]["deployments"] == [deployment]


def test_deployment_without_replicas_is_refused():
    with pytest.raises(ConfigError, match="--deployment: has no effect without --replicas or --num-gpus"):
        args.service_of("a", {"import_path": "hello:app", "deployment": "Hello"})


def test_share_of_a_gpu_that_ray_cannot_give_a_replica_is_refused():
    with pytest.raises(ConfigError, match=r"--num-gpus: 1\.5 is not 0, a part of one"):
        args.service_of("a", {"import_path": "hello:app", "num_gpus": 1.5})


def test_empty_list_has_its_heading(raykube):
    assert raykube("job", "list").stdout.split() == ["NAME", "STATE", "ATTEMPT", "AGE", "PROGRESS"]
    assert json.loads(raykube("job", "list", "--json").stdout) == []


def kept_run(name):
    """Return a RayJob that Kubernetes has, before its cluster."""
    metadata = {"name": name, "uid": name, "creationTimestamp": f"2026-11-24T12:00:0{len(name)}Z"}
    return {"kind": "RayJob", "metadata": metadata, "spec": {"submissionMode": "HTTPMode", "rayClusterSpec": {}}}


class Listing(Quiet):
    """An API server that lists three runs, of which one is deleted before it is asked for by its name."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        path = self.path.partition("?")[0]
        kind, name = path.split("/")[-2:]
        if name == "rayjobs":
            self.answer(200, {"items": [kept_run(each) for each in ("a", "bb", "ccc")]})
        elif kind == "rayjobs" and name != "bb":
            self.server.both.wait(10)  # each waits for the other: they are asked for at once
            self.answer(200, kept_run(name))
        elif name == "events":
            self.answer(200, {"items": []})
        else:
            self.answer(404, {"message": "not found", "details": {"kind": kind, "name": name}})


def test_list_asks_for_several_runs_at_once_and_leaves_out_what_was_deleted_meanwhile():
    with kubernetes(Listing) as server:
        server.both = threading.Barrier(2)
        done = CliRunner().invoke(raykube_command, ["job", "list", "--on", "kubernetes", "--json"])
    assert [each["name"] for each in json.loads(done.output)] == ["a", "ccc"]


#: Every command that takes the name of something that is there.
NAMED = [
    (group, name)
    for group, commands in raykube_command.commands.items()
    for name, command in getattr(commands, "commands", {}).items()
    if any(isinstance(each, click.Argument) and isinstance(each.type, names.Name) for each in command.params)
]
ELSEWHERE = [
    ("", "is empty", "raykube {group} list"),
    ("rayjob/digits", "'rayjob/digits' is not a valid name", "write digits, not rayjob/digits"),
    ("digits/", "'digits/' is not a valid name", "raykube {group} list"),
    ("?", "'?' is not a valid name", "raykube {group} list"),
    ("x" * 254, "a name of 254 characters is too long", "raykube {group} list"),
]


@pytest.mark.parametrize(("group", "command"), NAMED)
def test_name_that_leads_elsewhere_is_refused_and_nobody_is_asked(raykube, nothing, group, command):
    for name, *words in ELSEWHERE:
        done = raykube(group, command, "-n", "team", name, KUBECONFIG="kubeconfig")
        refused(done, *(word.format(group=group) for word in words[:1]))
        assert words[1].format(group=group) in done.stderr.replace(" -n team", "")
    assert nothing.asked == []


@pytest.mark.parametrize("name", ["", "raycluster/demo"])
def test_cluster_of_a_job_that_leads_elsewhere_is_refused_and_nobody_is_asked(raykube, nothing, name):
    words = ("--cluster", name, "--dry-run=client", "--", "python", "hello.py")
    refused(raykube("job", "submit", *words, KUBECONFIG="kubeconfig"), "name", "next: ")
    assert nothing.asked == []


@pytest.mark.parametrize("on", ["local", "kubernetes"])
@pytest.mark.parametrize("name", ["", "rayjob/digits", ".."])
def test_name_that_leads_elsewhere_is_attached_to_nowhere(nothing, code, monkeypatch, name, on):
    monkeypatch.setenv("KUBECONFIG", str(code / "kubeconfig"))
    with pytest.raises(ConfigError, match="name"):
        rk.attach(name, on)
    assert nothing.asked == []


@pytest.fixture
def complete(code, tmp_path, monkeypatch):
    """Return a function that returns what a shell gets to complete the last word of a line."""
    monkeypatch.chdir(code)
    monkeypatch.setenv("RAYKUBE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KUBECONFIG", "kubeconfig")

    def complete(line):
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        return BashComplete(raykube_command, {}, "raykube", "_RAYKUBE_COMPLETE").complete().split()

    return complete


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("raykube job status ", ["plain,digits-a", "plain,digits-b", "plain,other"]),
        ("raykube job logs -f --source rank-1 digits-", ["plain,digits-a", "plain,digits-b"]),
        ("raykube job delete digits-a o", ["plain,other"]),
        ("raykube job status --on local digits-b", ["plain,digits-b"]),
        ("raykube job status --on nowhere ", []),
        ("raykube service status ", ["plain,reader"]),
        ("raykube cluster status ", []),
    ],
)
def test_names_of_this_machine_are_completed_and_no_head_is_started(complete, tmp_path, line, found):
    for number, name in enumerate(("digits-a", "digits-b", "other")):
        records.save(record(name, submitted=float(number)))
    records.save(replace(record("reader"), kind="service"))
    assert complete(line) == found
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["records"]


class Named(Quiet):
    """An API server with objects of each kind, which notes the namespaces that it is asked for."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        *_, namespace, kind = self.path.partition("?")[0].split("/")
        self.server.asked.append(namespace)
        found = {"rayjobs": ["digits"], "rayservices": ["reader"], "rayclusters": ["demo"]}.get(kind, [])
        self.answer(200, {"items": [kept_run(name) | {"kind": "RayCluster"} for name in found]})


@pytest.mark.parametrize(
    ("line", "name", "namespace"),
    [
        ("raykube job status --on kubernetes -n team ", "digits", "team"),
        ("raykube service delete -n other ", "reader", "other"),
        ("raykube cluster why --context c ", "demo", "default"),
        ("raykube job submit --cluster ", "demo", "default"),
    ],
)
def test_names_of_kubernetes_are_completed_where_the_options_say(complete, code, line, name, namespace):
    with serving(Named) as server:
        write_kubeconfig(server, code / "kubeconfig")
        assert complete(line) == [f"plain,{name}"]
    assert {*server.asked} == {namespace}


class Silent(Quiet):
    """An API server that answers nobody before its test ends."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        self.server.over.wait(60)
        self.answer(503, {})


def test_names_of_a_server_that_does_not_answer_are_not_waited_for(complete, code, monkeypatch):
    monkeypatch.setattr(names, "_PATIENCE_S", 0.2)
    with serving(Silent) as server:
        server.over, began = threading.Event(), time.monotonic()
        write_kubeconfig(server, code / "kubeconfig")
        assert complete("raykube job status --on kubernetes ") == []
        took = time.monotonic() - began
        server.over.set()
    assert took < 5


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("raykube job list --on l", ["plain,local"]),
        ("raykube cluster create demo --on gpu-", ["plain,gpu-8xh100", "plain,gpu-t4"]),
        ("raykube job submit --on=k", ["plain,kubernetes"]),
        ("raykube job submit --on ./h", ["file,./h"]),
        ("raykube job submit python hello.py --on l", ["plain,local"]),
    ],
)
def test_places_are_completed(complete, line, found):
    assert complete(line) == found


def test_command_itself_completes(code):
    said = {"_RAYKUBE_COMPLETE": "bash_complete", "COMP_WORDS": "raykube job list --on loc", "COMP_CWORD": "4"}
    done = run("raykube", cwd=code, **said)
    assert (done.stdout.split(), done.stderr, done.returncode) == (["plain,local"], "", 0)


def unread(stream, words, code):
    """Type a command whose `stream` nobody reads any more, and return it finished, with the text of the other."""
    reader, writer = os.pipe()
    os.close(reader)
    environ = {**os.environ, "RAYKUBE_HOME": str(code.parent / "home")}
    with open(writer, "w") as gone:  # noqa: PTH123 - a descriptor has no path
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: gone}
        return subprocess.run([BIN / "raykube", *words], text=True, check=False, cwd=code, env=environ, **streams)


@pytest.mark.parametrize("words", [("--help",), ("job", "submit", "--help"), ("job", "list")])
def test_reader_that_goes_away_is_no_error(code, words):
    done = unread("stdout", words, code)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize("words", [("job", "status", "nope"), ("job", "frobnicate"), ("job", "list", "--nope")])
def test_reader_of_errors_that_goes_away_is_no_failed_run(code, words):
    done = unread("stderr", words, code)
    assert (done.returncode, done.stdout) == (130, "")


def test_doctor_says_what_it_found(raykube):
    done = raykube("doctor", "--json")
    told = json.loads(done.stdout)
    found = {check["name"]: check["ok"] for check in told}
    assert found["ray"] is True
    assert [check for check in told if check["ok"] and check["next_step"]] == []
    assert done.returncode == 0


def test_name_of_bytes_that_are_no_text_is_printed(tmp_path):
    (tmp_path / "config").write_text("contexts: []\nclusters: [{name: c, cluster: {}}]")
    environ = {"KUBECONFIG": str(tmp_path / "config"), "PYTHONIOENCODING": "utf-8:strict"}
    done = run("raykube", "doctor", "--context", "\udcff", cwd=tmp_path, **environ)
    assert done.returncode in (0, 1, 2)
    assert "Traceback" not in done.stderr
    assert "\\udcff" in done.stdout + done.stderr
