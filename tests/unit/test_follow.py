"""What the command line shows of a run on a terminal and without one, and makes of an end that cannot be read whole."""

import contextlib
import io
import json
import os
import pty
import sys
import threading

import pytest

from raykube.backends import Status
from raykube.cli import common
from raykube.errors import Failure, Forbidden, NotFound, RunFailed, RunStopped
from raykube.handles import Run
from tests.basics import until


class Place:
    """A place that tells how its run ended, and refuses its log and its result."""

    def __init__(self, state, failure=None):
        self.ended = Status("a", "job", state, failure=failure)

    def status(self, *_):
        return self.ended

    def changes(self, *_):
        while True:
            yield self.ended

    def logs(self, *_, follow, source):  # noqa: ARG002 - as a backend has them
        raise Forbidden("this user may not get secrets")

    def result(self, _):
        raise Forbidden("this user may not get services/proxy")


def test_run_that_ends_well_ends_so_where_neither_its_log_nor_its_result_can_be_read(capsys):
    common.follow_run(Run("a", Place("SUCCEEDED")), as_json=False)
    told = capsys.readouterr().err
    assert "note: the log could not be read to its end: this user may not get secrets" in told
    assert "note: the result could not be read: this user may not get services/proxy" in told


def test_run_that_failed_is_told_by_its_own_error_where_its_log_cannot_be_read(capsys):
    place = Place("FAILED", Failure("EntrypointFailed", "exit code 3", 3))
    with pytest.raises(RunFailed, match="EntrypointFailed") as caught:
        common.follow_run(Run("a", place), as_json=True)
    assert common.exit_code(caught.value) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["result"]) == ("FAILED", None)


class Gone(Place):
    """A place where the run is deleted while it is followed."""

    def status(self, *_):
        raise NotFound("there is no run a")

    def changes(self, *_):
        yield self.ended
        raise NotFound("run a was deleted")


def test_run_that_is_deleted_while_it_is_followed_with_json_is_told_as_deleted(capsys):
    with pytest.raises(RunStopped, match="somebody deleted run a") as caught:
        common.follow_run(Run("a", Gone("RUNNING")), as_json=True)
    assert (common.exit_code(caught.value), capsys.readouterr().out) == (1, "")


def test_log_that_cannot_be_read_is_the_error_of_who_asks_for_it():
    with pytest.raises(Forbidden, match="may not get secrets"):
        common.follow_log(Run("a", Place("SUCCEEDED")), "driver")


class Going(Place):
    """A place whose run goes through these states; it has ended once its log was read."""

    def __init__(self, *states, has_shown=lambda: True):
        super().__init__(states[-1].state)
        self.states, self.has_shown, self.read = states, has_shown, threading.Event()

    def changes(self, *_):
        *before, last = self.states
        yield from before
        assert self.read.wait(30)
        yield last

    def logs(self, *_, follow, source):  # noqa: ARG002 - as a backend has them
        until(self.has_shown, "the state is shown", 10)
        yield "epoch 1"
        self.read.set()

    def result(self, _):
        return None


@contextlib.contextmanager
def terminal(*names):
    """Have these streams of this process go to a terminal; give a function that returns what that was sent."""
    here, there = pty.openpty()
    sent = io.BytesIO()

    def read():
        with contextlib.suppress(OSError):  # nobody has it open for writing any more
            while data := os.read(here, 4096):
                sent.write(data)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with open(there, "w") as stream, pytest.MonkeyPatch.context() as patch:  # noqa: PTH123 - a descriptor has no path
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", "100")
        for name in names:
            patch.setattr(sys, name, stream)
        yield lambda: sent.getvalue().decode(errors="ignore")
    reader.join(10)
    os.close(here)


def test_terminal_shows_the_state_of_a_run_below_its_log():
    states = [Status("a", "job", "RUNNING", progress={"loss": 0.5}), Status("a", "job", "SUCCEEDED")]
    line = "a RUNNING · loss 0.5"
    with terminal("stdout", "stderr") as shown:
        common.follow_run(Run("a", Going(*states, has_shown=lambda: line in shown())), as_json=False)
    told = shown()
    assert told.index(line) < told.index("epoch 1\r\n") < told.rindex(line) < told.index("a SUCCEEDED")


def test_pipe_beside_a_terminal_has_the_log_alone(capsys):
    states = [Status("a", "job", "RUNNING"), Status("a", "job", "SUCCEEDED")]
    with terminal("stderr") as shown:
        common.follow_run(Run("a", Going(*states, has_shown=lambda: "a RUNNING" in shown())), as_json=False)
    assert (capsys.readouterr().out, "epoch 1" in shown()) == ("epoch 1\n", False)


@pytest.mark.parametrize(
    "follow",
    [lambda run: common.follow_run(run, as_json=False), lambda run: common.follow_log(run, "driver")],
    ids=["run", "log"],
)
def test_wait_of_a_run_is_told_where_there_is_no_terminal(follow, capsys):
    states = [Status("a", "job", "WAITING", detail="place 2 in queue q"), Status("a", "job", "SUCCEEDED")]
    follow(Run("a", Going(*states)))
    told = capsys.readouterr()
    assert told.out == "epoch 1\n"
    assert told.err.splitlines()[0] == "a WAITING · place 2 in queue q · 0s"
