"""The backend of this machine, as far as it needs no Ray."""

import contextlib
import fcntl
import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

import raykube as rk
from raykube import handles, package, wire
from raykube.backends import Status
from raykube.backends.local import backend, disk, head, keeper, lifecycle, observe, records, services, starting, zips
from raykube.backends.local.backend import Local
from raykube.errors import ConfigError, Conflict, Failure, NotFound, Unreachable, WaitTimeout
from tests.servers import Quiet, serving
from tests.support import file_size_limited, run_without_root_rights, typed


class Ray:
    """The answers of a head: of one job, or that it has none. What it is asked for is kept in `asked`."""

    def __init__(self, job=None, *, takes=True):
        self.details, self.takes, self.asked = job, takes, []

    def job(self, submission_id):
        if self.details is None:
            raise NotFound(f"no {submission_id}")
        return self.details

    def stop(self, submission_id):
        self.asked.append(f"stop {submission_id}")

    def no_answer(self, *_):
        raise Unreachable("no answer")

    def submit(self, body):
        self.asked.append(f"submit {body['submission_id']}")
        if not self.takes:
            self.no_answer()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Give the test a home of its own."""
    monkeypatch.setenv("RAYKUBE_HOME", str(tmp_path / "home"))
    records.ensure_home()
    return tmp_path / "home"


@pytest.fixture
def running(home):
    """Return a head of which only the files are there."""
    session = home / "ray" / "session"
    (session / "logs").mkdir(parents=True)
    return head.Head(
        id="h",
        keeper_pid=os.getpid(),
        keeper_born="",
        ray_pid=os.getpid(),
        ray_born="",
        address="http://127.0.0.1:1",
        folder=str(session.parent),
        session_dir=str(session),
        serve_port=1,
        python="python",
        started=0.0,
        host=head.here(),
    )


@pytest.fixture
def record(home):
    """Return the record of a run that was submitted long ago, with a retry."""
    made = records.Record(
        name="a",
        kind="job",
        plan_hash="h",
        plan_yaml="",
        body={"runtime_env": {}},
        storage=str(home / "runs"),
        submitted=1.0,
        nonce="n",
        head="h",
        max_retries=1,
        pending_timeout_s=900,
    )
    records.save(made)
    return made


@pytest.fixture
def code(tmp_path):
    """Return a working directory with a script."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "hello.py").write_text("print('hello')\n")
    return folder


def test_relative_home_reaches_the_keeper_and_its_jobs_as_an_absolute_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYKUBE_HOME", ".rk")
    assert starting.keeper_environ()["RAYKUBE_HOME"] == str(tmp_path / ".rk")


@pytest.mark.usefixtures("home")
def test_jobs_of_the_head_run_the_python_that_started_it_and_its_agent_takes_no_fixed_port(monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin")
    assert keeper.ray_environ("h1")["PATH"] == os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin"])
    assert "--dashboard-agent-listen-port=0" in keeper.ray_command(8265, "/tmp/x")


@pytest.mark.parametrize("cpus", [0.5, 1])
def test_driver_larger_than_the_machine_is_refused_whatever_its_workers_need(code, cpus):
    job = rk.Job(entrypoint="python hello.py", working_dir=code, entrypoint_num_cpus=10_000)
    with pytest.raises(rk.ConfigError, match="entrypoint_num_cpus: the driver needs 10000 CPUs; this machine has"):
        rk.plan(job, rk.Cluster.local(cpus=cpus))


def planned_model(code, reference):
    """Return the model that an application gets whose service was planned with this reference."""
    app = rk.App(import_path="hello:app", model=reference)
    plan = rk.plan(rk.Service(name="s", apps=(app,), working_dir=code), "local")
    return plan.body[0]["args"]["model"]


def test_relative_path_of_a_model_is_planned_as_an_absolute_one(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert planned_model(code, "model") == str(tmp_path / "model")


@pytest.mark.parametrize("reference", ["models:/digits/1", "s3://bucket/model", "run:trained"])
def test_model_that_is_no_path_is_planned_as_it_is_named(code, tmp_path, monkeypatch, reference):
    monkeypatch.setenv("RAYKUBE_STORAGE", str(tmp_path))
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "result.json").write_text("{}")
    assert planned_model(code, reference) == reference


def test_retry_whose_sending_failed_is_sent_again_and_has_waited_since_it_was_noted(record, running):
    records.set_attempt("a", 2)
    noted = int(time.time()) - 60
    os.utime(records.folder("a") / "attempt", (noted, noted))
    ray = Ray(takes=False)
    for _ in range(2):
        with pytest.raises(Unreachable):
            keeper._look_after(record, running, ray)
    assert ray.asked == ["submit a-n-2"] * 2
    assert (records.final("a"), records.noted(record)) == (None, noted)


class Learning(Ray):
    """A head that knows a job once its POST is through; `meanwhile` happens while that is under way."""

    def __init__(self, meanwhile=lambda: None, **jobs):
        super().__init__()
        self.meanwhile, self.states = meanwhile, {name.replace("_", "-"): state for name, state in jobs.items()}

    def job(self, submission_id):
        if submission_id in self.states:
            return {"status": self.states[submission_id], "message": ""}
        raise NotFound(f"no {submission_id}")

    def submit(self, body):
        super().submit(body)
        self.meanwhile()
        self.states[body["submission_id"]] = "RUNNING"

    def stop(self, submission_id):
        if self.job(submission_id):
            super().stop(submission_id)
            self.states[submission_id] = "STOPPED"


@pytest.fixture
def learning(running, monkeypatch):
    """Let such a head be the one that runs, with a keeper."""

    def run(*how, **jobs):
        ray = Learning(*how, **jobs)
        head.home().mkdir(exist_ok=True)
        head.write_state(replace(running, **dict.fromkeys(("keeper_born", "ray_born"), head.born(os.getpid()))))
        monkeypatch.setattr(head, "api", lambda _: ray)
        return ray

    return run


def test_stop_of_a_run_whose_retry_is_being_sent_stops_that(record, running, learning):
    def stop():
        records.request_stop("a")
        seen.append(Local().status("a").state)

    seen = []
    ray = learning(stop, a_n_1="FAILED")
    keeper._tick(running, ray)
    assert (ray.asked, seen) == (["submit a-n-2"], ["PENDING"])
    Local().stop("a")
    assert ray.states["a-n-2"] == records.final(record.name).state == "STOPPED"


def sent_anew(record, first, head="h"):
    """Have the name of a run sent again: after its end, or, with 1, after it was deleted. Return the new record."""
    new = replace(record, nonce="new", submitted=time.time(), first=first, head=head)
    records.save(new)
    records.reopen(record.name, first)
    return new


@pytest.mark.parametrize("first", [1, 2])
def test_stop_of_a_run_is_over_once_another_has_its_name(record, learning, first):
    def stop(_):
        records.set_final(Status("a", "job", "STOPPED"))
        sent_anew(record, first)
        ray.states[f"a-new-{first}"] = "RUNNING"

    ray = learning(a_n_1="RUNNING")
    ray.stop = stop
    Local().stop("a")
    assert (ray.states[f"a-new-{first}"], records.ending(record.name)) == ("RUNNING", None)


def test_delete_leaves_alone_what_is_sent_by_the_name_while_it_waits_for_ray(record, learning):
    def sent_while_asked(_):
        storage.mkdir(parents=True, exist_ok=True)
        ray.job = Learning().job
        sent.append(sent_anew(record, 2))
        return {"status": "RUNNING"}

    ray, storage, sent = learning(), Path(record.storage, "a"), []
    ray.job = sent_while_asked
    records.set_final(Status("a", "job", "STOPPED"))
    with pytest.raises(NotFound, match="job a was deleted or sent again meanwhile"):
        Local().delete("a")
    assert storage.exists()
    assert [records.load("a")] == sent


def test_stop_of_a_run_that_is_noted_before_its_attempt_is_sent_stops_that(record, running):
    def end():
        records.set_final(Status("a", "job", "STOPPED"))

    for meanwhile in (end, lambda: records.remove("a")):
        ray = Learning(meanwhile)
        observe.send(record, 1, running, ray)
        assert ray.asked == ["submit a-n-1", "stop a-n-1"]


@pytest.mark.parametrize("limit", [None, 1])
def test_run_that_is_to_end_while_it_is_being_sent_is_stopped_in_ray(record, running, monkeypatch, limit):
    def end():
        if limit is None:
            records.request_stop("a")
        keeper._look_after(late, running, ray)  # Ray does not know it yet

    late, ray = replace(record, submitted=time.time() - 2, timeout_s=limit), Learning(end)
    records.save(late)
    monkeypatch.setattr(lifecycle, "STOPS_WITHIN_S", -1)  # the POST takes longer than that
    records.set_attempt("a", 1)
    observe.send(late, 1, running, ray)
    keeper._look_after(late, running, ray)
    assert (ray.asked, records.final("a")) == (["submit a-n-1", "stop a-n-1"], None)
    keeper._look_after(late, running, ray)
    assert records.final("a").state == ("FAILED" if limit else "STOPPED")


@pytest.mark.parametrize(("first", "state"), [(2, "FAILED"), (1, "STOPPED"), (1, "FAILED")])
def test_keeper_leaves_alone_what_was_sent_anew_since_it_read_the_record(record, running, first, state):
    ray = Learning(a_n_1=state)
    sent_anew(record, first)
    keeper._look_after(record, running, ray)
    assert (ray.asked, records.final("a"), records.attempt("a")) == ([], None, first)


@pytest.mark.parametrize("first", [1, 2])
def test_end_of_a_run_is_not_noted_as_that_of_the_next_of_its_name(record, running, first):
    running.driver_log("a-n-1").write_text("of the first\n")
    new = sent_anew(record, first)
    assert observe.settle(record, Status("a", "job", "STOPPED", attempt=first), running).state == "STOPPED"
    assert observe.settle_lost(record, None).failure.reason == "HeadDied"
    assert records.final("a") is None
    assert not observe.log_path(new, 1, None).exists()


def test_run_that_is_sent_again_on_a_new_head_while_somebody_looks_has_not_failed(record, learning, monkeypatch):
    learning(a_new_2="RUNNING")
    records.save(replace(record, head="gone"))
    monkeypatch.setattr(starting, "keep_watched", lambda: sent_anew(record, 2))
    assert Local().status("a").state == "RUNNING"
    assert records.final("a") is None


@pytest.mark.usefixtures("record")
def test_keeper_goes_on_when_it_cannot_even_log(running):
    head.home().mkdir()
    head.token()
    head.write_state(running)
    tick = "from raykube.backends.local import head, keeper; running = head.read_state()\n"
    tick += "keeper._tick(running, head.api(running)); print('went on')"
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", tick]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, check=False)
    assert done.stdout == "went on\n"


@pytest.mark.usefixtures("home")
def test_keeper_that_cannot_adopt_the_head_is_told_by_its_own_words_and_not_kept():
    for _ in range(2):
        with pytest.raises(rk.BackendError, match="the keeper of the Ray head on this machine did not start") as told:
            starting._spawn_keeper("h", "--adopt")
    assert told.value.why == "there is no head to adopt"
    assert "keeper.log" in told.value.next_step
    assert [keeper.returncode for keeper in starting._keepers[:-1] if keeper.returncode is not None] == []


def test_client_of_the_head_before_keeps_no_connection(running):
    def ports():
        return {found.raddr.port for found in psutil.Process().net_connections() if found.raddr}

    head.home().mkdir()
    with serving(Dashboard) as before, serving(Dashboard) as now:
        mine = {server.server_port for server in (before, now)}
        for server in (before, now):
            head.api(replace(running, address=f"http://127.0.0.1:{server.server_port}")).version()
        assert ports() & mine == {now.server_port}


class Empty(Quiet):
    """A head that has no job yet, and takes each."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        self.answer(404, {})

    def do_POST(self):  # noqa: N802
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(body["submission_id"])
        self.answer(200, {})


def test_run_that_cannot_be_sent_is_refused_and_the_keeper_looks_after_the_next(record, running):
    head.home().mkdir()
    for name, text in {"a": "caf\udce9", "b": "caf"}.items():
        records.save(replace(record, name=name, pending_timeout_s=None, body={"entrypoint": text, "runtime_env": {}}))
    with serving(Empty) as server:
        keeper._tick(running, head.api(replace(running, address=f"http://127.0.0.1:{server.server_port}")))
    assert (records.final("a").failure.reason, records.final("b")) == ("Refused", None)
    assert server.asked == ["b-n-1"]


def test_stopped_run_ends_once_ray_has_stopped_it_with_all_that_it_printed(record, running):
    ray, log = Ray({"status": "RUNNING"}), running.driver_log("a-n-1")
    log.write_text("started\n")
    records.request_stop("a")
    keeper._look_after(record, running, ray)
    assert (ray.asked, records.final("a")) == (["stop a-n-1"], None)
    log.write_text("started\nlast words\n")
    ray.details = {"status": "STOPPED"}
    keeper._look_after(record, running, ray)
    assert records.final("a").state == "STOPPED"
    assert observe.log_path(record, 1, None).read_text() == "started\nlast words\n"


def test_stop_that_ray_does_not_heed_is_timed_from_when_ray_was_first_asked(record, running):
    ray, before = Ray({"status": "PENDING"}), time.time()
    records.request_stop("a")
    keeper._look_after(record, running, ray)
    since = records.ending("a").since
    assert since is not None
    assert since >= before
    keeper._look_after(record, running, ray)
    assert (records.ending("a").since, records.final("a")) == (since, None)
    records.set_ending("a", records.Ending(since=since - 60))
    keeper._look_after(record, running, ray)
    assert records.final("a").state == "STOPPED"


class Listed(Quiet):
    """A head that lists jobs, of whoever sent them, in the states of its server's; with None it is silent."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        states = self.server.states
        self.answer(503 if states is None else 200, [{"status": state} for state in states or ()])


def unused_for(seconds):
    """Have the head been used last so many seconds ago."""
    os.utime(head.home() / "used", (time.time() - seconds,) * 2)


@pytest.fixture
def unused(running, monkeypatch):
    """Give a head that nobody has used for a minute, which is too long, and its server."""
    monkeypatch.setenv("RAYKUBE_IDLE_TIMEOUT_S", "1")
    head.home().mkdir()
    head.touch()
    unused_for(60)
    with serving(Listed) as server:
        server.states = ["SUCCEEDED"]
        yield replace(running, address=f"http://127.0.0.1:{server.server_port}"), server


@pytest.mark.parametrize(
    ("states", "idle"),
    [([], True), (["SUCCEEDED"], True), (["PENDING"], False), (["SUCCEEDED", "RUNNING"], False), (None, False)],
)
def test_head_is_idle_once_it_is_known_that_nothing_runs_on_it_whoever_sent_it(unused, states, idle):
    found, server = unused
    server.states = states
    assert keeper._is_idle(found, head.api(found)) is idle


@pytest.mark.parametrize("text", [None, "{"])
def test_head_is_not_idle_while_a_run_has_not_ended_or_cannot_be_read(unused, record, text):
    found, _ = unused
    if text:
        records.set_final(Status(record.name, "job", "SUCCEEDED"))
        (records.folder(record.name) / "record.json").write_text(text)
    assert not keeper._is_idle(found, head.api(found))


def test_head_is_idle_once_the_last_run_has_ended(unused, record):
    found, _ = unused
    records.set_final(Status(record.name, "job", "SUCCEEDED"))
    assert keeper._is_idle(found, head.api(found))


@pytest.mark.parametrize(("seconds", "idle"), [(60, False), (590, False), (601, True)])
def test_head_that_has_given_no_answer_for_long_is_ended_as_idle(unused, seconds, idle):
    found, server = unused
    server.states = None
    unused_for(seconds)
    assert keeper._is_idle(found, head.api(found)) is idle


def test_head_is_used_while_anything_runs_on_it(unused):
    found, server = unused
    server.states = ["RUNNING"]
    assert not keeper._is_idle(found, head.api(found))
    assert time.time() - (head.home() / "used").stat().st_mtime < 30


def test_head_that_was_used_a_moment_ago_is_not_idle(unused):
    found, _ = unused
    head.touch()
    assert not keeper._is_idle(found, head.api(found))


def test_head_is_idle_where_its_folder_was_removed(unused):
    found, server = unused
    server.states = ["RUNNING"]
    (head.home() / "used").unlink()
    assert keeper._is_idle(found, head.api(found))


def test_deadline_is_the_reason_whichever_keeper_sees_the_run_stopped_for_it(record, running):
    late = replace(record, timeout_s=1)
    ray = Ray({"status": "RUNNING"})
    keeper._look_after(late, running, ray)
    assert (ray.asked, records.final("a")) == (["stop a-n-1"], None)
    ray.details = {"status": "STOPPED"}
    keeper._look_after(late, running, ray)  # nothing but the record is left of the first look
    assert (records.final("a").state, records.final("a").failure.reason) == ("FAILED", "DeadlineExceeded")


def test_time_that_ray_has_to_stop_a_run_counts_from_when_it_was_first_asked(record, running):
    asked = records.Ending(since=time.time() - 5)
    records.set_ending("a", asked)
    ray = Ray({"status": "RUNNING"})
    keeper._look_after(record, running, ray)
    assert (ray.asked, records.ending("a")) == (["stop a-n-1"], asked)


def test_run_whose_head_dies_while_it_is_asked_has_failed(record, learning):
    def die(_):
        (head.home() / "state.json").unlink()
        ray.no_answer()

    ray = learning()
    ray.job = die
    assert Local().status("a").failure.reason == "HeadDied"
    assert records.final(record.name).state == "FAILED"


def test_run_that_ray_was_stopping_when_its_head_died_was_stopped(record, running):
    records.set_ending("a", records.Ending(since=2.0))
    assert observe.settle_lost(record, running).state == "STOPPED"


@pytest.mark.parametrize(
    ("host", "where"),
    [("node7 pid:[1]", "node7"), (f"{socket.gethostname()} pid:[1]", f"another container on {socket.gethostname()}")],
)
def test_head_of_another_machine_is_neither_taken_for_dead_nor_replaced(record, running, code, host, where):
    head.home().mkdir()
    head.keep()
    head.write_state(replace(running, ray_born="then", host=host))
    records.save(replace(record, name="b", kind="service", body=[]))
    asks = [
        lambda: Local().status("a"),
        lambda: Local().stop("a"),
        lambda: Local().delete("b"),
        lambda: Local().status("b"),
        lambda: rk.submit(rk.Job(entrypoint="python hello.py", working_dir=code), "local"),
        backend.end_head,
    ]
    for ask in asks:
        with pytest.raises(Unreachable, match=f"the Ray head of .* runs on {where}\n"):
            ask()
    assert (records.final("a"), records.load("b").head) == (None, "h")
    assert head.read_state().host == host
    assert Path(running.session_dir).exists()


def test_head_that_had_another_machine_and_has_no_keeper_any_more_is_dead(running):
    head.home().mkdir()
    head.write_state(replace(running, ray_born="then", host="node7 pid:[1]"))
    assert head.current() is None
    kept = head.home() / "kept"
    kept.touch()
    assert head.current() is None
    with kept.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Unreachable):
            head.current()
    assert head.current() is None


def test_head_of_an_older_version_is_known(running):
    head.home().mkdir()
    said = {key: value for key, value in vars(running).items() if key not in ("folder", "host")}
    (head.home() / "state.json").write_text(json.dumps(said | {"ray_born": head.born(os.getpid())}))
    assert head.current().ray_pid == running.ray_pid


def test_folder_that_can_be_no_runs_is_left_alone(record):
    assert records.load("a") == record
    for name in (".ipynb_checkpoints", "@eaDir", "a copy"):
        (records.folder("a").parent / name).mkdir()
    assert [each.name for each in records.every("job")] == ["a"]


def test_run_that_has_ended_is_told_of_wherever_the_head_runs_now(record, running):
    running.driver_log("a-n-1").write_text("said\n")
    observe.settle(record, Status("a", "job", "SUCCEEDED"), running)
    head.home().mkdir()
    head.write_state(replace(running, ray_born="then", host="node7 pid:[1]"))
    assert Local().status("a").state == "SUCCEEDED"
    assert list(Local().logs("a", follow=True)) == ["said"]
    Local().delete("a")
    assert not records.folder("a").exists()


def test_head_that_this_machine_had_under_another_name_is_its_own(running):
    head.home().mkdir()
    alive = replace(running, ray_born=head.born(os.getpid()), host="of-yesterday pid:[1]")
    head.write_state(alive)
    assert head.current() == alive


def test_lost_run_is_told_of_also_where_its_end_cannot_be_noted(record):
    records.folder("a").chmod(0o500)
    done = run_without_root_rights("raykube", "job", "list", "--json")
    records.folder("a").chmod(0o700)
    assert [run["state"] for run in json.loads(done.stdout)] == ["FAILED"]
    assert records.final(record.name) is None


@pytest.mark.parametrize("log", ["", "last words\n"])
def test_end_of_a_run_that_a_full_disk_takes_no_note_of_is_told(running, record, learning, log):
    learning(a_n_1="SUCCEEDED")
    running.driver_log("a-n-1").write_text(log)
    with file_size_limited(0):
        ended = handles.Run("a", Local()).wait(timeout_s=0)
        (listed,) = handles.statuses([ended])
    assert (listed.state, records.final(record.name)) == ("SUCCEEDED", None)


def test_run_that_is_stopped_before_it_was_sent_ends_also_on_a_full_disk(record, learning):
    learning()
    records.request_stop("a")
    with file_size_limited(0):
        assert Local().status(record.name).state == "STOPPED"
    assert records.final("a") is None


@pytest.mark.usefixtures("record")
def test_stop_of_a_run_that_has_ended_writes_nothing():
    records.set_final(Status("a", "job", "SUCCEEDED"))
    Local().stop("a")
    assert records.ending("a") is None


@pytest.mark.parametrize("words", [("cluster", "delete", "local"), ("service", "delete", "s")])
def test_home_that_is_only_read_is_named_without_a_traceback(home, record, words):
    records.save(replace(record, name="s", kind="service", body=[], head=""))
    home.chmod(0o500)
    done = run_without_root_rights("raykube", *words)
    home.chmod(0o700)
    assert done.stderr.startswith(f"error: cannot write {home}/head\n  why:  Permission denied")


def test_home_is_its_owner_s_alone_whatever_is_done_first(home, monkeypatch):
    monkeypatch.setenv("RAYKUBE_HOME", str(home / "new"))
    with head.lock():
        assert (home / "new").stat().st_mode & 0o077 == 0


def test_home_that_others_may_read_is_closed_unless_its_user_has_chosen_it(tmp_path, monkeypatch):
    usual, chosen = tmp_path / ".raykube", tmp_path / "chosen"
    for folder in (usual, chosen):
        folder.mkdir()
        folder.chmod(0o755)
    monkeypatch.setenv("RAYKUBE_HOME", str(chosen))
    records.ensure_home()
    monkeypatch.delenv("RAYKUBE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    records.ensure_home()
    assert [folder.stat().st_mode & 0o777 for folder in (usual, chosen)] == [0o700, 0o755]


@pytest.mark.parametrize(("owner", "user", "foreign"), [(7, 7, False), (0, 7, False), (8, 7, True), (7, 0, False)])
def test_home_of_another_user_is_foreign_to_all_but_root(owner, user, foreign):
    assert disk.is_foreign(owner, user) == foreign


def test_logs_of_all_attempts_outlive_the_head(record, running):
    for attempt in (1, 2):
        running.driver_log(record.submission_id(attempt)).write_text(f"attempt {attempt}\n")
    observe.settle(record, Status("a", "job", "FAILED", attempt=2), running)
    head.remove_files(running)
    assert [observe.tail(record, attempt, None) for attempt in (1, 2)] == [["attempt 1"], ["attempt 2"]]


@pytest.mark.parametrize("call", ["rmdir", "unlink"])
def test_folder_is_removed_whatever_appears_in_it_or_vanishes_from_it_meanwhile(tmp_path, monkeypatch, call):
    folder, act, once = tmp_path / "run", getattr(os, call), iter([True])
    (folder / "train-1").mkdir(parents=True)
    (folder / "train-1" / "metrics.jsonl").write_text("{}\n")

    def meddled(path, **options):
        for _ in once:
            (folder / "late").write_text("")
            if call == "unlink":
                act(path, **options)
        act(path, **options)

    monkeypatch.setattr(os, call, meddled)
    disk.remove_tree(folder)
    assert not folder.exists()


def test_folder_that_may_not_be_removed_says_which_and_why(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(rk.BackendError, match=r"cannot remove .*file\n  why:  Not a directory"):
        disk.remove_tree(tmp_path / "file")


class Dashboard(Quiet):
    """A head. Its jobs run until asked for thrice; its Serve refuses what says so, and gives no answer to silence."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        if self.path == "/api/version" and self.server.refused:
            self.server.asked.append(self.path)
            self.answer(self.server.refused.pop(), {})
            return
        if self.path == "/api/serve/applications/":
            self.answer(200, {"applications": self.server.applications})
            return
        if self.path.startswith("/api/jobs/"):
            self.server.asked.append(self.path)
        state = "RUNNING" if len(self.server.asked) < 3 else "STOPPED"
        self.answer(200, {"ray_version": "2", "status": state})

    def do_PUT(self):  # noqa: N802 - http.server calls it so
        apps = json.loads(self.rfile.read(int(self.headers["content-length"])))["applications"]
        self.server.attempts.append([app["runtime_env"]["env_vars"].get("RAYKUBE_ATTEMPT") for app in apps])
        self.server.asked.append([app["name"] for app in apps])
        words = {app["runtime_env"]["env_vars"].get("WORD") for app in apps}
        self.answer(400 if "refuse" in words else 503 if "silence" in words else 200, {})


@pytest.fixture
def answering(running, monkeypatch):
    """Run such a head, and give its server."""
    monkeypatch.setattr(starting, "retire", lambda _: pytest.fail("this head is not ours to end"))
    head.home().mkdir()
    with serving(Dashboard) as server:
        server.applications, server.attempts = {}, []
        ours = dict.fromkeys(("keeper_born", "ray_born"), head.born(os.getpid()))
        head.write_state(replace(running, address=f"http://127.0.0.1:{server.server_port}", **ours))
        yield server


def test_living_head_that_gives_no_answer_once_is_asked_again(answering):
    answering.refused.add(503)
    assert starting.ensure() == head.current()
    assert answering.asked == ["/api/version"]


def test_living_head_that_gives_no_answer_for_long_is_left_alone(answering, monkeypatch):
    monkeypatch.setattr(observe, "PATIENCE_S", 0)
    answering.refused.update((502, 503, 504))
    with pytest.raises(Unreachable, match=r"next: .*raykube cluster delete local"):
        starting.ensure()
    assert head.current() is not None


@pytest.fixture
def dashboard(answering):
    """Run such a head, and give what it was asked: jobs, and configurations as names of their applications."""
    return answering.asked


def service(code, name, word="accept", app=""):
    """Return the plan of a service."""
    app = rk.App(name=app or name, route_prefix=f"/{name}", import_path="hello:app", env_vars={"WORD": word})
    return rk.plan(rk.Service(name=name, apps=(app,), working_dir=code), "local")


def test_service_that_serve_refuses_is_not_in_the_way_of_others(dashboard, code):
    with pytest.raises(rk.BackendError):
        services.deploy(service(code, "bad", "refuse"))
    services.deploy(service(code, "good"))
    assert dashboard == [["bad"], ["good"]]
    assert [record.name for record in records.every("service")] == ["good"]


def test_service_stays_what_it_was_when_serve_refuses_its_change(dashboard, code):
    services.deploy(service(code, "good"))
    former = records.load("good")
    with pytest.raises(rk.BackendError):
        services.deploy(service(code, "good", "refuse"))
    assert records.load("good") == former
    assert len(dashboard) == 2


def test_service_of_which_nobody_knows_whether_serve_has_taken_it_is_kept(dashboard, code):
    with pytest.raises(Unreachable):
        services.deploy(service(code, "late", "silence"))
    assert records.load("late").head == "h"
    assert dashboard == [["late"]]


def of_serve(name, record, began):
    """Return what Serve once told of an application, with its running replicas begun so long after a record."""
    (app,) = json.loads((Path(__file__).parent / "recorded" / "serve.json").read_text())[name].values()
    for deployment in app["deployments"].values():
        for replica in deployment["replicas"]:
            replica["start_time_s"] = record.submitted + began
    return {"good": app}


@pytest.mark.parametrize(
    ("name", "began", "what", "why"),
    [
        ("failed", 1, "service good is not up: DeployFailed", "RuntimeError: weights do not fit"),
        ("update", 1, "service good is not up: DeployFailed", "raykube.errors.NotFound: no checkpoint at /x"),
        (
            *("update", -1),
            "the update of good failed; what was deployed before goes on serving",
            "raykube.errors.NotFound",
        ),
        ("unbuilt", -1, "service good is not up: DeployFailed", "ValueError: args no"),
    ],
)
def test_deploy_that_failed_says_why_and_whether_the_service_goes_on(answering, code, name, began, what, why):
    services.deploy(service(code, "good"))
    answering.applications = of_serve(name, records.load("good"), began)
    with pytest.raises(rk.BackendError) as told:
        rk.attach("good", "local").wait_ready()
    assert told.value.what == what
    assert told.value.why.startswith(why)
    assert "raykube service why good" in told.value.next_step


def test_service_goes_on_while_its_new_code_cannot_be_loaded_and_processes_of_the_old_are_there(answering, code):
    services.deploy(service(code, "good"))
    answering.applications = of_serve("unbuilt", records.load("good"), -1)
    replica = ["ray::ServeReplica:good:Model", "-c", "input()"]
    with subprocess.Popen(replica, executable=sys.executable, stdin=subprocess.PIPE, start_new_session=True) as process:
        head.write_state(replace(head.current(), ray_pid=process.pid, ray_born=head.born(process.pid)))
        found = rk.attach("good", "local").status()
        process.communicate(b"\n")
    assert (found.state, found.failure.reason) == ("FAILED", "UpdateFailed")
    assert found.detail == "the update failed; what was deployed before goes on serving: good DEPLOY_FAILED"


def test_service_that_failed_is_tried_again_by_the_same_plan_and_stays_as_it_was_then(answering, code):
    services.deploy(service(code, "good"))
    answering.applications = of_serve("failed", records.load("good"), 1)
    services.deploy(service(code, "good"))
    answering.applications = of_serve("retrying", records.load("good"), 1)
    services.deploy(service(code, "good"))
    services.deploy(service(code, "other"))
    assert answering.attempts == [[None], ["2"], ["2"], ["2", None]]


def test_service_whose_change_has_not_come_to_serve_is_not_running(answering, code):
    services.deploy(service(code, "good"))
    (sent,) = records.load("good").body
    answering.applications = {"good": {"status": "RUNNING", "deployments": {}, "deployed_app_config": sent}}
    assert rk.attach("good", "local").status().state == "RUNNING"
    with pytest.raises(Unreachable):
        services.deploy(service(code, "good", "silence"))
    found = rk.attach("good", "local").status()
    assert (found.state, found.detail) == ("PENDING", "good NOT_STARTED")


@pytest.mark.usefixtures("dashboard")
def test_log_of_a_service_is_not_that_of_another_whose_name_goes_on(running, code):
    for name in ("roll", "roll_two"):
        services.deploy(service(code, name.replace("_", "-"), app=name))
    folder = Path(running.session_dir) / "logs" / "serve"
    folder.mkdir()
    for app in ("roll", "roll_two"):
        (folder / f"replica_{app}_Model_x1.log").write_text(f"of {app}\n")
    assert list(rk.attach("roll", "local").logs()) == ["of roll"]
    assert list(rk.attach("roll-two", "local").logs()) == ["of roll_two"]


def test_service_says_what_keeps_it_from_running_while_serve_tries_again(answering, code):
    services.deploy(service(code, "good"))
    answering.applications = of_serve("retrying", records.load("good"), 1)
    found = rk.attach("good", "local").status()
    assert (found.state, found.failure.reason) == ("PENDING", "ReplicaFailed")
    assert found.detail == "good DEPLOYING; ReplicaFailed: RuntimeError: weights do not fit"


@pytest.mark.usefixtures("dashboard")
def test_ctrl_c_while_a_service_starts_says_that_it_goes_on(code, monkeypatch):
    def pressed(_record):
        raise KeyboardInterrupt

    monkeypatch.setattr(services, "status", pressed)
    done = typed("service", "deploy", "good", "hello:app", "--working-dir", ".", cwd=code)
    assert done.returncode == 130
    assert "the deployment of good goes on" in done.stderr
    assert "raykube service status good" in done.stderr
    assert "raykube service delete good" in done.stderr
    assert records.load("good").head == "h"


@pytest.mark.usefixtures("dashboard")
def test_ctrl_c_while_a_service_is_sent_says_how_to_look_at_it(code, monkeypatch):
    def pressed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(services, "_apply", pressed)
    done = typed("service", "deploy", "good", "hello:app", "--working-dir", ".", cwd=code)
    assert done.returncode == 130
    assert "interrupted while good was sent; what has arrived of it goes on" in done.stderr
    assert "raykube service status good" in done.stderr


@pytest.mark.usefixtures("home")
def test_ctrl_c_while_a_run_is_sent_says_how_to_see_submit_and_end_it(code, monkeypatch):
    def pressed():
        raise KeyboardInterrupt

    monkeypatch.setattr(starting, "ensure", pressed)
    done = typed("job", "submit", "--name", "a", "--working-dir", ".", "--", "python", "hello.py", cwd=code)
    assert (done.returncode, done.stdout) == (130, "")
    assert "interrupted while a was sent: it may have been submitted, or not" in done.stderr
    assert "raykube job status a" in done.stderr
    assert "the same command, with --name a" in done.stderr
    assert "raykube job delete a" in done.stderr


def test_time_to_wait_for_a_service_is_what_sending_it_has_left():
    now = time.monotonic()
    assert (handles.left(600, now - 100), handles.left(60, now - 100)) == (500, 0)
    assert (handles.left(math.inf, now), handles.left(None, now)) == (math.inf, math.inf)
    assert 0 < handles.left(0.4, now) <= 0.4


class Answering(Local):
    """This machine, whose head gives these answers, one after another."""

    def __init__(self, *answers):
        self.answers = iter(answers)

    def status(self, name, kind=None):  # noqa: ARG002 - it has one run
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return Status(name, "job", answer)


SILENT = Unreachable("no answer")


def test_followed_log_outlives_a_dashboard_that_dies_before_its_head(record):
    (records.folder(record.name) / "driver-1.log").write_text("one\ntwo\n")
    place = Answering("RUNNING", SILENT, SILENT, "FAILED")
    assert list(place.logs("a", follow=True)) == ["one", "two"]
    assert list(place.answers) == []


def test_log_is_read_whole_while_the_head_gives_no_answer(record):
    (records.folder(record.name) / "driver-1.log").write_text("one\ntwo\n")
    assert list(Answering(SILENT).logs("a", follow=False)) == ["one", "two"]


@pytest.mark.usefixtures("record")
def test_head_that_gives_no_answer_for_long_is_unreachable(monkeypatch):
    monkeypatch.setattr(observe, "PATIENCE_S", 0)
    with pytest.raises(Unreachable):
        list(Answering("RUNNING", SILENT, SILENT).logs("a", follow=True))
    changes = Answering("RUNNING", SILENT, SILENT).changes("a")
    assert next(changes).state == "RUNNING"
    with pytest.raises(Unreachable):
        next(changes)


def test_patience_with_a_silent_head_begins_anew_with_each_answer(monkeypatch):
    clock = itertools.count(1, step=observe.PATIENCE_S / 3)
    monkeypatch.setattr(observe, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    place = Answering(SILENT, "RUNNING", SILENT, "FAILED")
    states = [status and status.state for status in itertools.islice(observe.answers(lambda: place.status("a")), 4)]
    assert states == [None, "RUNNING", None, "FAILED"]


@pytest.mark.usefixtures("record")
def test_wait_for_a_head_that_gives_no_answer_ends_in_its_time():
    for known, answers in (("WAITING", [SILENT]), ("RUNNING", ["RUNNING", SILENT])):
        seen = []
        place = Answering(*answers, *[SILENT] * 9)
        with pytest.raises(WaitTimeout, match=rf"a is still {known} after 0\.3 s"):
            handles.Run("a", place).wait(timeout_s=0.3, on_event=seen.append)
        assert [event.status.state for event in seen] == [known]


@pytest.mark.parametrize("timeout_s", [float("nan"), -1, "5"])
def test_wait_of_what_is_no_time_is_refused_and_nobody_is_asked(code, timeout_s):
    with pytest.raises(ConfigError, match=r"timeout_s is .* which is no time"):
        handles.Run("a", Answering()).wait(timeout_s=timeout_s)
    with pytest.raises(ConfigError, match=r"timeout_s is .* which is no time"):
        handles.Endpoint("a", Answering()).wait_ready(timeout_s=timeout_s)
    app = rk.App(import_path="hello:app")
    with pytest.raises(ConfigError, match=r"timeout_s is .* which is no time"):
        rk.deploy(rk.Service(name="a", apps=(app,), working_dir=code), "local", timeout_s=timeout_s)


def test_run_is_not_deleted_as_the_service_that_had_its_name(record):
    with pytest.raises(NotFound, match=f"there is no service {record.name} here"):
        handles.Endpoint(record.name, Local()).delete()
    assert records.load(record.name) == record


@pytest.mark.usefixtures("home")
def test_result_is_not_read_for_a_service(record, tmp_path, monkeypatch):
    records.save(replace(record, kind="service", body=[], storage=""))
    monkeypatch.chdir(tmp_path)
    Path("a").mkdir()
    Path("a", wire.RESULT_FILE).write_text(wire.Result("train", "another", "/x").to_json())
    with pytest.raises(NotFound, match="there is no job a here"):
        handles.Run("a", Local()).result()


def test_list_leaves_out_what_was_deleted_since_it_was_begun():
    place = Answering("RUNNING", NotFound("nothing is called 'b' here"), "FAILED")
    found = handles.statuses(rk.Run(name, place) for name in ("a", "b", "c"))
    assert [(status.name, status.state) for status in found] == [("a", "RUNNING"), ("c", "FAILED")]


class Noting(Local):
    """Notes which threads ask for a state, and lets the first of them wait."""

    def __init__(self):
        self.threads = []
        self.goes_on = threading.Event()

    def status(self, name, kind=None):  # noqa: ARG002
        self.threads.append(threading.current_thread())
        if name == "silent":
            self.goes_on.wait(10)
        if name == "bad":
            raise Unreachable("no answer")
        return Status(name, "job", "RUNNING")


def test_list_keeps_no_command_that_was_interrupted_waiting_for_who_is_silent():
    place = Noting()
    with pytest.raises(Unreachable):
        handles.statuses([rk.Run("bad", place), rk.Run("silent", place)])
    assert all(thread.daemon for thread in place.threads)
    place.goes_on.set()


def test_list_of_many_is_in_order():
    place, names = Noting(), [f"run-{number}" for number in range(50)]
    assert [status.name for status in handles.statuses(rk.Run(name, place) for name in names)] == names
    assert len(set(place.threads)) <= handles._AT_ONCE


@pytest.mark.usefixtures("dashboard")
def test_followed_log_of_a_service_goes_on_while_it_is_unwell_and_where_its_file_is_begun_anew(code, monkeypatch):
    services.deploy(service(code, "good"))
    log = Path(head.current().session_dir, "logs", "serve", "replica_good_Model_1.log")
    log.parent.mkdir()
    log.write_text("one\ntwo\n")

    def seen():
        yield Status("good", "service", "FAILED", failure=Failure("DeployFailed", "UNHEALTHY"))
        log.write_text("new\n")
        yield Status("good", "service", "RUNNING")
        yield Status("good", "service", "STOPPED")

    states = seen()
    monkeypatch.setattr(services, "status", lambda _: next(states))
    assert list(services.logs(records.load("good"), follow=True)) == ["one", "two", "new"]


@pytest.mark.usefixtures("dashboard")
def test_followed_log_of_a_service_ends_with_its_head_and_with_its_record(code):
    services.deploy(service(code, "good"))
    record = records.load("good")
    records.save(replace(record, head="another"))
    assert list(services.logs(record, follow=True)) == []
    records.remove("good")
    assert list(services.logs(record, follow=True)) == []


def test_delete_waits_while_ray_runs_what_is_noted_to_have_ended(dashboard, record):
    records.set_final(Status("a", "job", "STOPPED"))
    storage = Path(record.storage, "a")
    storage.mkdir(parents=True)
    Local().delete("a")
    assert dashboard == ["/api/jobs/a-n-1"] * 3
    assert not storage.exists()
    assert records.every() == []


@pytest.mark.usefixtures("record")
@pytest.mark.parametrize("file", ["record.json", "final.json"])
def test_delete_removes_what_cannot_be_read(code, file, caplog):
    (records.folder("a") / file).write_text("")
    assert typed("job", "list", cwd=code).returncode == 0
    assert "a is left out" in caplog.text
    done = typed("job", "delete", "a", cwd=code)
    assert (done.returncode, done.stdout) == (0, "a deleted\n")
    assert not records.folder("a").exists()


def test_code_of_a_record_that_cannot_be_read_is_kept(record, home, code):
    (home / "packages").mkdir()
    zips = [home / "packages" / f"{name}.zip" for name in ("of-b", "of-nobody")]
    for path in zips:
        path.touch()
    records.save(replace(record, name="b"))
    (records.folder("b") / "record.json").write_text('{"plan_yaml": "of-b.zip"')
    assert typed("job", "delete", "a", cwd=code).returncode == 0
    assert [path.exists() for path in zips] == [True, False]


def test_delete_keeps_all_code_while_a_record_may_not_be_read(record, home, code):
    (home / "packages").mkdir()
    (home / "packages" / "of-b.zip").touch()
    (records.folder("b") / "record.json").mkdir(parents=True)
    done = typed("job", "delete", record.name, cwd=code)
    assert (done.returncode, done.stdout) == (0, "a deleted\n")
    assert (home / "packages" / "of-b.zip").exists()


@pytest.mark.parametrize(
    ("file", "read"),
    [
        (wire.RESULT_FILE, lambda: Local().result("a")),
        (wire.RANKS_FILE, lambda: list(Local().logs("a", follow=False, source="rank-0"))),
    ],
)
def test_file_of_a_storage_that_cannot_be_read_says_nothing_of_raykube_s_folder(record, file, read):
    Path(record.storage, "a", file).mkdir(parents=True)
    with pytest.raises(rk.BackendError, match=rf"cannot read .*/runs/a/{file}\n  why:  Is a directory") as told:
        read()
    assert told.value.next_step == "check that it is a file, as the run left it, and its permissions"


@pytest.mark.usefixtures("home")
def test_conflict_over_changed_code_names_the_files(code):
    def plan():
        return rk.plan(rk.Job(entrypoint="python hello.py", name="a", working_dir=code), "local")

    (code / "dw1.log").write_text("one\n")
    first = plan()
    zips.keep(first.package)
    records.save(replace(backend._record(first), head="gone"))
    (code / "dw1.log").write_text("two\n")
    with pytest.raises(Conflict, match=r"in the code: dw1\.log differs\n"):
        Local().start(plan())


def test_code_that_is_there_is_kept(home, code):
    packed = package.collect(code)
    zips.keep(packed)
    (path,) = (home / "packages").iterdir()
    before = path.stat()
    assert path.name == f"{packed.hash}.zip"
    zips.keep(packed)
    assert path.stat().st_ino == before.st_ino


def test_code_on_a_full_disk_leaves_nothing_and_says_what_to_do(home, code):
    (code / "a.bin").write_bytes(os.urandom(200_000))
    inner = (
        "import resource, signal\nfrom raykube.package import collect\nfrom raykube.backends.local import zips\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        f"zips.keep(collect({str(code)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", inner], capture_output=True, text=True, check=False)
    assert f"BackendError: cannot write {home}/packages/" in done.stderr
    assert "next: free" in done.stderr
    assert list((home / "packages").iterdir()) == []


@pytest.mark.parametrize("change", [lambda path: path.write_text("another"), Path.unlink], ids=["changed", "removed"])
def test_code_that_is_changed_while_it_is_kept_leaves_nothing(home, code, change):
    packed = package.collect(code)
    change(code / "hello.py")
    with pytest.raises(ConfigError, match="changed while it was packed"):
        zips.keep(packed)
    assert list((home / "packages").iterdir()) == []


def test_process_lives_on_when_the_clock_is_set(monkeypatch):
    birth = head.born(os.getpid())
    boot_time = psutil.boot_time()
    # All that a step of the clock changes of what is known of processes.
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot_time + 3600)
    assert head.alive(os.getpid(), birth)


@pytest.mark.usefixtures("answering")
def test_head_of_which_nothing_can_tell_whether_it_lives_says_what_to_install(record, code, monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    for words in (["job", "list"], ["job", "status", record.name], ["cluster", "status", "local"]):
        done = typed(*words, cwd=code)
        assert (done.returncode, done.stdout) == (2, "")
        assert "psutil is not installed\n  next: in a clone of raykube: pip install '.[local]'" in done.stderr
    done = typed("cluster", "list", cwd=code, KUBECONFIG=str(code / "none"))
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)
    assert "note: whether the Ray head of this machine lives cannot be told" in done.stderr


def test_process_that_has_ended_and_one_of_its_number_do_not_live():
    with subprocess.Popen(["sleep", "60"]) as child:
        birth = head.born(child.pid)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays as a zombie
        assert not head.alive(child.pid, birth)
    assert (head.born(child.pid), head.alive(child.pid, "")) == ("", False)
    assert not head.alive(os.getpid(), birth)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_limit_of_a_container_bounds_its_cpus(tmp_path, files, cpus):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert head._quota(tmp_path) == cpus


def test_files_of_a_head_are_removed_also_where_another_removes_them_too(running, monkeypatch):
    for number in range(3):
        running.driver_log(str(number)).touch()
    left, unlink = Path(running.session_dir, "logs"), os.unlink

    def race(path, **options):
        for file in list(left.glob("*1.log")):
            unlink(file)
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", race)
    head.remove_files(running)
    assert not Path(running.folder).exists()
    head.remove_files(running)


@pytest.mark.parametrize(("is_ours", "code"), [(True, -signal.SIGKILL), (False, 7)])
def test_session_of_a_stranger_that_has_the_number_of_a_dead_head_lives_on(running, is_ours, code):
    words = ["sh", "-c", "read word; exit 7"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True) as leader:
        birth = head.born(leader.pid) if is_ours else "another"
        head.kill_processes(replace(running, id=f"none-{leader.pid}", ray_pid=leader.pid, ray_born=birth))
        with contextlib.suppress(BrokenPipeError):
            leader.communicate(b"go\n")
    assert leader.returncode == code


def test_service_is_not_deployed_where_another_s_record_cannot_be_read(dashboard, code):
    services.deploy(service(code, "good"))
    (records.folder("good") / "record.json").write_text("{")
    with pytest.raises(records.Unreadable, match="raykube job delete good"):
        services.deploy(service(code, "other"))
    assert dashboard == [["good"]]


@pytest.mark.parametrize(("storage", "shown"), [("s3://bucket/runs", True), ("s3://KEY:hunter2@bucket/runs", False)])
def test_storage_that_is_no_folder_is_named_without_its_password(tmp_path, monkeypatch, storage, shown):
    monkeypatch.setenv("RAYKUBE_STORAGE", storage)
    with pytest.raises(rk.ConfigError, match="is not a folder of this machine") as caught:
        rk.plan(rk.Job(entrypoint="true", name="a", working_dir=tmp_path))
    assert (storage in str(caught.value), "hunter2" in str(caught.value)) == (shown, False)
