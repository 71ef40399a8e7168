"""The main job on this machine: one script by four ways, its result from anywhere, its model behind HTTP."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

import raykube as rk
from raykube.backends.local import head, starting
from raykube.errors import Conflict, NotFound
from tests.basics import until
from tests.local.test_head import processes_of
from tests.support import BIN, DIGITS, ROOT, plain_digits, run

pytestmark = pytest.mark.local

WAIT_S = 600


def weights(text):
    """Return the fingerprint that the script printed of its final weights."""
    (found,) = re.findall(r"weights +(sha256:\w+)", text)
    return found


@pytest.fixture(scope="module")
def typed():
    """Train digits with two workers by the command line; return what it printed."""
    words = ("raykube", "job", "submit", "--name", "mission-train", "--workers", "2", "--", *DIGITS)
    done = run(*words, cwd=ROOT, timeout=WAIT_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(typed):
    """Submit the same through rk.submit; return the run, which has ended well."""
    assert typed, "the command line is the first"
    job = rk.Job(entrypoint=" ".join(DIGITS), name="mission-train", working_dir=ROOT)
    return rk.submit(job, rk.Cluster.local(workers=2)).wait(timeout_s=WAIT_S)


@pytest.fixture(scope="module")
def fingerprint(trained):
    """Return the weights of that run."""
    return weights("\n".join(trained.logs()))


def test_submit_is_the_run_of_the_command_line_with_its_weights(typed, trained, fingerprint):
    # A plan that differs would be a conflict, and one that is the same joins what has ended well: rk.submit would have
    # sent the same to the same head, so its own training could differ no more than another one by the command line.
    assert trained.status().attempt == 1
    assert weights(typed) == fingerprint


def test_plain_script_gives_the_same_weights(fingerprint):
    assert weights(plain_digits()) == fingerprint


def test_ray_job_submit_gives_the_same_weights(fingerprint):
    running = head.current() or pytest.fail("no head runs")
    environ = {"RAYKUBE_WORKERS": "2", "RAYKUBE_TRACKING": "off"}
    done = run(
        *("ray", "job", "submit", "--address", running.address, "--working-dir", "."),
        *("--runtime-env-json", json.dumps({"env_vars": environ, "excludes": [".git", ".demo", "mlruns"]})),
        *("--", *DIGITS),
        cwd=ROOT,
        timeout=WAIT_S,
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(head.home() / "token"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert weights(done.stdout) == fingerprint


def test_digits_are_recognised(trained):
    assert trained.result().metrics["accuracy"] >= 0.97


def test_script_tells_what_happens_and_where_it_ended(trained, fingerprint):
    from jobs import _digits

    output, checkpoint = "\n".join(trained.logs()), trained.result().checkpoint
    assert "raykube: epoch 1 " in output
    assert checkpoint in output
    assert fingerprint == f"sha256:{_digits.fingerprint(checkpoint)}"


def test_result_holds_what_train_returned(trained):
    result = trained.result()
    assert (result.kind, result.run, result.params["epochs"]) == ("train", "mission-train", 10)
    assert result.model_uri.startswith("models:/digits/")
    epochs = [row["metrics"]["epoch"] for row in result.history() if row["checkpoint"]]
    assert epochs == [*range(1, 11)]


def test_status_shows_the_metrics_while_it_runs_and_the_logs_each_print_once(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import threading, pathlib, sys\nimport ray.train\nimport raykube as rk\n"
        "def loop(config):\n"
        "    rank = ray.train.get_context().get_world_rank()\n"
        "    print('printed once by', rank, flush=True)\n"
        "    rk.report({'loss': 0.25})\n"
        "    while not pathlib.Path(config['go']).exists(): threading.Event().wait(0.1)\n"
        "    print('warned by', rank, file=sys.stderr)\n"
        "rk.train(loop, {'go': sys.argv[1]})\n"
    )
    job = rk.Job(entrypoint=f"python slow.py {tmp_path / 'go'}", name="mission-slow", working_dir=tmp_path)
    running = rk.submit(job, rk.Cluster.local(workers=2))
    followed = running.logs(source="rank-1", follow=True)
    assert next(followed) == "printed once by 1"
    assert until(lambda: running.status().progress, "it has reported", 120)["loss"] == 0.25
    (tmp_path / "go").touch()
    assert list(followed) == ["warned by 1"]
    assert running.wait(timeout_s=WAIT_S).result().metrics == {"loss": 0.25}
    assert sum("printed once by 0" in line for line in running.logs()) == 1
    assert list(running.logs(source="rank-0")) == ["printed once by 0", "warned by 0"]


def test_source_that_is_not_here_says_why_and_what_to_do_instead(trained):
    refusals = {"rank-2": "it trains on 2 workers", "autoscaler": "--workers 1..4", "events": "raykube job why"}
    for source, words in refusals.items():
        done = run("raykube", "job", "logs", "--source", source, trained.name)
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr


def test_tour_of_the_readme_runs_as_it_stands(tmp_path):
    (tour,) = re.findall(r"```python\n(\"\"\"Line fit.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "line.py").write_text(tour)
    ended = rk.submit(rk.Job.module("jobs.line", working_dir=tmp_path)).wait(timeout_s=WAIT_S)
    assert ended.result().metrics["loss"] < 0.1
    assert len(ended.result().history()) == 100


def test_script_of_an_application_serves_it_until_ctrl_c(trained):
    command = [sys.executable, "-m", "jobs.digits_app", "--model", f"run:{trained.name}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as serving:
        try:
            url = serving.stdout.readline().split()[1]
            answer = httpx.post(url, json={"instances": [[0.0] * 64]}, timeout=60, trust_env=False)
            os.kill(serving.pid, signal.SIGINT)
            assert serving.wait(60) == 0
        finally:
            serving.kill()
    assert len(answer.json()["predictions"]) == 1
    with pytest.raises(NotFound):
        rk.attach("digits-app")


def service(**fields):
    app = {"name": "digits", "import_path": "jobs.digits_app:app", "model": "run:mission-train"} | fields
    return rk.Service(name="mission-digits", apps=(rk.App(**app),), working_dir=ROOT)


@pytest.fixture(scope="module")
def endpoint(trained):
    """Serve the trained model, with replicas from one to two."""
    assert trained.result().checkpoint
    quick = {"upscale_delay_s": 0.5, "look_back_period_s": 2.0, "target_ongoing_requests": 1}
    scaling = {"min_replicas": 1, "max_replicas": 2, **quick}
    made = rk.deploy(service(autoscaling_config=scaling, ray_actor_options={"num_cpus": 0.5}), "local")
    yield made
    made.delete()


def test_served_model_reads_digits(endpoint):
    from sklearn.datasets import load_digits

    digits = load_digits()
    instances = (digits.images[:50] / 16).tolist()
    answer = httpx.post(endpoint.url, json={"instances": instances}, timeout=60, trust_env=False)
    right = sum(a == b for a, b in zip(answer.json()["predictions"], digits.target[:50], strict=True))
    assert right >= 45


def test_service_is_listed_and_found_by_name(endpoint):
    assert rk.attach("mission-digits") == endpoint
    done = run("raykube", "service", "list")
    assert re.search(r"mission-digits +RUNNING", done.stdout)


def test_service_under_load_gets_a_second_replica(endpoint):
    stop = threading.Event()
    body = {"instances": [[0.0] * 64] * 64}

    def load():
        with httpx.Client(timeout=60, trust_env=False) as client:
            while not stop.is_set():
                client.post(endpoint.url, json=body)

    with ThreadPoolExecutor(8) as pool:
        for _ in range(8):
            pool.submit(load)
        try:
            until(lambda: "2 replicas" in endpoint.status().detail, "a replica is added", 120)
        finally:
            stop.set()


@pytest.mark.usefixtures("endpoint")
def test_route_of_another_service_is_a_conflict():
    other = rk.Service(name="other", apps=(rk.App(name="other", import_path="jobs.digits_app:app"),), working_dir=ROOT)
    with pytest.raises(Conflict, match="route_prefix '/'"):
        rk.deploy(other, "local")


@pytest.mark.usefixtures("trained")
def test_service_that_cannot_start_says_serve_s_own_words():
    broken = rk.App(name="broken", import_path="jobs.digits_app:app", args={"modle": "x"}, route_prefix="/broken")
    with pytest.raises(rk.BackendError, match=r"args\.modle: is not known"):
        rk.deploy(rk.Service(name="mission-broken", apps=(broken,), working_dir=ROOT), "local")
    rk.attach("mission-broken").delete()


def test_result_and_log_are_there_when_the_head_is_gone(trained, fingerprint):
    done = run("raykube", "cluster", "delete", "local")
    assert done.returncode == 0, done.stderr
    assert head.current() is None
    seen = run("raykube", "job", "result", "--json", trained.name)
    assert '"accuracy"' in seen.stdout
    assert weights("\n".join(trained.logs())) == fingerprint
    assert trained.status().state == "SUCCEEDED"
    assert list(rk.attach("mission-slow").logs(source="rank-1")) == ["printed once by 1", "warned by 1"]
    assert list(trained.logs(source="rank-1")) == [], "it printed nothing"
    for kept in Path(trained.status().storage).rglob("rank-1.log"):
        kept.unlink()
    with pytest.raises(
        rk.BackendError, match="the output of rank 1 of mission-train is gone: it was lost with the head"
    ):
        list(trained.logs(source="rank-1"))


@pytest.mark.long
def test_demo_asks_what_it_has_trained_and_leaves_nothing_running(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYKUBE_HOME", str(tmp_path / ".demo"))  # where a copy of the demo keeps what it makes
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")  # as make does
    for folder in ("docs", "jobs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    command = [sys.executable, "docs/demo.py"]
    out = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT, text=True) as demo:
        try:
            running = until(lambda: head.current() or demo.poll() is not None, "its head runs", 120)
            said, _ = demo.communicate(timeout=2 * WAIT_S)
        finally:
            demo.kill()
            if left := head.current():
                starting.retire(left)
    assert demo.returncode == 0, said
    (url,) = re.findall(r"\$ POST (\S+)", said)
    assert url.startswith("http://127.0.0.1:")
    ((shown, read),) = re.findall(r"the served model read a (\d) as (\d)", said)
    assert f'{{"predictions":[{read}]}}' in said.replace(" ", "")
    assert (shown, "nothing is left running" in said) == ("8", True)
    assert left is None
    until(lambda: not processes_of(running), "no process of its head is left", 120)
