"""The backend of this machine, as far as it needs no Ray."""

import json
import logging
import os
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

import raykube as rk
from raykube import handles, wire
from raykube.backends import Status, endings
from raykube.backends.local import following, head, jobs, keeper, observe, records, starting, zips
from raykube.backends.local.backend import Local
from raykube.errors import Conflict, NotFound, Unreachable
from tests.support import file_size_limited, pressed, run_without_root_rights, typed
from tests.unit.heads import SILENT, Answering, Learning, sent_anew


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


def test_run_that_a_deletion_stops_says_so_until_it_is_sent_again(record, learning):
    ray, seen = learning(a_n_1="RUNNING"), []
    ray.version = dict

    class Watched(Local):
        def stop(self, name, kind=None):
            super().stop(name, kind)
            seen.append(self.status(name))

    Watched()._stop_and_wait("a", "job")
    assert [(each.state, each.detail) for each in seen] == [("STOPPED", endings.BEING_DELETED)]
    jobs._send(record, 2)
    records.set_final(Status("a", "job", "STOPPED", attempt=2))
    assert Local().status("a").detail == ""


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


def test_run_that_is_sent_again_on_a_new_head_while_somebody_looks_has_not_failed(record, learning, monkeypatch):
    learning(a_new_2="RUNNING")
    records.save(replace(record, head="gone"))
    monkeypatch.setattr(starting, "keep_watched", lambda: sent_anew(record, 2))
    assert Local().status("a").state == "RUNNING"
    assert records.final("a") is None


@pytest.mark.parametrize(
    ("state", "trouble", "quiet"), [("RUNNING", "train-1: worker 0: gone", True), ("PENDING", "", False)]
)
def test_trouble_and_silence_are_told_of_a_run_while_it_runs(record, learning, state, trouble, quiet):
    learning(a_n_1=state)
    records.save(replace(record, submitted=time.time()))
    folder = Path(record.storage, "a")
    (folder / "train-1").mkdir(parents=True)
    (folder / wire.TROUBLE_FILE).write_text('{"time": 1.0, "attempt": 1, "message": "train-1: worker 0: gone"}')
    (folder / "train-1" / wire.METRICS_FILE).write_text('{"time": 1.0, "metrics": {"epoch": 3}}\n')
    status = Local().status("a")
    assert (status.state, status.detail.partition(" ")[2], status.quiet_s > 0) == (state, trouble, quiet)
    assert status.progress == {"epoch": 3}


@pytest.mark.parametrize(
    ("is_of", "wanted", "handle", "words"),
    [
        ("job", "service", rk.Run, "a is a run, not a service"),
        ("service", "job", rk.Endpoint, "a is a service, not a run"),
    ],
)
def test_name_of_another_kind_than_the_one_asked_for_is_attached_to_nothing(record, is_of, wanted, handle, words):
    records.save(replace(record, kind=is_of))
    assert rk.attach("a", "local", kind=is_of) == rk.attach("a", "local") == handle("a", Local())
    with pytest.raises(NotFound, match=words) as told:
        rk.attach("a", "local", kind=wanted)
    assert told.value.next_step == f"raykube {is_of} status a; in Python, attach with kind='{is_of}'"


@pytest.mark.usefixtures("record")
@pytest.mark.parametrize("kind", ["jbo", "run", "", 1])
def test_kind_that_there_is_not_is_refused(kind):
    with pytest.raises(rk.ConfigError, match="there is no kind") as told:
        rk.attach("a", "local", kind=kind)
    assert told.value.next_step == "give kind='job' or kind='service', or leave it out"


def test_run_whose_head_dies_while_it_is_asked_has_failed(record, learning):
    def die(_):
        (head.home() / "state.json").unlink()
        ray.no_answer()

    ray = learning()
    ray.job = die
    assert Local().status("a").failure.reason == "HeadDied"
    assert records.final(record.name).state == "FAILED"


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
        starting.end_head,
    ]
    for ask in asks:
        with pytest.raises(Unreachable, match=f"the Ray head of .* runs on {where}\n"):
            ask()
    assert (records.final("a"), records.load("b").head) == (None, "h")
    assert head.read_state().host == host
    assert Path(running.session_dir).exists()


def test_run_that_has_ended_is_told_of_wherever_the_head_runs_now(record, running):
    running.driver_log("a-n-1").write_text("said\n")
    observe.settle(record, Status("a", "job", "SUCCEEDED"), running)
    head.home().mkdir()
    head.write_state(replace(running, ray_born="then", host="node7 pid:[1]"))
    assert Local().status("a").state == "SUCCEEDED"
    assert list(Local().logs("a", follow=True)) == ["said"]
    Local().delete("a")
    assert not records.folder("a").exists()


def test_lost_run_is_told_of_also_where_its_end_cannot_be_noted(record):
    records.folder("a").chmod(0o500)
    done = run_without_root_rights("raykube", "job", "list", "--json")
    records.folder("a").chmod(0o700)
    assert [run["state"] for run in json.loads(done.stdout)] == ["FAILED"]
    assert records.final(record.name) is None


def test_log_of_a_run_is_there_for_who_asks_first_after_its_head_has_died(record, running):
    records.set_attempt("a", 2)
    for attempt in (1, 2):
        running.driver_log(record.submission_id(attempt)).write_text(f"attempt {attempt}\n")
    head.home().mkdir()
    head.write_state(replace(running, keeper_born="then", ray_born="then"))
    assert list(Local().logs("a", follow=False)) == ["attempt 1", "attempt 2"]


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


@pytest.mark.usefixtures("home")
def test_ctrl_c_while_a_run_is_sent_says_how_to_see_submit_and_end_it(code, monkeypatch):
    monkeypatch.setattr(starting, "ensure", pressed)
    done = typed("job", "submit", "--name", "a", "--working-dir", ".", "--", "python", "hello.py", cwd=code)
    assert (done.returncode, done.stdout) == (130, "")
    assert "interrupted while a was sent: it may have been submitted, or not" in done.stderr
    assert "raykube job status a" in done.stderr
    assert "the same command, with --name a" in done.stderr
    assert "raykube job delete a" in done.stderr


@pytest.mark.usefixtures("home")
def test_run_that_has_succeeded_is_said_to_be_so_to_who_submits_it_again(code, caplog):
    caplog.set_level(logging.INFO, "raykube")
    plan = rk.plan(rk.Job(entrypoint="python hello.py", name="a", working_dir=code), "local")
    records.save(jobs._record(plan))
    records.set_final(Status("a", "job", "SUCCEEDED"))
    assert Local().start(plan) == "a"
    assert caplog.messages == ["a has succeeded already; nothing is run again"]


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
    monkeypatch.setattr(following, "PATIENCE_S", 0)
    with pytest.raises(Unreachable):
        list(Answering("RUNNING", SILENT, SILENT).logs("a", follow=True))
    changes = Answering("RUNNING", SILENT, SILENT).changes("a")
    assert next(changes).state == "RUNNING"
    with pytest.raises(Unreachable):
        next(changes)


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
    records.save(replace(jobs._record(first), head="gone"))
    (code / "dw1.log").write_text("two\n")
    with pytest.raises(Conflict, match=r"in the code: dw1\.log differs\n"):
        Local().start(plan())


@pytest.mark.usefixtures("home")
def test_conflict_with_a_run_that_failed_tells_of_nothing_that_another_attempt_may_change(code):
    def plan(entrypoint, workers=1, **fields):
        job = rk.Job(entrypoint=entrypoint, name="a", working_dir=code, **fields)
        return rk.plan(job, rk.Cluster.local(workers=workers, cpus=0.5))

    first = plan("python hello.py")
    zips.keep(first.package)
    records.save(replace(jobs._record(first), head="gone"))
    with pytest.raises(Conflict) as caught:
        Local().start(plan("python hello.py 2", workers=2, max_retries=3))
    assert caught.value.why.splitlines()[1:] == ["-entrypoint: python hello.py", "+entrypoint: python hello.py 2"]


@pytest.mark.parametrize(
    ("state", "entrypoint", "to_stop"),
    [
        ("RUNNING", "python hello.py", True),
        ("RUNNING", "python hello.py 2", False),  # which a stop does not make the same
        ("SUCCEEDED", "python hello.py", False),
    ],
)
def test_run_that_has_not_ended_is_to_be_stopped_before_it_goes_on_within_other_limits(
    code, learning, state, entrypoint, to_stop
):
    def plan(**fields):
        return rk.plan(rk.Job(name="a", working_dir=code, **fields), "local")

    first = replace(jobs._record(plan(entrypoint="python hello.py")), head="h", nonce="n")
    records.save(first)
    learning(a_n_1=state)
    with pytest.raises(Conflict) as caught:
        Local().start(plan(entrypoint=entrypoint, timeout_s=7))
    assert ("raykube job stop a" in caught.value.next_step) == to_stop
    assert ("raykube job delete a" in caught.value.next_step) != to_stop


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("has_checkpoints", [True, False])
def test_conflict_names_the_checkpoints_that_another_name_can_begin_from(code, has_checkpoints):
    def plan(entrypoint):
        return rk.plan(rk.Job(entrypoint=entrypoint, name="a", working_dir=code), "local")

    first = jobs._record(plan("python hello.py"))
    records.save(replace(first, head="gone"))
    folder = Path(first.storage, "a")
    Path(folder, "train-1", *(["checkpoint_1"] if has_checkpoints else [])).mkdir(parents=True)
    with pytest.raises(Conflict) as caught:
        Local().start(plan("python hello.py 2"))
    step = caught.value.next_step
    assert (f"the checkpoints of that run stay below {folder};" in step) == has_checkpoints
    assert ("delete that run with its checkpoints: raykube job delete a" in step) == has_checkpoints
    assert step.startswith("choose another --name")
    assert step.endswith("raykube job delete a")
