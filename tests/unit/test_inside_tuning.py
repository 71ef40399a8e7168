import json
import math
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
import ray
from ray import tune
from ray.tune.search.optuna import OptunaSearch

import raykube
from raykube import wire
from raykube.errors import ConfigError, RunFailed
from raykube.inside import history, tracking, trials, tuning
from raykube.inside.begun import as_begun
from raykube.inside.loops import RETURNED_FILE
from raykube.inside.place import Place
from raykube.inside.space import unsearchable
from raykube.inside.stages import ENDED_FILE
from raykube.inside.tasks import Task
from raykube.inside.training import Stage, own_signals
from raykube.inside.trials import (
    CONFIG_FILE,
    METRIC,
    STARTED_FILE,
    TRAIN,
    Relay,
    Trials,
    note_end,
    reached,
    valid,
)
from raykube.inside.tuning import reason
from tests.basics import write
from tests.support import run


def reported(checkpoint=None, attempt=1, **metrics):
    """Return a row as it stands in a metrics file."""
    return {"time": 1.0, "attempt": attempt, "metrics": metrics, "checkpoint": checkpoint}


class Sweep:
    """A sweep that has ended, as its trials leave it on disk, and what Tune says of them."""

    task = Task(lambda: None, {}, "loss")

    def __init__(self, folder):
        self.stage = Stage(Place("demo", str(folder)), "sweep-1", str(folder))
        self.grid = []

    def ran(self, trial, *rows, start=1.0, error=None):
        """Add a trial."""
        from ray.tune import Result

        folder = Path(self.stage.path.removeprefix("file://"), trial)
        write(folder / CONFIG_FILE, {"lr": 0.1})
        if start < math.inf:
            (folder / STARTED_FILE).write_text(repr(start))
        (folder / TRAIN).mkdir()
        Path(Stage(self.stage.place, TRAIN, str(folder)).metrics).write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )
        failure = RuntimeError(error) if error else None
        self.grid.insert(0, Result(checkpoint=None, metrics={"done": False}, error=failure, path=str(folder)))

    def keeps(self, trial, **checkpoints):
        """Have a trial's training keep checkpoints of these metrics, the last one last, as Ray lists them."""
        folder = Path(self.stage.path, trial, TRAIN)
        listed = [{"checkpoint_dir_name": name, "metrics": metrics} for name, metrics in checkpoints.items()]
        for name in checkpoints:
            (folder / name).mkdir()
        lists = ("pending_training_results", "pending_validation_specs", "validated_checkpoint_dir_names")
        failed = ("timed_out_validation_checkpoint_dir_names", "failed_validation_checkpoint_dir_names")
        facts = {
            "ray_version": ray.__version__,
            "checkpoint_results": listed,
            "checkpoint_report_indices": [*range(len(listed))],
            "latest_checkpoint_result": listed[-1],
            "current_report_index": len(listed),
        }
        write(folder / "checkpoint_manager_snapshot.json", {**{name: [] for name in lists + failed}, **facts})

    def found(self):
        return tuning._trial_entries(self.stage, self.task, self.grid)


@pytest.fixture
def sweep(tmp_path):
    return Sweep(tmp_path)


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
    row = reported(loss=value)
    assert valid([row], "loss") == [row]
    assert is_worst(Relay(Task(lambda: None, {}, "loss", mode)).told(row)[METRIC])


def test_words_of_tune_that_a_loop_reports_are_not_told_to_tune():
    row = reported(loss=0.5, done=True, training_iteration=90, time_total_s=1e9, should_checkpoint=True)
    told = Relay(Task(lambda: None, {}, "loss"), count=2).told(row)
    assert told == {METRIC: 0.5, "training_iteration": 2}
    assert Relay(Task(lambda: None, {}, "done", "max")).told(row) == {METRIC: True, "training_iteration": 0}


def test_tune_is_told_of_exactly_the_reports_that_are_compared_of_checkpoints_and_of_the_newest():
    relay = Relay(Task(lambda: None, {}, "loss"), count=1)
    found = [reported("checkpoint" if step == 5 else None, loss=float(step)) for step in range(2, 31)]
    found[3:3] = [reported(other=1.0)]  # which does not count
    told = [(each["training_iteration"], each[METRIC]) for each in relay.due(found)]
    assert told == [(step, step) for step in (3, 5, 9, 27, 30)]


def test_resumed_trial_counts_on_from_its_checkpoint():
    first = [reported(loss=1.0), reported(other=1.0), reported("checkpoint_1", loss=1.0), reported(loss=1.0)]
    again = [reported(attempt=2, loss=1.0), reported("checkpoint_2", attempt=2, loss=1.0)]
    assert reached([], "loss") == 0
    assert reached(first[:1], "loss") == 0  # without a checkpoint it begins again
    assert reached(first, "loss") == 2
    assert reached([*first, *again], "loss") == 4


def test_metrics_of_a_trial_without_checkpoints_are_all_that_it_reported(sweep):
    sweep.ran("a", reported(loss=2.0), reported(loss=1.0, done=True, config="big", step=3), reported(step=4))
    (entry,) = sweep.found()
    assert entry["metrics"] == {"loss": 1.0, "done": True, "config": "big", "step": 3}
    assert (entry["params"], entry["checkpoint"], entry["error"]) == ({"lr": 0.1}, None, None)


def test_trials_are_in_the_order_of_their_start_and_the_best_one_is_the_last_row(sweep):
    sweep.ran("d", reported(loss=3.0, step=9), start=1.0)
    sweep.ran("c", start=2.0, error="first")
    sweep.ran("b", reported(loss=1.0, step=2), start=3.0)
    sweep.ran("a", start=4.0, error="second")
    found = sweep.found()
    assert [entry["trial"] for entry in found] == ["d", "c", "b", "a"]
    told = tuning._record(sweep.stage, tuning._best_last(sweep.task, found))
    assert [row["metrics"]["trial"] for row in told] == ["d", "c", "a", "b"]
    assert told[-1]["metrics"] == {"trial": "b", "loss": 1.0}  # counted in MLflow
    assert history.rows(sweep.stage.metrics)[-1]["metrics"] == {"trial": "b", "loss": 1.0, "step": 2}


@pytest.mark.filterwarnings("ignore:The `parse_obj` method is deprecated")  # Ray's own
def test_trial_whose_metric_is_reported_without_checkpoints_has_its_last_one(sweep):
    sweep.ran("a", reported(loss=2.0), reported("one", epoch=1), reported(loss=1.0), reported("two", epoch=2))
    sweep.keeps("a", one={"epoch": 1}, two={"epoch": 2})
    result = tuning._best(sweep.stage, sweep.task, sweep.found(), ())
    assert (result.metrics, Path(result.checkpoint).name) == ({"loss": 1.0}, "two")
    assert result.notes == ("no checkpoint was reported with a number for the metric 'loss', so this is the last one",)


@pytest.mark.filterwarnings("ignore:The `parse_obj` method is deprecated")  # Ray's own
def test_trial_whose_metric_is_reported_with_checkpoints_has_its_best_one(sweep):
    sweep.ran("a", reported("one", loss=1.0), reported("two", loss=2.0), reported("three"))
    sweep.keeps("a", one={"loss": 1.0}, two={"loss": 2.0}, three={})
    result = tuning._best(sweep.stage, sweep.task, sweep.found(), ())
    assert (result.metrics, Path(result.checkpoint).name, result.notes) == ({"loss": 1.0}, "one", ())


class Followed:
    """One trial of a sweep that is watched, and what is said of it."""

    def __init__(self, sweep, caplog):
        caplog.set_level("INFO", "raykube")
        self._caplog, self._path = caplog, Path(sweep.stage.path.removeprefix("file://"))
        sweep.ran("a")
        self._metrics = self._path / "a" / TRAIN / "metrics.jsonl"
        self.trials = Trials(
            replace(sweep.stage, place=replace(sweep.stage.place, tracking=False)), "e", tracking.Tracker()
        )

    def look(self):
        """Have the sweep looked at once; return whether the trial's rows are read from then on."""
        self.trials._look()
        return self.trials._followed["a"][0].is_reading

    def reports(self, step):
        with self._metrics.open("a") as file:
            file.write(json.dumps(reported("checkpoint", step=step)) + "\n")

    def end(self):
        write(self._metrics.with_name(RETURNED_FILE), "")
        note_end(str(self._path), "a")

    def go_on(self):
        (self._path / "a" / ENDED_FILE).unlink()

    def leave(self):
        """End the watch; return what was said."""
        with self.trials:
            pass
        return [message for message in self._caplog.messages if message.startswith("trial a")]


@pytest.fixture
def followed(sweep, caplog):
    return Followed(sweep, caplog)


def test_trial_that_has_ended_is_read_no_more_but_for_what_was_on_its_way(followed):
    assert followed.look()
    followed.reports(1)
    followed.end()
    assert not followed.look()
    followed.reports(2)
    assert not followed.look()
    assert followed.leave() == [f"trial a step {step} (checkpoint)" for step in (1, 2)]


@pytest.mark.parametrize(
    ("how", "has_returned", "is_early"), [("", False, True), ("", True, False), ("failed", False, False)]
)
def test_trial_that_was_ended_before_its_loop_returned_was_stopped_early(followed, sweep, how, has_returned, is_early):
    folder = Path(sweep.stage.path, "a")
    followed.look()
    if has_returned:
        write(folder / TRAIN / RETURNED_FILE, "")
    note_end(str(folder.parent), "a", how)
    followed.look()
    assert [entry["stopped_early"] for entry in sweep.found()] == [is_early]
    assert followed.leave() == ["trial a was stopped early (ASHA): other trials do better"] * is_early


def test_trial_in_a_bucket_is_asked_for_its_end_no_more_often_than_for_its_rows(sweep, caplog, monkeypatch):
    pytest.importorskip("pyarrow")
    sweep.stage = replace(sweep.stage, parent=f"file://{sweep.stage.parent}")
    followed = Followed(sweep, caplog)
    assert followed.look()
    followed.end()
    assert followed.look()
    monkeypatch.setattr(trials, "_REMOTE_S", 0.0)
    assert not followed.look()
    followed.leave()


def test_trial_that_goes_on_after_its_end_in_an_earlier_attempt_is_read_again(followed):
    followed.end()
    assert not followed.look()
    followed.go_on()
    assert followed.look()
    followed.reports(1)
    followed.end()
    assert not followed.look()
    assert followed.leave() == ["trial a step 1 (checkpoint)"]


def test_failure_that_is_told_is_the_first_one(sweep):
    sweep.ran("b", start=1.0, error="first")
    sweep.ran("a", start=2.0, error="second")
    sweep.ran("0", start=math.inf, error="never began")
    with pytest.raises(RunFailed, match="first"):
        tuning._best(sweep.stage, sweep.task, sweep.found(), ())


@pytest.mark.parametrize(("job", "there"), [("demo", "raykube job result demo --json"), ("", "this result's trials")])
def test_note_of_trials_that_failed_has_the_first_ones_reason_and_where_all_are(sweep, monkeypatch, job, there):
    monkeypatch.setenv(wire.RUN_NAME, job)
    sweep.ran("c", start=1.0, error="KeyError: 'lr'")
    sweep.ran("b", reported(loss=2.0), start=2.0)
    sweep.ran("a", start=3.0, error="second")
    result = tuning._best(sweep.stage, sweep.task, sweep.found(), ())
    assert result.notes == (f"2 of 3 trials failed, the first one by: KeyError: 'lr'; all: {there}",)


SPACE = {"lr": tune.loguniform(1e-4, 1), "net": {"act": tune.choice([Path, (1, "a")])}, "epochs": 3, "nan": math.nan}


@pytest.mark.parametrize(
    ("trials", "change", "told"),
    [
        (4, {}, ""),
        (4, {"lr": tune.loguniform(1e-4, 1)}, ""),
        (4, {name: SPACE[name] for name in reversed(SPACE)}, ""),
        (8, {}, "4 trials: changed since, and not heeded, are its trials;"),
        (4, {"lr": tune.uniform(1e-4, 1)}, "its space;"),
        (4, {"net": {"act": tune.choice([Path, (2, "a")])}}, "its space;"),
        (8, {"epochs": 4}, "its trials and space;"),
    ],
)
def test_search_that_goes_on_as_it_began_says_what_was_changed_since(sweep, trials, change, told):
    task = Task(lambda config: config, dict(SPACE), "loss")
    assert as_begun(sweep.stage, task, 4, 9, goes_on=False) == (4, 4, ())
    changed = replace(task, config={**change, **{name: SPACE[name] for name in SPACE.keys() - change.keys()}})
    count, at_once, notes = as_begun(sweep.stage, changed, trials, 9, goes_on=True)
    assert (count, at_once) == (4, 4)
    assert told in "".join(notes)
    assert len(notes) == bool(told)


def test_search_of_an_older_raykube_goes_on_without_a_word(sweep):
    assert as_begun(sweep.stage, sweep.task, 4, 2, goes_on=True) == (4, 2, ())


@pytest.mark.parametrize("fit", [1, 3, 100])
def test_search_that_goes_on_says_how_many_trials_run_at_once_and_that_the_room_is_another(sweep, fit):
    assert as_begun(sweep.stage, sweep.task, 4, 2, goes_on=False) == (4, 2, ())
    count, at_once, (note,) = as_begun(sweep.stage, sweep.task, 4, fit, goes_on=True)
    assert (count, at_once) == (4, 2)
    assert f"with 2 trials at once, as it began; the cluster has room for {fit} now" in note


def test_signal_that_c_handles_stays_with_it():
    code = (
        "import faulthandler, os, signal; from raykube.inside.training import own_signals\n"
        "faulthandler.register(signal.SIGUSR1)\n"
        "with own_signals(): pass\n"
        "os.kill(os.getpid(), signal.SIGUSR1); print('lives')"
    )
    done = run(sys.executable, "-c", code)
    assert (done.stdout, "most recent call first" in done.stderr) == ("lives\n", True)


@pytest.mark.parametrize(
    ("kept", "interrupted"), [([], False), ([signal.SIGINT, signal.SIGUSR1], False), ([signal.SIGUSR1], True)]
)
def test_search_that_tune_ended_for_a_signal_is_told_by_the_handlers_that_it_left(kept, interrupted):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)]
    with own_signals() as were:
        for number in kept:
            signal.signal(number, lambda *_: None)
        assert tuning._was_interrupted(were) is interrupted
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)] == before


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


@pytest.mark.parametrize("trials", [0, "3", 2.5, None])
def test_sweep_lists_every_wrong_argument(trials):
    with pytest.raises(ConfigError) as caught:
        raykube.sweep(print, {"x": 1}, trials=trials, metric="", mode="max")
    assert [problem.path for problem in caught.value.problems] == ["space", "trials", "metric"]


def test_grid_is_refused_with_what_to_write_instead():
    with pytest.raises(ConfigError, match=r"tune\.choice"):
        raykube.sweep(print, {"x": tune.grid_search([1, 2])}, trials=1, metric="score", mode="max")
