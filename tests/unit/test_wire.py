"""What both planes read of a run's folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from raykube import wire

CHURN = """
import pathlib, shutil, sys
stage = pathlib.Path(sys.argv[1])
while True:
    for number in range(8):
        (stage / f"checkpoint_{number}" / "rank_0").mkdir(parents=True)
    for number in range(8):
        shutil.rmtree(stage / f"checkpoint_{number}")
    print(flush=True)
"""


def report(stage: Path, **metrics) -> None:
    stage.mkdir(parents=True, exist_ok=True)
    with (stage / wire.METRICS_FILE).open("a") as file:
        file.write(json.dumps({"metrics": metrics}) + "\n")


@pytest.fixture
def churned(tmp_path):
    """Return a stage in which checkpoints come and go, as Ray Train makes and deletes them."""
    report(tmp_path / "train-1", loss=0.5)
    script = [sys.executable, "-c", CHURN, str(tmp_path / "train-1")]
    with subprocess.Popen(script, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield tmp_path
        process.kill()


def test_last_metrics_are_read_while_checkpoints_are_deleted(churned):
    assert all(wire.last_metrics(churned) == {"loss": 0.5} for _ in range(2000))


def test_last_metrics_of_a_sweep_are_its_trials(tmp_path):
    report(tmp_path / "sweep-1" / "trial_00001" / "train-1", loss=0.25)
    assert wire.last_metrics(tmp_path) == {"loss": 0.25}


def test_last_metrics_leave_out_the_line_being_written(tmp_path):
    report(tmp_path / "train-1", loss=0.5)
    with (tmp_path / "train-1" / wire.METRICS_FILE).open("a") as file:
        file.write('{"metrics": {"lo')
    assert wire.last_metrics(tmp_path) == {"loss": 0.5}


def test_last_metrics_of_a_run_that_reported_nothing_are_empty(tmp_path):
    assert wire.last_metrics(tmp_path / "nowhere") == {}


@pytest.mark.parametrize(
    "line",
    ['{"step": 1, "loss": 0.5}', '{"metrics": [1]}', "[1]", "no JSON", f'{{"metrics": {{"text": "{"x" * 70_000}"}}}}'],
)
def test_last_metrics_are_empty_where_the_last_line_cannot_be_read(tmp_path, line):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / wire.METRICS_FILE).write_text(line + "\n")
    assert wire.last_metrics(tmp_path) == {}


def test_rows_leave_out_the_line_being_written(tmp_path):
    path = tmp_path / wire.METRICS_FILE
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}')
    assert [*wire.read_rows(path)] == [{"step": 1}, {"step": 2}]
