"""A look at a run on this machine, and what is kept of it."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from raykube import wire
from raykube.backends import Status
from raykube.backends.local import following, head, observe, records
from tests.unit.heads import SILENT, Answering, Learning, Ray, sent_anew


def test_stop_of_a_run_that_is_noted_before_its_attempt_is_sent_stops_that(record, running):
    def end():
        records.set_final(Status("a", "job", "STOPPED"))

    for meanwhile in (end, lambda: records.remove("a")):
        ray = Learning(meanwhile)
        observe.send(record, 1, running, ray)
        assert ray.asked == ["submit a-n-1", "stop a-n-1"]


@pytest.mark.parametrize("first", [1, 2])
def test_end_of_a_run_is_not_noted_as_that_of_the_next_of_its_name(record, running, first):
    running.driver_log("a-n-1").write_text("of the first\n")
    new = sent_anew(record, first)
    assert observe.settle(record, Status("a", "job", "STOPPED", attempt=first), running).state == "STOPPED"
    assert observe.settle_lost(record, None).failure.reason == "HeadDied"
    assert records.final("a") is None
    assert not observe.log_path(new, 1, None).exists()


@pytest.mark.parametrize(
    ("started", "now", "quiet"),
    [(900.0, 1_059.0, 0.0), (None, 1_150.0, 120.0), (800.0, 900.0, 0.0), (172_000.0, 172_061.0, 60.0)],
)
def test_silence_is_counted_in_whole_minutes_from_the_last_report_or_the_start_since(record, started, now, quiet):
    assert observe.quiet_s(observe.last_report(record), started, now) == 0.0
    folder = Path(record.storage) / record.name / "train-1"
    folder.mkdir(parents=True)
    (folder / wire.METRICS_FILE).write_text('{"time": 1000.0, "metrics": {"epoch": 3}}\n')
    assert observe.quiet_s(observe.last_report(record), started, now) == quiet


def test_run_that_ray_was_stopping_when_its_head_died_was_stopped(record, running):
    records.set_ending("a", records.Ending(since=2.0))
    assert observe.settle_lost(record, running).state == "STOPPED"


def test_logs_of_all_attempts_outlive_the_head(record, running):
    for attempt in (1, 2):
        running.driver_log(record.submission_id(attempt)).write_text(f"attempt {attempt}\n")
    observe.settle(record, Status("a", "job", "FAILED", attempt=2), running)
    head.remove_files(running)
    assert [observe.tail(record, attempt, None) for attempt in (1, 2)] == [["attempt 1"], ["attempt 2"]]


@pytest.mark.parametrize(("attempt", "began", "reason"), [(1, 4, "LoopFailed"), (1, 6, "Entry"), (2, 4, "Entry")])
def test_failure_that_a_script_has_left_is_told_as_that_of_its_attempt(record, running, attempt, began, reason):
    folder = Path(record.storage) / "a"
    folder.mkdir(parents=True)
    left = {"time": 5.0, "attempt": 1, "reason": "LoopFailed", "message": "x", "next_step": ""}
    (folder / wire.FAILURE_FILE).write_text(json.dumps(left))
    records.set_attempt("a", attempt)
    words = "Job entrypoint command failed with exit code 1"
    job = {"status": "FAILED", "message": words, "driver_exit_code": 1, "start_time": began * 1000}
    status, _ = observe.status(record, running, Ray(job))
    assert status.failure.reason.startswith(reason)


def test_patience_with_a_silent_head_begins_anew_with_each_answer(monkeypatch):
    clock = itertools.count(1, step=following.PATIENCE_S / 3)
    monkeypatch.setattr(following, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    place = Answering(SILENT, "RUNNING", SILENT, "FAILED")
    states = [status and status.state for status in itertools.islice(following.answers(lambda: place.status("a")), 4)]
    assert states == [None, "RUNNING", None, "FAILED"]
