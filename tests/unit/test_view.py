"""What the command line shows."""

import json
from dataclasses import asdict

import pytest

from raykube.backends import Status, lines, serveapps
from raykube.cli import view
from raykube.errors import Failure, RunFailed
from raykube.handles import Event
from raykube.wire import Result

NOW = 1_000.0


def status(**fields):
    return Status(**{"name": "a", "kind": "job", "state": "RUNNING", "submitted": 940.0} | fields)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (119, "119s"), (120, "2m"), (7_200, "2h"), (200_000, "2d")])
def test_age_is_written_as_kubectl_does(seconds, text):
    assert lines.age(seconds) == text


def test_running_line_shows_metrics_and_time_but_no_detail():
    line = lines.status_line(status(progress={"epoch": 3, "loss": 0.123456}, detail="Job is currently running."), NOW)
    assert line == "a RUNNING · epoch 3 · loss 0.1235 · 60s"


def test_running_line_shows_what_was_lost():
    line = lines.status_line(status(detail="12:00:00 train-1: worker 0: gone"), NOW)
    assert line == "a RUNNING · 12:00:00 train-1: worker 0: gone · 60s"


def test_silence_of_a_run_is_shown_after_its_metrics():
    silent = status(progress={"epoch": 3}, quiet_s=300.0)
    assert lines.status_line(silent, NOW) == "a RUNNING · epoch 3 · no report for 5m · 60s"
    assert "progress:  epoch 3 · no report for 5m" in view.status_text(silent)
    assert "epoch 3 · no report for 5m" in view.table([silent], NOW)


def test_pending_line_shows_the_detail_and_later_attempts():
    line = lines.status_line(status(state="PENDING", detail="waiting", attempt=2), NOW)
    assert line == "a PENDING · attempt 2 · waiting · 60s"


def test_service_is_shown_without_attempts():
    service = status(kind="service")
    assert view.table([service], NOW).splitlines()[0].split() == ["NAME", "STATE", "AGE", "PROGRESS"]
    assert "attempt" not in view.status_text(service)
    assert "ATTEMPT" in view.table([service, status()], NOW)


def test_service_is_shown_with_what_was_deployed_and_when():
    text = view.status_text(status(kind="service", deployed="hello:app, code 0123abcd", started=960.0))
    keys = [line.partition(":")[0] for line in text.splitlines()]
    assert keys == ["name", "state", "deployed", "created", "updated"]
    assert "deployed:  hello:app, code 0123abcd\n" in text


@pytest.mark.parametrize("what", ["the update failed", "the update waits"])
def test_service_that_goes_on_as_before_is_not_shown_as_serving_what_was_deployed(what):
    detail = f"{what}; {serveapps.GOES_ON}: ValueError: no"
    text = view.status_text(status(kind="service", deployed="hello:app, code 0123abcd", detail=detail))
    assert "deployed:  hello:app, code 0123abcd (not serving)\n" in text


def test_ended_run_does_not_grow_older():
    assert lines.elapsed(status(ended=950.0), NOW) == 10.0


def test_failure_text_names_the_field_that_says_so():
    where = "pod/x-head: status.conditions[PodScheduled].message"
    failure = Failure("Unschedulable", "0/1 nodes", next_step="ask for less", where=where)
    assert view.failure_text(failure).splitlines()[1] == f"  seen: {where}"
    assert f"  seen: {where}" in str(RunFailed.of("a", failure))


def test_failure_text_has_cause_log_and_next_step():
    text = view.failure_text(Failure("EntrypointFailed", "exit code 3", 3, ("x", "y"), "look"))
    assert text.splitlines() == [
        "EntrypointFailed: exit code 3",
        "  last 2 lines of its log:",
        "    x",
        "    y",
        "  next: look",
    ]


def test_table_aligns_its_columns():
    rows = view.table([status(name="a-long-name"), status(name="b", state="FAILED", failure=Failure("Why", ""))], NOW)
    heading, first, second = rows.splitlines()
    assert heading.index("STATE") == first.index("RUNNING") == second.index("FAILED")
    assert second.endswith("Why")


def test_table_has_a_column_of_workers_where_runs_have_them():
    rows = view.table([status(name="a", workers="2..8"), status(name="b")], NOW).splitlines()
    assert [row.split()[3] for row in rows] == ["WORKERS", "2..8", "-"]
    assert "WORKERS" not in view.table([status(name="service")], NOW)


@pytest.mark.parametrize(("storage", "words"), [("/shared/a", "kept in /shared/a: "), ("", "nothing is kept once")])
def test_run_that_was_stopped_tells_what_is_left_of_it(storage, words):
    assert view.kept(status(state="STOPPED", storage=storage)).startswith(words)


@pytest.mark.parametrize(("started", "is_doubted"), [(None, True), (1.0, False)])
def test_run_that_was_stopped_before_it_was_seen_to_begin_may_have_left_nothing(started, is_doubted):
    told = view.kept(status(state="STOPPED", storage="/shared/a", started=started))
    assert ("what it had written, if it had begun" in told) is is_doubted


def test_event_prints_as_the_line_of_its_status():
    event = Event(NOW, status(progress={"epoch": 3}))
    assert str(event).split(" ", 1)[1] == "a RUNNING · epoch 3 · 60s"


def test_result_text_names_metrics_model_and_notes():
    text = view.result_text(Result("train", "a", "/p", {"loss": 0.5}, "/p/c", {"lr": 1}, "models:/m/1", notes=("n",)))
    assert [line.split()[-1] for line in text.splitlines()] == ["0.5", "1", "/p/c", "models:/m/1", "/p", "n"]


@pytest.mark.parametrize(("early", "words"), [((), "trials: 3"), ((0, 2), "trials: 3, 2 of them stopped early")])
def test_result_text_tells_how_many_trials_were_stopped_early(early, words):
    trials = tuple({"trial": str(number), "stopped_early": number in early} for number in range(3))
    assert words in [
        " ".join(line.split()) for line in view.result_text(Result("sweep", "a", "/p", trials=trials)).splitlines()
    ]


def test_json_of_a_status_holds_its_failure():
    shown = asdict(status(state="FAILED", failure=Failure("Why", "words", 3)))
    assert shown["failure"]["exit_code"] == 3
    assert '"state": "FAILED"' in view.dump(shown)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_number_that_json_has_not_is_null(number):
    trial = {"metrics": {"loss": number, "epoch": 3}}
    shown = json.loads(view.dump(asdict(Result("sweep", "a", "/p", {"loss": number}, trials=(trial,)))))
    assert shown["metrics"] == {"loss": None}
    assert shown["trials"] == [{"metrics": {"loss": None, "epoch": 3}}]
