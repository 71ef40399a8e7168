from types import MappingProxyType

import pytest
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from raykube.inside.space import unsearchable
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


CONDITIONAL = [{"k": "a", "x": tune.uniform(0, 1)}, {"k": "b", "y": [tune.grid_search([1])]}]


@pytest.mark.parametrize(
    ("space", "paths"),
    [
        ({"x": 1}, ["space"]),
        ({"x": tune.grid_search([1, 2])}, ["space.x"]),
        ({"x": tune.uniform(0, 1), "net": {"lr": tune.grid_search([1, 2])}}, ["space.net.lr"]),
        ({"l": [tune.choice([1, 2]), {"x": tune.uniform(0, 1)}]}, ["space.l[0]", "space.l[1].x"]),
        ({"x": tune.uniform(0, 1), "t": (1, tune.uniform(0, 1))}, ["space.t[1]"]),
        ({"x": MappingProxyType({"y": tune.uniform(0, 1)})}, ["space.x.y"]),
        ({"f": tune.sample_from(lambda _: 1), "n": tune.randn(), "q": tune.qrandn(0, 1, 0.1)}, "fnq"),
        ({"i": tune.qlograndint(1, 100, 5), "u": tune.uniform(1, 0)}, "iu"),
        ({"a/b": tune.uniform(0, 1), 1: {"c/d": 2}}, ["space.a/b", "space.1", "space.1.c/d"]),
        ({"x": tune.uniform(0, 1), "e": {"eval": "1 + 1"}}, "e"),
        ({"c": tune.choice(CONDITIONAL)}, ["space.c[0].x", "space.c[1].y[0]"]),
    ],
)
@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
def test_space_names_each_path_that_cannot_be_searched_and_what_to_do(space, paths):
    found = unsearchable(space)
    assert [problem.path for problem in found] == [path if "space" in path else f"space.{path}" for path in paths]
    assert all(problem.next_step for problem in found)


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
def test_space_of_what_optuna_takes_has_no_problems():
    plain = {"net": {"lr": tune.qloguniform(1e-4, 1, 1e-4), "layers": [{1: 2}]}, "i": tune.lograndint(1, 100), "e": {}}
    space = {"c": tune.choice([{"k": "a", "l": [1]}, {"k": "b"}, (1, 2), None]), **plain}
    assert unsearchable(space) == []
    assert set(OptunaSearch.convert_search_space(space)) == {"c", "net/lr", "i"}
