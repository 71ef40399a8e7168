"""The owned head: who dies, what survives, and what the next command finds."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import time
import uuid
from pathlib import Path

import psutil
import pytest

import raykube as rk
from raykube import api
from raykube.backends.local import head, records, starting
from tests.basics import until
from tests.support import BIN

pytestmark = pytest.mark.local
WAIT_S = 120


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Give the test a head of its own; it is ended afterwards."""
    monkeypatch.setenv("RAYKUBE_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    running = head.current()
    if running:
        starting.retire(running)


@pytest.fixture
def code(tmp_path):
    """Return a working directory with scripts."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "hello.py").write_text("print('hello')\n")
    (folder / "exits.py").write_text("import sys\nsys.exit(3)\n")
    (folder / "ends.py").write_text(
        "import signal, sys, time\n"
        "def end(*_): time.sleep(1); print('last words', flush=True); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\nprint('started', flush=True)\ntime.sleep(600)\n"
    )
    # Writes to its storage for as long as it lives, which SIGTERM does not end.
    (folder / "writes.py").write_text(
        "import itertools, os, pathlib, signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "folder = pathlib.Path(os.environ['RAYKUBE_STORAGE'], os.environ['RAYKUBE_RUN_NAME'])\n"
        "print('started', flush=True)\nfor n in itertools.count():\n"
        "    folder.mkdir(parents=True, exist_ok=True)\n    (folder / str(n % 100)).touch()\n"
    )
    # Ends when the file `go` appears: the test decides when.
    (folder / "waits.py").write_text(
        "import pathlib, sys, time\nprint('started', flush=True)\n"
        "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.05)\nprint('went on', flush=True)\n"
    )
    return folder


def job(code, *words, **fields):
    fields = {"name": f"h-{uuid.uuid4().hex[:8]}"} | fields
    return rk.Job(entrypoint=" ".join(["python", *map(str, words)]), working_dir=code, **fields)


def started(run):
    """Wait for the script's first line."""
    return next(line for line in run.logs(follow=True) if line == "started")


def raykube(code, *words, **options):
    """Start a raykube command and return its process."""
    command = [str(BIN / "raykube"), *map(str, words)]
    return subprocess.Popen(command, cwd=code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def processes_of(running):
    """Return the living processes of a head."""
    return [process for process in psutil.process_iter() if is_of(process, running)]


def is_of(process, running):
    """Whether a process belongs to a head and lives."""
    with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
        ours = os.getsid(process.pid) == running.ray_pid or process.environ().get("RAYKUBE_HEAD_ID") == running.id
        return ours and process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.usefixtures("home")
def test_killed_head_fails_its_run_with_the_reason_and_the_next_submit_resumes_on_a_new_head(code, tmp_path):
    go = tmp_path / "go"
    work = job(code, "waits.py", go)
    run = rk.submit(work)
    started(run)
    first = head.current()
    os.kill(first.ray_pid, signal.SIGKILL)
    with pytest.raises(rk.RunFailed) as raised:
        run.wait(timeout_s=WAIT_S)
    assert raised.value.reason == "HeadDied"
    assert "started" in raised.value.tail
    assert "same name" in raised.value.next_step
    go.touch()
    again = rk.submit(work).wait(timeout_s=WAIT_S)
    assert again.status().attempt == 2
    assert head.current().id != first.id
    until(lambda: not processes_of(first), "no process of the head is left", WAIT_S)


def test_killed_keeper_is_replaced_and_the_run_goes_on(code, tmp_path):
    run = rk.submit(job(code, "waits.py", tmp_path / "go"))
    started(run)
    first = head.current()
    os.kill(first.keeper_pid, signal.SIGKILL)
    rk.submit(job(code, "hello.py")).wait(timeout_s=WAIT_S)
    second = head.current()
    assert (second.id, second.ray_pid) == (first.id, first.ray_pid)
    assert second.keeper_pid != first.keeper_pid
    (tmp_path / "go").touch()
    assert run.wait(timeout_s=WAIT_S).status().state == "SUCCEEDED"


def test_killed_submitter_leaves_the_run_which_is_attached_by_name(code, tmp_path):
    name = f"h-{uuid.uuid4().hex[:8]}"
    submitter = raykube(code, "job", "submit", "--name", name, "--", "python", "waits.py", tmp_path / "go")
    assert any(line == "started\n" for line in submitter.stdout)
    submitter.kill()
    submitter.communicate()
    run = rk.attach(name)
    assert run.status().state == "RUNNING"
    (tmp_path / "go").touch()
    assert run.wait(timeout_s=WAIT_S).status().state == "SUCCEEDED"


def test_deleted_name_can_be_used_for_another_job(code):
    first = rk.submit(job(code, "hello.py")).wait(timeout_s=WAIT_S)
    first.delete()
    with pytest.raises(rk.RunFailed):
        rk.submit(job(code, "exits.py", name=first.name)).wait(timeout_s=WAIT_S)


def test_stop_of_a_run_that_was_never_sent_stops_it(code):
    sent = rk.submit(job(code, "hello.py")).wait(timeout_s=WAIT_S)
    record = records.load(sent.name)
    records.save(records.Record(**{**vars(record), "name": f"{sent.name}-y", "submitted": time.time()}))
    run = rk.attach(f"{sent.name}-y")
    run.stop()
    assert run.status().state == "STOPPED"


def test_last_words_of_a_stopped_run_are_in_its_log(code):
    run = rk.submit(job(code, "ends.py"))
    started(run)
    run.stop()
    assert run.status().state == "STOPPED"
    assert list(run.logs())[-1] == "last words"


def test_job_that_the_head_refuses_has_failed_with_its_words(code):
    plan = rk.plan(job(code, "hello.py"))
    with pytest.raises(rk.BackendError) as raised:
        api.start(dataclasses.replace(plan, body=({**plan.body[0], "no_such_field": 1},)))
    assert "no_such_field" in raised.value.why
    assert rk.attach(plan.name).status().failure.reason == "Refused"


def test_killed_keeper_is_replaced_by_whoever_waits(code):
    (code / "twice.py").write_text(
        "import os, sys, time\ntime.sleep(3)\nsys.exit(os.environ['RAYKUBE_ATTEMPT'] == '1')\n"
    )
    run = rk.submit(job(code, "twice.py", max_retries=1))
    until(lambda: run.status().state == "RUNNING", "it runs", WAIT_S)
    os.kill(head.current().keeper_pid, signal.SIGKILL)
    assert run.wait(timeout_s=WAIT_S).status().attempt == 2


@pytest.mark.usefixtures("home")
def test_client_killed_while_the_head_starts_leaves_one_head(code):
    first = raykube(code, "job", "submit", "--", "python", "hello.py")
    until(head.read_starting, "a head is being started", WAIT_S)
    first.kill()
    first.communicate()
    begun = head.read_starting()
    rk.submit(job(code, "hello.py")).wait(timeout_s=WAIT_S)
    assert head.current().id == begun.id


def test_record_that_was_never_sent_is_sent_by_the_keeper(code):
    sent = rk.submit(job(code, "hello.py")).wait(timeout_s=WAIT_S)
    record = records.load(sent.name)
    orphan = records.Record(**{**vars(record), "name": f"{sent.name}-x", "submitted": time.time()})
    records.save(orphan)
    run = rk.attach(orphan.name)
    assert run.status().detail == "not on the head yet"
    assert run.wait(timeout_s=WAIT_S).status().state == "SUCCEEDED"


@pytest.mark.usefixtures("home")
def test_ctrl_c_detaches_from_the_head_that_it_started_and_says_how_to_come_back(code, tmp_path):
    name = f"h-{uuid.uuid4().hex[:8]}"
    words = ("job", "submit", "--name", name, "--", "python", "waits.py", tmp_path / "go")
    submitter = raykube(code, *words, start_new_session=True)
    assert any(line == "started\n" for line in submitter.stdout)
    running = head.current()
    os.killpg(submitter.pid, signal.SIGINT)  # as a terminal does: all that is in its foreground
    _, errors = submitter.communicate(timeout=30)
    assert submitter.returncode == 130
    assert f"raykube job logs -f {name}" in errors
    assert rk.attach(name).status().state == "RUNNING"
    (tmp_path / "go").touch()
    assert rk.attach(name).wait(timeout_s=WAIT_S).status().state == "SUCCEEDED"
    assert head.current() == running
    assert head.alive(running.keeper_pid, running.keeper_born)
    # By its session Ray's processes are found when it is ended.
    assert os.getsid(running.ray_pid) == running.ray_pid


def test_exit_code_of_submit_and_wait_is_the_run_s_fate(code):
    name = f"h-{uuid.uuid4().hex[:8]}"
    good = raykube(code, "job", "submit", "--json", "--", "python", "hello.py")
    bad = raykube(code, "job", "submit", "--json", "--name", name, "--", "python", "exits.py")
    out, _ = good.communicate(timeout=WAIT_S)
    assert (good.returncode, json.loads(out)["state"]) == (0, "SUCCEEDED")
    for _ in ("submit", "wait"):
        out, errors = bad.communicate(timeout=WAIT_S)
        assert (bad.returncode, json.loads(out)["failure"]["exit_code"]) == (1, 3)
        assert "EntrypointFailed" in errors
        bad = raykube(code, "job", "wait", "--json", name)
    bad.communicate(timeout=WAIT_S)


@pytest.mark.usefixtures("home")
def test_two_first_submits_at_once_start_one_head(code):
    both = [raykube(code, "job", "submit", "--json", "--", "python", "hello.py") for _ in range(2)]
    states = [json.loads(each.communicate(timeout=WAIT_S)[0])["state"] for each in both]
    assert states == ["SUCCEEDED", "SUCCEEDED"]
    assert len({record.head for record in records.every("job")}) == 1


@pytest.mark.usefixtures("home")
def test_state_of_a_dead_head_heals(code):
    rk.submit(job(code, "hello.py")).wait(timeout_s=WAIT_S)
    running = head.current()
    os.kill(running.keeper_pid, signal.SIGKILL)
    head.kill_processes(running)
    # The kernel takes a moment to end what was killed.
    until(lambda: head.current() is None, "the head is gone", WAIT_S)
    assert rk.submit(job(code, "hello.py")).wait(timeout_s=WAIT_S).status().state == "SUCCEEDED"
    assert head.current().id != running.id


@pytest.mark.usefixtures("home")
def test_idle_head_ends_by_itself_and_leaves_results_but_no_process_and_no_folder(code, monkeypatch):
    monkeypatch.setenv("RAYKUBE_IDLE_TIMEOUT_S", "1")
    run = rk.submit(job(code, "hello.py")).wait(timeout_s=WAIT_S)
    running = head.read_state()
    until(lambda: head.read_state() is None, "the head is gone", WAIT_S)
    until(lambda: not processes_of(running), "no process of it is left", WAIT_S)
    until(lambda: not Path(running.folder).exists(), "its folder is removed", WAIT_S)
    assert run.status().state == "SUCCEEDED"
    assert "hello" in list(run.logs())


def test_token_is_in_no_command_line_and_no_log(code):
    rk.submit(job(code, "hello.py")).wait(timeout_s=WAIT_S)
    running, token = head.current(), head.token()
    assert (head.home() / "token").stat().st_mode & 0o077 == 0
    assert processes_of(running)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            assert token not in " ".join(process.cmdline())
    logs = [*Path(running.session_dir, "logs").rglob("*"), head.home() / "ray.log", head.home() / "keeper.log"]
    assert not [path for path in logs if path.is_file() and token.encode() in path.read_bytes()]


def test_files_of_the_head_s_ray_are_closed_to_others(code):
    rk.submit(job(code, "hello.py")).wait(timeout_s=WAIT_S)
    folders = Path(head.current().session_dir, "sockets").parents
    assert [folder for folder in folders if folder.stat().st_mode & 0o077 == 0]


def test_head_refuses_who_has_no_token(code):
    import httpx

    rk.submit(job(code, "hello.py")).wait(timeout_s=WAIT_S)
    assert httpx.get(f"{head.current().address}/api/jobs/", trust_env=False).status_code == 401


@pytest.mark.usefixtures("home")
def test_another_ray_on_the_machine_is_neither_used_nor_harmed(code):
    script = (
        "import ray, sys\n"
        "ray.init(address='local', num_cpus=1, include_dashboard=False, log_to_driver=False)\n"
        "print(ray.get_runtime_context().gcs_address, flush=True)\n"
        "sys.stdin.readline()\n"
        "print(ray.get(ray.remote(lambda: 'alive').remote()), flush=True)\n"
    )
    environ = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    other = subprocess.Popen(
        [str(BIN / "python"), "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environ,
    )
    other_address = other.stdout.readline().strip()
    (code / "where.py").write_text("import os\nprint('address', os.environ['RAY_ADDRESS'])\n")
    run = rk.submit(job(code, "where.py")).wait(timeout_s=WAIT_S)
    assert f"address {other_address}" not in list(run.logs())
    starting.retire(head.current())
    out, _ = other.communicate("\n", timeout=WAIT_S)
    assert out.strip() == "alive"


def test_delete_removes_the_record_the_storage_and_nothing_else(code):
    kept = rk.submit(job(code, "hello.py")).wait(timeout_s=WAIT_S)
    run = rk.submit(job(code, "hello.py")).wait(timeout_s=WAIT_S)
    storage = Path(records.load(run.name).storage)
    (storage / run.name).mkdir(parents=True)
    run.delete()
    assert not (storage / run.name).exists()
    assert not records.folder(run.name).exists()
    assert kept.status().state == "SUCCEEDED"


def test_delete_waits_until_the_run_writes_no_more(code):
    run = rk.submit(job(code, "writes.py"))
    started(run)
    storage = Path(records.load(run.name).storage) / run.name
    until(storage.exists, "the run has begun to keep something", WAIT_S)
    run.delete()
    assert not storage.exists()
    assert run.name not in [other.name for other in rk.runs()]


def test_code_is_kept_until_the_last_run_of_it_is_deleted(code, tmp_path):
    def package(run):
        uri = records.load(run.name).body["runtime_env"]["working_dir"]
        return Path(uri.removeprefix("file://"))

    other = rk.submit(job(code, "hello.py")).wait(timeout_s=WAIT_S)
    (code / "hello.py").write_text(f"print({str(tmp_path)!r})\n")  # which no other test has
    first, last = (rk.submit(job(code, "hello.py")).wait(timeout_s=WAIT_S) for _ in range(2))
    path = package(last)
    first.delete()
    assert path.exists()
    last.delete()
    assert not path.exists()
    assert package(other).exists()
