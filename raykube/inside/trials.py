"""The trials of a sweep: what one runs, and how the driver watches them all."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import threading
import time
from collections.abc import Iterator
from typing import Any

from raykube.errors import ConfigError
from raykube.inside import storage, tracking
from raykube.inside.history import Follower, Narrator, Row
from raykube.inside.joining import apply_environ, settle
from raykube.inside.loops import RETURNED_FILE
from raykube.inside.mlflowrun import Subject
from raykube.inside.place import Place
from raykube.inside.scores import scored
from raykube.inside.stages import ENDED_FILE, Stage
from raykube.inside.tasks import Task, published
from raykube.inside.training import fit, last_metrics

log = logging.getLogger("raykube")

TRAIN = "train-1"
CONFIG_FILE = "config.json"
STARTED_FILE = "started"
#: The metric's name in Tune, whatever its name in the loop.
METRIC = "metric"
#: Counts at which ASHA compares trials: its grace period and the powers of its reduction factor, both 3.
RUNGS = frozenset(3**power for power in range(1, 20))
_LOOK_S = 0.5
_REMOTE_S = 5.0


def run_trial(place: Place, sweep: str, task: Task) -> None:
    """Run one trial, in its own process of Ray Tune.

    Its folder is named after Tune's trial id, so that a restored trial finds its checkpoints.

    Raises:
        ConfigError: the loop never reported the metric.
        RunFailed: the training failed.
    """
    from ray import tune

    apply_environ()
    stage = stage_of(place, sweep, tune.get_context().get_trial_id())
    folder = stage.parent
    if not storage.exists(stamp := storage.join(folder, STARTED_FILE)):  # else an earlier attempt began it
        storage.write_text(stamp, repr(time.time()))
    storage.write_text(storage.join(folder, CONFIG_FILE), json.dumps(published(task.config)))
    storage.remove(stage.ended)
    relay = Relay(task, reached(stage.rows(), task.metric))
    settle()
    fit(stage, task, [relay])
    if relay.silent and (earlier := valid(stage.rows(), task.metric)):
        tune.report(relay.told(earlier[-1]))  # it had ended before the sweep was interrupted, and Tune did not know
    elif relay.silent:
        names = ", ".join(last_metrics(stage)) or "nothing"
        raise ConfigError(
            f"no report held the metric {task.metric!r}; reported were: {names}",
            next_step="name one of these, or report it in the loop",
        )


def stage_of(place: Place, sweep: str, trial: str) -> Stage:
    """Return the only stage of a trial."""
    return Stage(place, TRAIN, storage.join(sweep, trial))


def ends(sweep: str) -> Any:
    """Return a Tune callback that notes each trial's end in its folder: Tune ends most trials, and they cannot.

    Tune saves the callback with the sweep, and restores it when the sweep goes on.
    """
    from ray import tune

    class Ends(tune.Callback):  # type: ignore[misc] # Ray's base class has no types
        def on_trial_complete(self, **told: Any) -> None:
            note_end(sweep, told["trial"].trial_id)

        def on_trial_error(self, **told: Any) -> None:
            note_end(sweep, told["trial"].trial_id, "failed")

    return Ends()


def note_end(sweep: str, trial: str, how: str = "") -> None:
    """Note that a trial has ended; a storage that does not take the note is no reason to end the sweep."""
    with contextlib.suppress(OSError):
        storage.write_text(storage.join(sweep, trial, ENDED_FILE), how)


def was_stopped_early(path: str) -> bool:
    """Whether ASHA has ended the trial with the folder `path`: it did not fail, and its loop had not returned."""
    ended = storage.join(path, ENDED_FILE)
    returned = storage.join(path, TRAIN, RETURNED_FILE)
    return storage.exists(ended) and not storage.read_from(ended) and not storage.exists(returned)


def started(path: str) -> float:
    """Return when the trial with the folder `path` began, as of ``time.time()``; infinity if it never did."""
    text = storage.read_from(storage.join(path, STARTED_FILE))
    return float(text) if text else math.inf


class Relay:
    """Tells Ray Tune, and so ASHA, of the rows that hold the metric.

    It tells only the metric and our own count, under names of our own: Tune ends a trial that reports "done", and has
    more such reserved names.

    Args:
        task: the task with the metric.
        count: how many rows held the metric up to the checkpoint from which this attempt goes on.

    Attributes:
        silent: whether it has told nothing yet.
    """

    def __init__(self, task: Task, count: int = 0) -> None:
        self._metric, self._mode = task.metric or "", task.mode
        self._count = count
        self.silent = True

    def __call__(self, rows: list[Row]) -> None:
        """Tell Tune what is :meth:`due`."""
        from ray import tune

        for told in self.due(rows):
            self.silent = False
            tune.report(told)

    def due(self, rows: list[Row]) -> Iterator[dict[str, Any]]:
        """Yield what to tell of the newest row, and of those for ASHA or with a checkpoint: Tune takes few a second."""
        found = valid(rows, self._metric)
        for row in found:
            self._count += 1
            if row["checkpoint"] or row is found[-1] or self._count in RUNGS:
                yield self.told(row)

    def told(self, row: Row) -> dict[str, Any]:
        """Return what Tune is told of a row: no NaN, as Optuna learns nothing from it and ASHA ends no trial for it."""
        return {**scored({METRIC: row["metrics"][self._metric]}, METRIC, self._mode), "training_iteration": self._count}


def valid(rows: list[Row], metric: str | None) -> list[Row]:
    """Return the rows that hold a number for the metric."""
    return [row for row in rows if isinstance(row["metrics"].get(metric), int | float)]


def reached(rows: list[Row], metric: str | None) -> int:
    """Return how many rows of earlier attempts hold the metric, without those that the next attempt reports again.

    Each attempt goes on from the last checkpoint of those before it; if there is none, it begins again.
    """
    count = kept = attempt = 0
    for row in rows:
        if row["attempt"] != attempt:
            count, attempt = kept, row["attempt"]
        count += len(valid([row], metric))
        kept = count if row["checkpoint"] else kept
    return kept


class Trials:
    """Watches a sweep's folder for trials, and has each one's rows logged and tracked.

    It goes by the files, not by Tune's callbacks, because a sweep that goes on has the callbacks of its first driver.

    Attributes:
        statuses: how MLflow's run of each trial ends; ``KILLED`` for trials that are not in it.
        troubles: why trials were not logged and tracked; empty if they were.
    """

    def __init__(self, stage: Stage, experiment: str, sweep: tracking.Tracker) -> None:
        self._stage = stage
        self._sweep = sweep
        self._experiment = experiment
        self._followed: dict[str, tuple[Follower, tracking.Tracker]] = {}
        self._through: set[str] = set()
        self._asked: dict[str, float] = {}
        self.statuses: dict[str, str] = {}
        self.troubles: tuple[str, ...] = ()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="raykube-trials")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        for follower, _tracker in self._followed.values():
            follower.start()  # if it was paused, for rows that were on their way when Tune ended the trial
            follower.stop()
            self.troubles += follower.troubles
        followed = self._followed.items()
        tracking.end_all({tracker: self.statuses.get(trial, "KILLED") for trial, (_, tracker) in followed}, self._sweep)

    def _run(self) -> None:
        try:
            while not self._end.wait(_LOOK_S):
                with contextlib.suppress(OSError):  # the storage cannot be read now
                    self._look()
            self._look()
        except Exception as error:
            self.troubles += (f"trials were not followed to their end: {type(error).__name__}: {error}",)
            log.warning("%s", self.troubles[-1])
            raise

    def _look(self) -> None:
        for folder in storage.folders(self._stage.path):
            path = storage.join(self._stage.path, folder, CONFIG_FILE)
            if folder not in self._followed and (text := storage.read_from(path)):
                self._followed[folder] = self._follow(folder, json.loads(text))
        pause = _REMOTE_S if storage.is_uri(self._stage.path) else 0.0
        now = time.monotonic()
        for trial in self._followed.keys() - self._through:
            if now - self._asked.get(trial, -math.inf) >= pause:  # each look into a bucket is a request
                self._asked[trial] = now
                self._start_or_pause(trial)

    def _start_or_pause(self, trial: str) -> None:
        """Read a trial's rows until it has ended; a trial that had ended before this attempt may still go on."""
        follower, _ = self._followed[trial]
        if not storage.exists(storage.join(self._stage.path, trial, ENDED_FILE)):
            follower.start()
        elif follower.is_reading:
            follower.pause()
            self._through.add(trial)
            if was_stopped_early(storage.join(self._stage.path, trial)):
                log.info("trial %s was stopped early (ASHA): other trials do better", trial)

    def _follow(self, trial: str, config: dict[str, Any]) -> tuple[Follower, tracking.Tracker]:
        place, sweep = self._stage.place, self._stage.path
        stage = stage_of(place, sweep, trial)
        subject = Subject(self._experiment, stage.parent, config, trial, sweep, stage.files)
        tracker = tracking.start(place, subject, after=self._sweep.tried)
        return Follower(stage.files, [Narrator(f"trial {trial}"), tracker.rows]), tracker
