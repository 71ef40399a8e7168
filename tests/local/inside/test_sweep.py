import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
import ray
import ray.train
from ray import tune

import raykube
from raykube import wire
from raykube.errors import ConfigError, Conflict, RunFailed
from raykube.inside import checkpoints, place
from raykube.inside.stages import ENDED_FILE
from tests.basics import until
from tests.local.inside.support import MARKS, note, notes

pytestmark = MARKS


def loop(config):
    """Report a score that grows with x; fail where x is 3."""
    if config["x"] == 3:
        raise RuntimeError("no luck with three")
    for epoch in range(2):
        # "done" is Tune's word for the end of a trial, and here a metric of the loop's own.
        metrics = {"epoch": epoch, "score": config["x"] + 0.1 * epoch, "done": epoch == 0}
        raykube.report(metrics, {"epoch": epoch, "x": config["x"]})
        threading.Event().wait(1.0)


def silent(_config):
    raykube.report({"other": 1.0})


def worse_each_time(config):
    """Score 1, and 0 in the next trial, which would go on for minutes."""
    rank = ray.train.get_context().get_world_rank()
    hopeless = config["x"] not in {fact["x"] for fact in notes(config["trials"])[:1] or [config]}
    if rank == 0:
        note(config["trials"], x=config["x"])
    for epoch in range(300 if hopeless else 5):
        raykube.report({"epoch": epoch, "score": 0.0 if hopeless else 1.0}, {"epoch": epoch})
        threading.Event().wait(0.5 if hopeless else 0)  # an epoch's work


def cpus_in_use():
    return ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0)


def test_sweep_runs_more_trials_than_fit_and_returns_the_best(here, monkeypatch):
    monkeypatch.setenv(wire.TRACKING, "on")
    monkeypatch.setenv(wire.MAX_FAILURES, "0")
    result = raykube.sweep(
        loop, {"x": tune.choice([1, 2, 3])}, trials=3, metric="score", mode="max", experiment="sweeps"
    )
    good = [trial for trial in result.trials if not trial["error"]]
    assert len(result.trials) == 3
    assert result.metrics["score"] == max(trial["metrics"]["score"] for trial in good)
    assert checkpoints.load(result.checkpoint) == {"epoch": 1, "x": result.params["x"]}
    assert all("no luck with three" in trial["error"] for trial in result.trials if trial["params"]["x"] == 3)
    assert {trial["metrics"]["done"] for trial in good} == {False}
    assert all((Path(result.path) / trial["trial"] / ENDED_FILE).exists() for trial in result.trials)
    assert len(here.rows("sweep-1")) == 3
    assert here.rows("sweep-1")[-1]["metrics"]["score"] == result.metrics["score"]
    with closing(sqlite3.connect(here.storage / "mlflow.db")) as store:
        nested = store.execute("select count(*) from tags where key = 'mlflow.parentRunId'").fetchone()
        statuses = store.execute("""
            select tags.value is not null, status, count(*) from runs left join tags
            on tags.run_uuid = runs.run_uuid and tags.key = 'mlflow.parentRunId' group by 1, 2
        """).fetchall()
    failed = len(result.trials) - len(good)
    nested_ends = {status: count for is_nested, status, count in statuses if is_nested}
    assert nested == (3,)
    assert nested_ends == {
        status: count for status, count in {"FAILED": failed, "FINISHED": len(good)}.items() if count
    }


@pytest.mark.usefixtures("here")
def test_trials_of_all_workers_take_turns_and_a_hopeless_one_is_ended(monkeypatch, tmp_path):
    monkeypatch.setenv(wire.TRIAL_WORKERS, "2")
    space = {"x": tune.uniform(0, 1), "trials": str(tmp_path / "trials")}
    result = raykube.sweep(worse_each_time, space, trials=2, metric="score", mode="max")
    assert [trial["error"] for trial in result.trials] == [None, None]
    assert len({trial["params"]["x"] for trial in result.trials}) == 2
    assert all((Path(result.path) / trial["trial"] / ENDED_FILE).exists() for trial in result.trials)
    assert result.metrics["score"] == 1.0
    hopeless = min(result.trials, key=lambda trial: trial["metrics"]["score"])
    assert [trial["trial"] for trial in result.trials if trial["stopped_early"]] == [hopeless["trial"]]
    rows = wire.read_rows(Path(result.path) / hopeless["trial"] / "train-1" / wire.METRICS_FILE)
    assert max(row["metrics"]["epoch"] for row in rows) < 299
    until(lambda: cpus_in_use() == 0, "the placement group of the ended trial is freed", 60)


@pytest.mark.usefixtures("here")
def test_sweep_whose_loop_never_reports_the_metric_says_what_it_reports():
    with pytest.raises(RunFailed, match="other") as caught:
        raykube.sweep(silent, {"x": tune.uniform(0, 1)}, trials=1, metric="score", mode="max")
    assert caught.value.reason == "AllTrialsFailed"


@pytest.mark.usefixtures("here")
def test_trial_that_does_not_fit_is_refused_before_anything_waits(monkeypatch):
    monkeypatch.setenv(wire.TRIAL_WORKERS, "512")
    with pytest.raises(ConfigError, match="room for"):
        raykube.sweep(loop, {"x": tune.uniform(0, 1)}, trials=1, metric="score", mode="max")


@pytest.mark.usefixtures("here")
def test_space_that_pickle_does_not_take_is_refused_by_its_name():
    with pytest.raises(ConfigError, match=r"config\.lock: TypeError"):
        raykube.sweep(loop, {"x": tune.uniform(0, 1), "lock": threading.Lock()}, trials=1, metric="score", mode="max")


def long_once(config):
    """Report at once, and then stay long in the trial that is said, in the first attempt only."""
    if ray.train.get_context().get_world_rank() == 0:
        note(config["trials"], x=config["x"])
    seen = [fact["x"] for fact in notes(config["trials"])]
    raykube.report({"score": config["x"]}, {"x": config["x"]})
    if len(set(seen)) == config["long"] and not config["again"].exists():
        threading.Event().wait(300)


def resumed_sweep(folder, long, trials=2, **more):
    # Of what is not plain, Tune writes down only where it was.
    again = tune.choice([Path(folder) / "again"])
    space = {"x": tune.uniform(0, 1), "trials": Path(folder) / "trials", "again": again, "long": long}
    return raykube.sweep(long_once, space | more, trials=trials, metric="score", mode="max")


def test_retry_of_a_killed_sweep_keeps_the_trials_that_were_through(here, monkeypatch, tmp_path):
    # One trial at once: the second one starts after the first.
    monkeypatch.setenv(wire.CPUS, str(len(os.sched_getaffinity(0))))
    code = f"from tests.local.inside.test_sweep import resumed_sweep; resumed_sweep({str(tmp_path)!r}, 2)"
    sweep = here.folder / "sweep-1"
    # Tune writes down every second what is through, instead of every ten.
    environ = {**os.environ, "RAY_TMPDIR": "/tmp", "TUNE_GLOBAL_CHECKPOINT_S": "1"}
    with subprocess.Popen([sys.executable, "-c", code], env=environ, start_new_session=True) as child:
        until(lambda: len({fact["x"] for fact in notes(tmp_path / "trials")}) == 2, "two trials have begun", 120)
        until(lambda: "TERMINATED" in states(sweep), "Tune has written down that one is through", 60)
        os.killpg(child.pid, signal.SIGKILL)
    (tmp_path / "again").touch()
    first = notes(tmp_path / "trials")[0]["x"]
    monkeypatch.setenv(wire.ATTEMPT, "2")
    result = resumed_sweep(str(tmp_path), 2)
    assert len(result.trials) == 2
    assert all((sweep / trial["trial"] / ENDED_FILE).exists() for trial in result.trials)
    assert [trial["error"] for trial in result.trials] == [None, None]
    assert [fact["x"] for fact in notes(tmp_path / "trials")].count(first) == 1
    assert result.trials[0]["params"]["x"] == first


def states(sweep):
    return "".join(path.read_text() for path in sweep.glob("experiment_state-*"))


def interrupt_at(fact):
    """Press Ctrl-C once `fact` is true."""
    until(fact, "the sweep is where it is to be interrupted", 120)
    os.kill(os.getpid(), signal.SIGINT)


def test_interrupted_sweep_has_no_result_and_goes_on_and_keeps_no_signal(here, monkeypatch, tmp_path):
    monkeypatch.setenv(wire.CPUS, str(len(os.sched_getaffinity(0))))  # one trial at once
    signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)]
    second = threading.Thread(target=interrupt_at, args=[lambda: len(notes(tmp_path / "trials")) == 2], daemon=True)
    second.start()
    with pytest.raises(KeyboardInterrupt):
        resumed_sweep(tmp_path, 2)
    assert not (here.folder / wire.RESULT_FILE).exists()
    (tmp_path / "again").touch()
    first = notes(tmp_path / "trials")[0]["x"]
    place._stages.pop(here.run)
    monkeypatch.setenv(wire.ATTEMPT, "2")
    with pytest.raises(Conflict, match="another space"):
        resumed_sweep(tmp_path, 2, new=1)
    place._stages.pop(here.run)
    result = resumed_sweep(tmp_path, 2, trials=3)
    assert [trial["error"] for trial in result.trials] == [None, None]
    assert [fact["x"] for fact in notes(tmp_path / "trials")].count(first) == 1
    assert "as it began, with 2 trials" in result.notes[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)] == signals


def through(config):
    if checkpoints.latest() is None:
        raykube.report({"score": config["x"]}, {"x": config["x"]})


def test_trial_that_was_through_before_tune_wrote_it_down_counts(here, monkeypatch):
    def swept():
        return raykube.sweep(through, {"x": tune.uniform(0, 1)}, trials=1, metric="score", mode="max")

    first = swept()
    sweep = here.folder / "sweep-1"
    for path in (here.folder / wire.RESULT_FILE, sweep / wire.RESULT_FILE):
        path.unlink()
    for path in sweep.glob("experiment_state-*"):
        path.write_text(path.read_text().replace("TERMINATED", "RUNNING"))
    place._stages.pop(here.run)
    monkeypatch.setenv(wire.ATTEMPT, "2")
    again = swept()
    assert (again.trials[0]["error"], again.checkpoint) == (None, first.checkpoint)
    assert again.metrics["score"] == first.metrics["score"]
