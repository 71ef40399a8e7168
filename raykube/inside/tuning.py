"""``sweep``: a search over the config of the same loop that ``train`` takes."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from numbers import Integral
from typing import Any, Literal

from raykube import wire
from raykube.errors import ConfigError, Conflict, Failure, Problem, RunFailed
from raykube.inside import joining, storage, tracking, uncaught
from raykube.inside.begun import as_begun
from raykube.inside.failures import death, memory_step
from raykube.inside.history import Recorder, Row, rows
from raykube.inside.mlflowrun import Subject
from raykube.inside.room import room
from raykube.inside.space import unsearchable
from raykube.inside.stages import Stage, work
from raykube.inside.tasks import Task, as_dict, sent_by_pickle, wrong_arguments
from raykube.inside.training import log_start, own_signals
from raykube.inside.trials import (
    CONFIG_FILE,
    METRIC,
    RUNGS,
    Trials,
    ends,
    run_trial,
    stage_of,
    started,
    valid,
    was_stopped_early,
)

__all__ = ["sweep"]

log = logging.getLogger("raykube")
_SEED = 0


def sweep(
    loop: Callable[..., Any],
    space: Mapping[str, Any],
    *,
    trials: int,
    metric: str,
    mode: Literal["min", "max"],
    experiment: str = "default",
    model: tracking.Loader | None = None,
) -> wire.Result:
    """Search `space` for the config with the best metric; each trial is a full training of the same loop.

    Optuna proposes configs, ASHA ends hopeless trials early. As many trials run at once as the cluster
    fits, with ``RAYKUBE_TRIAL_WORKERS`` workers each. A failed trial does not end the sweep.

    ASHA compares trials at their 3rd, 9th, 27th … report that holds `metric`. So report `metric` once an
    epoch, best with its checkpoint: counts are then epochs, and a trial that goes on after the sweep was
    interrupted counts on from its checkpoint. The result says which trials were stopped early. A loop that
    reports `metric` at most twice is never stopped early.

    Args:
        loop: as for ``train``; it reports `metric` now and then, best with a checkpoint.
        space: config keys to values, or to Ray Tune's domains such as ``tune.loguniform(1e-4, 1e-1)``.
        trials: how many configs to try.
        metric: the name of the reported number to optimise.
        mode: ``"min"`` or ``"max"``.
        experiment: groups runs, and is the registered model's name, with _ for / and colons.
        model: as for ``train``; the best trial's model is registered.

    Raises:
        ConfigError: wrong arguments or environment, no Ray, or one trial does not fit the cluster.
        Conflict: a run of this name has finished, another script searches in it, or it began with another space.
        RunFailed: every trial failed; it has the first one's failure. Or `model` raised, as for ``train``.
    """
    joining.check_installed()
    joining.show_progress()
    task = Task(loop, as_dict(space), metric, mode)
    _check(space, trials, metric, wrong_arguments(experiment, metric, model))
    stage = Stage.next("sweep", experiment)
    if done := stage.begin(work("sweep", loop, metric, mode)):
        return done
    log_start(stage)
    _hush()
    with uncaught.kept(stage.place), joining.connected():
        return _search_and_conclude(stage, task, trials, experiment, model)


def _search_and_conclude(
    stage: Stage, task: Task, trials: int, experiment: str, model: tracking.Loader | None
) -> wire.Result:
    """Search on the connected cluster; return what the search found."""
    place, metric, mode = stage.place, task.metric, task.mode
    goes_on = _goes_on(stage)
    fit = room(place.scale, place.trial_workers, stage.troubles.wait) // place.trial_workers
    trials, at_once, changed = as_begun(stage, task, trials, fit, goes_on=goes_on)
    log.info("%d trials, %d at once, %d workers each", trials, at_once, place.trial_workers)
    subject = Subject(experiment, stage.path, {"trials": trials, "metric": metric, "mode": mode})
    with tracking.record(place, subject) as tracker, sent_by_pickle(task.config):
        tuner = _tuner(stage, task, trials, at_once, goes_on=goes_on)
        grid = _run_trials(tuner, watch := Trials(stage, experiment, tracker))
        tracker.rows(_record(stage, _best_last(task, found := _trial_entries(stage, task, grid))))
        return stage.conclude(_best(stage, task, found, changed + watch.troubles), tracker, model)


def _run_trials(tuner: Any, watch: Trials) -> Any:
    """Run the trials, followed by `watch`.

    Raises:
        KeyboardInterrupt: Tune has ended them on Ctrl-C or SIGUSR1; it does not raise, but returns.
    """
    with watch, own_signals() as were:
        grid = tuner.fit()
        if _was_interrupted(were):
            raise KeyboardInterrupt
        # ASHA's early end is no failure.
        watch.statuses = {_name(outcome): "FAILED" if outcome.error else "FINISHED" for outcome in grid}
    return grid


def _was_interrupted(were: Mapping[int, Any]) -> bool:
    """Whether Tune took a signal: it has its own handlers for two, and gives Ctrl-C's back when either comes.

    The trials cannot tell: all that Tune then ends count as complete.
    """
    kept = {number for number, handler in were.items() if signal.getsignal(number) is not handler}
    return kept == {signal.SIGUSR1} and not int(os.environ.get("TUNE_DISABLE_SIGINT_HANDLER") or 0)


def _name(outcome: Any) -> str:
    return str(outcome.path.rpartition("/")[2])


def _check(space: Mapping[str, Any], trials: Any, metric: Any, others: list[Problem]) -> None:
    problems = unsearchable(space)
    if not isinstance(trials, Integral) or trials < 1:
        problems.append(Problem("trials", f"{trials!r} is not a number of trials", "write 1 or more"))
    if metric is None:
        problems.append(Problem("metric", "is missing", "name a number that the loop reports"))
    if problems := problems + others:
        raise ConfigError.of("this sweep cannot be run", problems)


def _goes_on(stage: Stage) -> bool:
    """Whether an earlier attempt has left a search to go on with."""
    from ray import tune

    return stage.place.attempt > 1 and bool(tune.Tuner.can_restore(stage.path))


def _tuner(stage: Stage, task: Task, trials: int, at_once: int, *, goes_on: bool) -> Any:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    place = replace(stage.place, scale=replace(stage.place.scale, workers=stage.place.trial_workers))
    # Without its space, which Tune sends by itself: a value there that pickle does not take is not the loop's fault.
    parent, loop = stage.path, replace(task, config={})

    def trial(config: dict[str, Any]) -> None:
        run_trial(place, parent, replace(loop, config=config))

    # A trial's own process holds no CPU: its workers need them, and could not start otherwise.
    drivers = tune.PlacementGroupFactory([{"CPU": 0, "node:__internal_head__": 0.001}])
    trainable = tune.with_resources(trial, drivers)
    if goes_on:
        return _restored(stage, task, trainable)
    return tune.Tuner(
        trainable,
        param_space=task.config,
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode=task.mode,
            num_samples=trials,
            max_concurrent_trials=at_once,
            search_alg=OptunaSearch(seed=_SEED),
            scheduler=ASHAScheduler(max_t=3 * max(RUNGS), grace_period=3, reduction_factor=3),
            trial_dirname_creator=_trial_id,
        ),
        run_config=tune.RunConfig(name=stage.name, storage_path=stage.parent, verbose=0, callbacks=[ends(parent)]),
    )


def _restored(stage: Stage, task: Task, trainable: Any) -> Any:
    from ray import tune

    # Without the space, a new trial's config would have Tune's placeholders for values that are not plain.
    again = {"resume_unfinished": True, "restart_errored": True, "param_space": task.config}
    try:
        return tune.Tuner.restore(stage.path, trainable, **again)
    except ValueError as error:
        raise Conflict(
            f"the search of run {stage.place.run} was begun with another space",
            why=" ".join(str(error).split()),
            next_step="give the space the names that it had, or the run another name",
        ) from error


def _hush() -> None:
    """Silence what Ray and Optuna log about files that are not theirs here, and about every checkpoint."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("ray.tune.tune").setLevel(logging.WARNING)
    # Trials write raykube's metrics file, not Tune's, and Tune would miss its own.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    logging.getLogger("ray.train.v2._internal.execution.checkpoint.checkpoint_manager").setLevel(logging.WARNING)


def _trial_id(trial: Any) -> str:
    return str(trial.trial_id)


def _trial_entries(stage: Stage, task: Task, grid: Any) -> tuple[dict[str, Any], ...]:
    """Return each trial as :attr:`wire.Result.trials` has it, in the order of their start."""
    found = []
    for outcome in sorted(grid, key=lambda outcome: started(storage.join(stage.path, _name(outcome)))):
        trial = _name(outcome)
        training = stage_of(stage.place, stage.path, trial)
        kept, last = _trial_checkpoints(training.path)
        best = task.best(kept)
        found.append(
            {
                "trial": trial,
                "params": _params(stage, trial),
                "metrics": dict(best[1]) if best else _reported(training, task),
                "checkpoint": best[0] if best else last,
                "error": reason(outcome.error) if outcome.error else None,
                "stopped_early": was_stopped_early(storage.join(stage.path, trial)),
            }
        )
    return tuple(found)


def _reported(training: Stage, task: Task) -> dict[str, Any]:
    """Return the metrics of a trial's last row that holds the metric."""
    found = valid(training.rows(), task.metric)
    return dict(found[-1]["metrics"]) if found else {}


def _trial_checkpoints(path: str) -> tuple[list[tuple[str, Mapping[str, Any]]], str | None]:
    """Return (path, metrics) of each complete checkpoint of a trial, stopped early or not; and the last one's path."""
    from ray.train import Result

    try:
        from ray.train.v2._internal.exceptions import RayTrainError
    except ImportError:  # an internal module of Ray, which may move
        RayTrainError = RuntimeError  # noqa: N806
    try:
        outcome = Result.from_path(path)
    except RuntimeError:  # Ray's way to say that no checkpoint was ever complete
        return [], None
    except RayTrainError as error:  # the list of checkpoints was being written when the trial was ended
        log.warning("the checkpoints of %s are not known: %s", path, error)
        return [], None
    kept = [(_checkpoint_path(path, checkpoint), metrics) for checkpoint, metrics in outcome.best_checkpoints or []]
    return kept, _checkpoint_path(path, outcome.checkpoint) if outcome.checkpoint else None


def _checkpoint_path(path: str, checkpoint: Any) -> str:
    return storage.join(path, checkpoint.path.rpartition("/")[2])


def _params(stage: Stage, trial: str) -> dict[str, Any]:
    text = storage.read_from(storage.join(stage.path, trial, CONFIG_FILE))
    return dict(json.loads(text)) if text else {}


def reason(error: BaseException) -> str:
    """Return the line of a trial's error that says why: Tune gives the traceback of the trial's process."""
    lines = str(error).rstrip().splitlines()
    whys = [line.strip().removeprefix("why:").strip() for line in lines if line.strip().startswith("why:")]
    heads = [line.removeprefix("raykube.errors.") for line in lines if re.match(r"[\w.]+: ", line)]
    told = [*reversed(whys), death(str(error)), *reversed(heads), *reversed(lines)]
    return next((line for line in told if line), repr(error))


def _best(stage: Stage, task: Task, found: tuple[dict[str, Any], ...], troubles: tuple[str, ...]) -> wire.Result:
    failed = [entry for entry in found if entry["error"]]
    notes: tuple[str, ...] = (_note(stage.place.run, failed, len(found)),) if failed else ()
    best = _chosen(task, found)
    if best is None:
        why = str(failed[0]["error"]) if failed else f"no trial reported a number {task.metric!r}"
        step = memory_step(why) or "run the loop once by raykube.train, which shows its traceback"
        raise RunFailed.of(stage.place.run, Failure("AllTrialsFailed", why, next_step=step))
    if best["checkpoint"] and not task.best(_trial_checkpoints(best["checkpoint"].rpartition("/")[0])[0]):
        notes += (task.without_metric,)
    return wire.Result(
        "sweep",
        stage.place.run,
        stage.path,
        metrics=dict(best["metrics"]),
        checkpoint=best["checkpoint"],
        params=best["params"],
        trials=found,
        notes=notes + troubles,
    )


def _note(run: str, failed: list[dict[str, Any]], trials: int) -> str:
    """Say how many trials failed, why the first did, and where all reasons are, for a job or a plain script."""
    there = f"raykube job result {run} --json" if os.environ.get(wire.RUN_NAME) else "this result's trials"
    return f"{len(failed)} of {trials} trials failed, the first one by: {failed[0]['error']}; all: {there}"


def _chosen(task: Task, found: tuple[dict[str, Any], ...]) -> dict[str, Any] | None:
    best = task.best([(entry, entry["metrics"]) for entry in found if not entry["error"]])
    return best[0] if best else None


def _best_last(task: Task, found: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
    """Return the trials with the best one last: a run's progress and MLflow show its last row."""
    best = _chosen(task, found)
    return sorted(found, key=lambda entry: entry is best)


def _record(stage: Stage, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write one row per trial into the sweep's metrics file; return the new rows, without steps, for MLflow.

    MLflow counts these rows: by their own steps, the trial with the most would come last.
    """
    before = len(rows(stage.metrics))
    recorder = Recorder(stage.metrics, stage.place.attempt)
    for entry in found:
        recorder.add({"trial": entry["trial"], **entry["metrics"]}, entry["checkpoint"])
    recorder.close()
    return [_without_step(row) for row in rows(stage.metrics)[before:]]


def _without_step(row: Row) -> Row:
    return {**row, "metrics": {name: value for name, value in row["metrics"].items() if name != "step"}}
