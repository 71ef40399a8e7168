"""What the command line makes of a run's end where its log or its result cannot be read."""

import json

import pytest

from raykube.backends import Status
from raykube.cli import common
from raykube.errors import Failure, Forbidden, RunFailed
from raykube.handles import Run


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


def test_log_that_cannot_be_read_is_the_error_of_who_asks_for_it():
    with pytest.raises(Forbidden, match="may not get secrets"):
        common.follow_log(Run("a", Place("SUCCEEDED")), "driver")
