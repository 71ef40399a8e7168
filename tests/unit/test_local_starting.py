"""The start of the Ray head of this machine, and of its keeper."""

import pytest

import raykube as rk
from raykube.backends.local import following, head, starting
from raykube.errors import Unreachable


def test_relative_home_reaches_the_keeper_and_its_jobs_as_an_absolute_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYKUBE_HOME", ".rk")
    assert starting.keeper_environ()["RAYKUBE_HOME"] == str(tmp_path / ".rk")


@pytest.mark.usefixtures("home")
def test_keeper_that_cannot_adopt_the_head_is_told_by_its_own_words_and_not_kept():
    for _ in range(2):
        with pytest.raises(rk.BackendError, match="the keeper of the Ray head on this machine did not start") as told:
            starting._spawn_keeper("h", "--adopt")
    assert told.value.why == "there is no head to adopt"
    assert "keeper.log" in told.value.next_step
    assert [keeper.returncode for keeper in starting._keepers[:-1] if keeper.returncode is not None] == []


def test_living_head_that_gives_no_answer_once_is_asked_again(answering):
    answering.refused.add(503)
    assert starting.ensure() == head.current()
    assert answering.asked == ["/api/version"]


def test_living_head_that_gives_no_answer_for_long_is_left_alone(answering, monkeypatch):
    monkeypatch.setattr(following, "PATIENCE_S", 0)
    answering.refused.update((502, 503, 504))
    with pytest.raises(Unreachable, match=r"next: .*raykube cluster delete local"):
        starting.ensure()
    assert head.current() is not None
