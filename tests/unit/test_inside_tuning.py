import pytest

from raykube.inside.training import Task
from raykube.inside.trials import Relay
from raykube.inside.tuning import reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ray::f()\n  File x\nraykube.errors.ConfigError: no report\n  next: report it", "ConfigError: no report"),
        (
            "a: b\nraykube.errors.RunFailed: run x failed\n  why:  KeyError: 'lr' (worker 0)\n  next: y",
            "KeyError: 'lr' (worker 0)",
        ),
        (
            "2 worker(s) were killed due to the node running low on memory.\nOOM kill: x\nray.y: see",
            "Ray's memory monitor killed it: 2 worker(s) were killed due to the node running low on memory.",
        ),
        ("The actor died.\n\tpid: 1\nThe actor is dead because of x", "The actor is dead because of x"),
        ("something odd", "something odd"),
        ("", "Exception('')"),
    ],
)
def test_reason_of_a_trial_is_one_line(text, expected):
    assert reason(Exception(text)) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("mode", "is_worst"), [("min", lambda told: told > 1e300), ("max", lambda told: told < -1e300)]
)
def test_trial_that_diverges_is_told_to_tune_as_the_worst_and_not_as_nothing(value, mode, is_worst):
    row = {"metrics": {"loss": value, "epoch": 3}, "checkpoint": None}
    relay = Relay(Task(lambda: None, {}, "loss", mode))
    assert relay.valid([row]) == [row]
    told = relay.told(row)
    assert is_worst(told["loss"])
    assert told["epoch"] == 3
