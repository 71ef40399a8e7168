"""The trials of a sweep: what one runs, and how the driver watches them all."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from typing import Any

from raykube.errors import ConfigError
from raykube.inside import storage, tracking
from raykube.inside.history import Follower, Narrator, Row, scored
from raykube.inside.joining import apply_environ
from raykube.inside.place import Place, settle
from raykube.inside.stages import Stage
from raykube.inside.training import Task, fit, last_metrics, published

log = logging.getLogger("raykube")

TRAIN = "train-1"
CONFIG_FILE = "config.json"
_LOOK_S = 0.5


def run_trial(place: Place, sweep: str, task: Task) -> None:
    """Run one trial, in its own process of Ray Tune.

    Its folder is named after Tune's trial id, so that a restored trial finds its checkpoints.

    Raises:
        ConfigError: the loop never reported the metric.
        RunFailed: the training failed.
    """
    from ray import tune

    apply_environ()
    folder = storage.join(sweep, tune.get_context().get_trial_id())
    storage.write_text(storage.join(folder, CONFIG_FILE), json.dumps(published(task.config)))
    stage = Stage(place, TRAIN, folder)
    relay = Relay(task)
    settle()
    fit(stage, task, [relay])
    if not relay.count and (earlier := relay.valid(stage.rows())):
        tune.report(relay.told(earlier[-1]))  # it was through before the sweep was interrupted, and Tune did not know
    elif not relay.count:
        names = ", ".join(last_metrics(stage)) or "nothing"
        raise ConfigError(
            f"no report held the metric {task.metric!r}; reported were: {names}",
            next_step="name one of these, or report it in the loop",
        )


class Relay:
    """Hands the rows that hold the metric on to Ray Tune, and so to ASHA."""

    def __init__(self, task: Task) -> None:
        self._metric, self._mode = task.metric or "", task.mode
        self.count = 0

    def __call__(self, rows: list[Row]) -> None:
        """Report rows with a checkpoint, and otherwise the newest: Tune takes far fewer than a loop can report."""
        from ray import tune

        valid = self.valid(rows)
        for row in valid:
            if row["checkpoint"] or row is valid[-1]:
                self.count += 1
                tune.report(self.told(row))

    def told(self, row: Row) -> dict[str, Any]:
        """Return what Tune is told of a row: Optuna learns nothing of NaN, and ASHA does not end a trial for it."""
        return scored(row["metrics"], self._metric, self._mode)

    def valid(self, rows: list[Row]) -> list[Row]:
        """Return the rows that hold the metric."""
        return [row for row in rows if isinstance(row["metrics"].get(self._metric), int | float)]


class Trials:
    """Watches a sweep's folder for trials, and has each one's rows told and tracked.

    It goes by the files, not by Tune's callbacks, because those do not survive a restored sweep.

    Attributes:
        statuses: how MLflow's run of each trial ends; those that are not named were ``KILLED``.
        troubles: why trials are not told and tracked; empty when they are.
    """

    def __init__(self, stage: Stage, experiment: str, sweep: tracking.Tracker) -> None:
        self._stage = stage
        self._sweep = sweep
        self._experiment = experiment
        self._followed: dict[str, tuple[Follower, tracking.Tracker]] = {}
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
            follower.stop()
            self.troubles += follower.troubles
        followed = self._followed.items()
        tracking.end_all({tracker: self.statuses.get(trial, "KILLED") for trial, (_, tracker) in followed}, self._sweep)

    def _run(self) -> None:
        try:
            while not self._end.wait(_LOOK_S):
                with contextlib.suppress(OSError):  # of a storage that cannot be read now
                    self._look()
            self._look()
        except Exception as error:
            self.troubles += (f"trials were not followed to their end: {type(error).__name__}: {error}",)
            log.warning("%s", self.troubles[-1])
            raise

    def _look(self) -> None:
        for folder in storage.folders(self._stage.path):
            path = storage.join(self._stage.path, folder)
            if folder not in self._followed and (text := storage.read_from(storage.join(path, CONFIG_FILE))):
                self._followed[folder] = self._follow(folder, path, json.loads(text))

    def _follow(self, trial: str, path: str, config: dict[str, Any]) -> tuple[Follower, tracking.Tracker]:
        files = Stage(self._stage.place, TRAIN, path).files
        subject = tracking.Subject(self._experiment, path, config, trial, self._stage.path, files)
        tracker = tracking.start(self._stage.place, subject, after=self._sweep.tried)
        follower = Follower(files, [Narrator(f"trial {trial}"), tracker.rows])
        follower.start()
        return follower, tracker
