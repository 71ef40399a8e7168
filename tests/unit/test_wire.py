"""What both planes read of a run's folder."""

import json
import os
from pathlib import Path

import pytest

from raykube import wire
from raykube.errors import BackendError, Failure


def report(stage: Path, **metrics) -> None:
    stage.mkdir(parents=True, exist_ok=True)
    with (stage / wire.METRICS_FILE).open("a") as file:
        file.write(json.dumps({"metrics": metrics}) + "\n")


@pytest.mark.parametrize("folder", ["checkpoint_000001", ".checkpoint_000001.begun"])
def test_last_metrics_are_none_of_a_checkpoints_own(tmp_path, folder):
    report(tmp_path / "train-1", loss=0.5)
    os.utime(tmp_path / "train-1" / wire.METRICS_FILE, (1, 1))
    report(tmp_path / "train-1" / folder, loss=9.0)
    assert wire.last_report(tmp_path).get("metrics", {}) == {"loss": 0.5}


def test_last_metrics_of_a_sweep_are_its_trials(tmp_path):
    report(tmp_path / "sweep-1" / "trial_00001" / "train-1", loss=0.25)
    assert wire.last_report(tmp_path).get("metrics", {}) == {"loss": 0.25}


def test_last_metrics_leave_out_the_line_being_written(tmp_path):
    report(tmp_path / "train-1", loss=0.5)
    with (tmp_path / "train-1" / wire.METRICS_FILE).open("a") as file:
        file.write('{"metrics": {"lo')
    assert wire.last_report(tmp_path).get("metrics", {}) == {"loss": 0.5}


def test_last_metrics_may_be_many(tmp_path):
    many = {f"layer.{number}.weight.grad_norm": 0.123456789 for number in range(2000)}
    for _ in range(2):
        report(tmp_path / "train-1", **many)
    assert wire.last_report(tmp_path).get("metrics", {}) == many


def test_last_metrics_of_a_run_that_reported_nothing_are_empty(tmp_path):
    assert wire.last_report(tmp_path / "nowhere").get("metrics", {}) == {}


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 1, "loss": 0.5}',
        '{"metrics": [1]}',
        "[1]",
        "no JSON",
        pytest.param(f'{{"metrics": {{"text": "{"x" * 2**20}"}}}}', id="too long"),
    ],
)
def test_last_metrics_are_empty_where_the_last_line_cannot_be_read(tmp_path, line):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / wire.METRICS_FILE).write_text(line + "\n")
    assert wire.last_report(tmp_path).get("metrics", {}) == {}


def test_rows_leave_out_the_line_being_written(tmp_path):
    path = tmp_path / wire.METRICS_FILE
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}')
    assert [*wire.read_rows(path)] == [{"step": 1}, {"step": 2}]


ODD = ["", "\0\0\0", "[1]", "null", "{", "[" * 3000, "caf\udce9"]


def test_rows_leave_out_what_is_none(tmp_path):
    path = tmp_path / wire.METRICS_FILE
    row = '{"time": 1, "metrics": {"loss": 1}}'
    path.write_text("\n".join([*ODD, row, '{"metrics": {}}', *ODD, ""]), errors="surrogateescape")
    assert wire.Result("train", "demo", str(tmp_path)).history() == [json.loads(row)]


@pytest.mark.parametrize("text", [*ODD, '{"attempt": 1}', '{"attempt": 1, "time": "x", "message": "y"}'])
def test_trouble_is_none_where_the_file_is_torn_or_another_s(text):
    assert wire.trouble(text, 1) == ""


def test_result_of_another_version_is_read():
    written = {"kind": "train", "run": "demo", "path": "/x", "metrics": {"loss": 1}, "notes": ["late"], "later": 1}
    read = wire.Result.from_json(json.dumps(written))
    assert read == wire.Result("train", "demo", "/x", {"loss": 1}, notes=("late",))


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", '{"kind": "train"}', '{"kind": "", "run": "", "path": "", "notes": 1}'),
        '{"kind": "", "run": "", "path": "", "metrics": null}',
        '{"kind": "", "run": "", "path": "", "params": "x"}',
    ],
)
def test_result_that_cannot_be_read_says_so(text):
    with pytest.raises(BackendError, match="result of the run cannot be read"):
        wire.Result.from_json(text)


LEFT = {
    "time": 5.0,
    "attempt": 2,
    "reason": "LoopFailed",
    "message": "\nx \udce9 (worker 1)\nmore",
    "next_step": "look",
}


def test_failure_is_that_of_the_attempt_and_of_its_time():
    told = wire.failure(json.dumps(LEFT), 2, 5.0)
    assert (told.reason, told.message, told.exit_code, told.next_step) == ("LoopFailed", "x ? (worker 1)", 1, "look")
    assert wire.failure(json.dumps(LEFT), 3, 5.0) is None
    assert wire.failure(json.dumps(LEFT), 2, 5.1) is None  # of an earlier run of this name


@pytest.mark.parametrize("text", [*ODD, "{}", *(json.dumps(LEFT | {key: None}) for key in ("time", "message"))])
def test_failure_is_none_where_the_file_is_torn_or_another_s(text):
    assert wire.failure(text, 2, 0.0) is None


@pytest.mark.parametrize("next_step", ["", "use less (or more)"])
def test_failure_is_read_from_the_line_that_a_log_ends_with(next_step):
    told = Failure("LoopFailed", "ValueError: f(x): 1 (worker 1)", 1, next_step=next_step)
    assert wire.failure_of(f"raykube: {wire.failure_line(2, told)}") == told
    assert wire.failure_of("raykube: attempt 2 begins") is None


def test_failure_whose_message_looks_as_if_it_had_a_step_keeps_its_own():
    told = Failure("LoopFailed", "KeyError: 'a (next: b)'", 1, next_step="do this")
    assert wire.failure_of(f"raykube: {wire.failure_line(2, told)}") == told


def test_failure_of_a_very_long_message_is_short_enough_for_the_end_of_a_log_that_ray_hands_on():
    told = wire.failure(json.dumps(LEFT | {"message": "x" * 39_000}), 2, 0.0)
    assert len(wire.failure_line(2, told)) < 20_000
