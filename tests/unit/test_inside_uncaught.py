"""Why a script has ended, as it leaves it for who asks later: each is a process of its own."""

import json
import sys

import pytest

from raykube import wire
from raykube.inside.failures import TRACEBACK_STEP
from tests.support import run

SCRIPT = """
import sys
from raykube.errors import Failure, RunFailed
from raykube.inside import uncaught
from raykube.inside.place import Place

def train(reason="LoopFailed", next_step="look"):
    with uncaught.kept(Place.from_environ()):
        raise RunFailed.of("a", Failure(reason, "ValueError: x (worker 1)", next_step=next_step))
"""
CAUGHT = "try:\n    train()\nexcept RunFailed as error:\n    held = error\n"


@pytest.fixture
def left(tmp_path):
    """Return a function that runs a script, for its exit code and what it has left."""

    def left(script):
        (tmp_path / "a").mkdir(exist_ok=True)
        environ = {wire.RUN_NAME: "a", wire.STORAGE: str(tmp_path), wire.ATTEMPT: "2"}
        done = run(sys.executable, "-c", SCRIPT + script, **environ)
        path = tmp_path / "a" / wire.FAILURE_FILE
        return done.returncode, json.loads(path.read_text()) if path.exists() else None

    return left


def test_failure_that_ends_a_script_is_left_in_the_runs_folder(left):
    code, note = left("train()")
    assert (code, note.pop("time") > 0) == (wire.UNCAUGHT, True)
    words = {"reason": "LoopFailed", "message": "ValueError: x (worker 1)", "next_step": "look"}
    assert note == {"attempt": 2, **words}


def test_failure_that_a_script_tries_again_is_the_last_one(left):
    assert left(f"{CAUGHT}train('WorkerDied')")[1]["reason"] == "WorkerDied"


@pytest.mark.parametrize("after", ["", "sys.exit(3)", "raise ValueError('another')", "import os; os._exit(1)"])
def test_failure_that_a_script_catches_is_not_left(left, after):
    assert left(CAUGHT + after)[1] is None


def test_advice_to_look_below_is_left_out_where_nothing_is_below(left):
    assert left(f"train(next_step={TRACEBACK_STEP!r})")[1]["next_step"] == ""


def test_folder_that_takes_no_failure_changes_nothing_of_the_end(tmp_path):
    (tmp_path / "a" / wire.FAILURE_FILE).mkdir(parents=True)
    done = run(sys.executable, "-c", f"{SCRIPT}train()", **{wire.RUN_NAME: "a", wire.STORAGE: str(tmp_path)})
    assert (done.returncode, done.stderr.count("Traceback")) == (1, 1)
