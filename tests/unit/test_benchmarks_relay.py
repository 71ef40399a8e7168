"""Arms that take turns: real processes, each of which writes a letter when it is its turn."""

import itertools
import sys

import pytest

from benchmarks import relay

SPELLS = """
import sys
from benchmarks import relay
for number in relay.Turns(sys.argv[1], int(sys.argv[2])):
    with open(sys.argv[3], "a") as file:
        file.write(f"{sys.argv[4]}{number} ")
"""


def arms(names, log, count):
    def command(name):
        return lambda folder: [sys.executable, "-c", SPELLS, str(folder / "turns"), str(count), str(log), name]

    return {name: command(name) for name in names}


def test_arms_take_turns_one_at_a_time(tmp_path):
    relay.run(arms("abc", tmp_path / "log", 2), tmp_path, 2, 0)
    assert (tmp_path / "log").read_text().split() == ["a0", "b0", "c0", "b1", "c1", "a1"]


def test_each_arm_comes_once_after_each_other_within_four_rounds():
    follows = [pair for turn in range(4) for pair in itertools.pairwise(relay.order("abcd", turn))]
    assert sorted(follows) == sorted(itertools.permutations("abcd", 2))


def test_ranks_without_a_relay_do_not_wait():
    assert list(relay.Turns("", 3)) == [0, 1, 2]


def test_arm_that_ends_before_its_turns_is_named(tmp_path):
    with pytest.raises(SystemExit, match="b: it ended before its turns did"):
        relay.run(arms("a", tmp_path / "log", 2) | arms("b", tmp_path / "log", 1), tmp_path, 2, 0)


def test_arm_that_cannot_start_is_told_with_its_output(tmp_path):
    with pytest.raises(SystemExit, match=r"(?s)a: it took no turn.*no such thing"):
        relay.run({"a": lambda _: [sys.executable, "-c", "raise OSError('no such thing')"]}, tmp_path, 1, 0)


def test_arm_that_fails_after_its_turns_is_told_with_its_output(tmp_path):
    fails = f"{SPELLS}\nraise OSError('the disk is full')"
    (ends,) = arms("a", tmp_path / "log", 1).values()
    with pytest.raises(SystemExit, match=r"(?s)a: exit code 1.*the disk is full"):
        relay.run({"a": lambda folder: [word if word != SPELLS else fails for word in ends(folder)]}, tmp_path, 1, 0)
