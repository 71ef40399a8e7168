import sqlite3

import pytest
import ray
from ray import tune

import raykube
from raykube import wire
from raykube.errors import ConfigError, RunFailed
from raykube.inside import checkpoints
from tests.local.inside_support import MARKS, here, own_ray  # noqa: F401 # fixtures

pytestmark = MARKS


def loop(config):
    """Report a score that grows with x; fail where x is 3."""
    if config["x"] == 3:
        raise RuntimeError("no luck with three")
    for epoch in range(2):
        raykube.report({"epoch": epoch, "score": config["x"] + 0.1 * epoch}, {"epoch": epoch, "x": config["x"]})


def silent():
    raykube.report({"other": 1.0})


def resources_are_free():
    """Tell whether every CPU is available again, as no placement group was left behind."""
    return ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]


def test_sweep_runs_more_trials_than_fit_and_returns_the_best(here, monkeypatch):  # noqa: F811
    monkeypatch.setenv(wire.TRACKING, "on")
    monkeypatch.setenv(wire.MAX_FAILURES, "0")
    result = raykube.sweep(
        loop, {"x": tune.choice([1, 2, 3])}, trials=4, metric="score", mode="max", experiment="sweeps"
    )
    good = [trial for trial in result.trials if not trial["error"]]
    assert len(result.trials) == 4
    assert result.metrics["score"] == max(trial["metrics"]["score"] for trial in good)
    assert checkpoints.load(result.checkpoint) == {"epoch": 1, "x": result.params["x"]}
    assert all("no luck with three" in trial["error"] for trial in result.trials if trial["params"]["x"] == 3)
    assert len(here.rows("sweep-1")) == 4
    with sqlite3.connect(here.storage / "mlflow.db") as store:
        nested = store.execute("select count(*) from tags where key = 'mlflow.parentRunId'").fetchone()
    assert nested == (4,)


@pytest.mark.usefixtures("here")
def test_trials_of_two_workers_take_turns_and_leave_nothing_behind(monkeypatch):
    monkeypatch.setenv(wire.TRIAL_WORKERS, "2")
    result = raykube.sweep(loop, {"x": tune.uniform(0, 1)}, trials=2, metric="score", mode="max")
    assert [trial["error"] for trial in result.trials] == [None, None]
    assert len({trial["params"]["x"] for trial in result.trials}) == 2
    assert resources_are_free()


@pytest.mark.usefixtures("here")
def test_sweep_whose_loop_never_reports_the_metric_says_what_it_reports():
    with pytest.raises(RunFailed, match="other") as caught:
        raykube.sweep(silent, {"x": 1}, trials=1, metric="score", mode="max")
    assert caught.value.reason == "AllTrialsFailed"


@pytest.mark.usefixtures("here")
def test_trial_that_does_not_fit_is_refused_before_anything_waits(monkeypatch):
    monkeypatch.setenv(wire.TRIAL_WORKERS, "512")
    with pytest.raises(ConfigError, match="room for"):
        raykube.sweep(loop, {"x": 1}, trials=1, metric="score", mode="max")


def test_sweep_lists_every_wrong_argument():
    with pytest.raises(ConfigError) as caught:
        raykube.sweep(loop, {}, trials=0, metric="", mode="max")
    assert [problem.path for problem in caught.value.problems] == ["trials", "metric"]
