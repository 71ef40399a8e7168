"""A stage of a run: one call of ``train`` or ``sweep``, or one trial; its files, and whose they are."""

from __future__ import annotations

import functools
import json
import logging
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raykube import wire
from raykube.errors import Conflict, Failure, RunFailed
from raykube.inside import storage, tracking
from raykube.inside.history import Row, rows
from raykube.inside.loops import refuse_within
from raykube.inside.place import Place
from raykube.inside.troubles import Troubles

log = logging.getLogger("raykube")
#: In a trial's folder from when Tune has ended the trial until the trial goes on.
ENDED_FILE = "ended"
_PROCESS = secrets.token_hex(8)  # tells this process from others of the same attempt
_UNREGISTERED = "the model was not registered: the run ended while it was loaded and logged"


def work(kind: str, loop: Callable[..., Any], metric: str | None, mode: str) -> dict[str, Any]:
    """Return what a call of ``train`` or ``sweep`` does, as far as it is the same in all attempts of a run.

    This tells apart the calls of two scripts, whose stages have the same numbers: each process counts its own. The
    config's values are left out: whoever goes on with a run by hand may do so with another number of epochs.
    """
    return {"kind": kind, "loop": _name(loop), "metric": metric, "mode": mode}


def _words(told: Mapping[str, Any]) -> str:
    best = f", best by {told['mode']} of {told['metric']}" if told["metric"] else ""
    return f"{told['kind']}({told['loop']}){best}"


def _name(loop: Any) -> str:
    while isinstance(loop, functools.partial):
        loop = loop.func
    module = loop.__module__
    if module == "__main__":  # as in every script; the file's name is the same in all attempts, its folder is not
        main = sys.modules[module]
        spec = getattr(main, "__spec__", None)
        module = spec.name if spec else Path(getattr(main, "__file__", None) or module).stem
    return f"{module}.{getattr(loop, '__qualname__', type(loop).__qualname__)}"


@dataclass(frozen=True)
class Stage:
    """One call of ``train`` or ``sweep``, or one trial: where its files lie."""

    place: Place
    name: str
    parent: str

    @classmethod
    def next(cls, kind: str, experiment: str) -> Stage:
        """Return the next stage of this process, and make its run's folder.

        Raises:
            ConfigError: the environment has values that do not work, the storage cannot be used, or this is called
                within a loop.
        """
        refuse_within(kind)
        place = Place.from_environ(experiment)
        place.prepare()
        return cls(place, place.next_stage(kind), place.path)

    @property
    def path(self) -> str:
        """Folder or URI of this stage."""
        return storage.join(self.parent, self.name)

    @property
    def metrics(self) -> str:
        """Its metrics file."""
        return storage.join(self.path, wire.METRICS_FILE)

    @property
    def files(self) -> tuple[str, ...]:
        """Its metrics files: that of ``raykube.report``, and the controller's, of plain ``ray.train.report``."""
        return tuple(storage.join(self.path, name) for name in wire.METRICS_FILES)

    @property
    def ended(self) -> str:
        """The file that says that Tune has ended this stage's trial; empty for a stage that is not a trial's."""
        return "" if self.parent == self.place.path else storage.join(self.parent, ENDED_FILE)

    @property
    def troubles(self) -> Troubles:
        """The note of what holds up its run."""
        return Troubles(self.path, self.place.path, self.place.attempt)

    def rows(self) -> list[Row]:
        """Return all that was reported, oldest first."""
        return sorted((row for path in self.files for row in rows(path)), key=lambda row: row["time"])

    def begin(self, work: Mapping[str, Any]) -> wire.Result | None:
        """Take this stage for `work`; return its result if an earlier attempt of this run ended it well.

        Raises:
            Conflict: the stage belongs to other work; or it is finished, and this is not a retry but a new run of the
                same name; or another process of this attempt had its result.
        """
        path = storage.join(self.path, wire.WORK_FILE)
        before = json.loads(storage.read_from(path) or "{}")  # empty if it is new, or of an older raykube
        told = before.get("work", work)
        if told != work:
            raise self._conflict(f"{self.path} is of {_words(told)}, and this is {_words(work)}")
        same = before.get("attempt") == self.place.attempt and before["process"] != _PROCESS
        if same and self.place.attempt > 1 and self._result_text():
            raise self._conflict(f"another process of attempt {self.place.attempt} had the result in {self.path}")
        done = self.finished()
        now = {"work": work, "attempt": self.place.attempt, "process": _PROCESS}
        storage.write_text(path, json.dumps(now))
        return done

    def _conflict(self, why: str) -> Conflict:
        verb = self.name.partition("-")[0]
        return Conflict(
            f"a second script of this run calls {verb}, or {self.place.run} was another run's name",
            why=why,
            next_step="make the calls in one script, or give each script a run, and so a name, of its own; "
            f"to go on with it by hand set {wire.ATTEMPT}={self.place.attempt + 1}",
        )

    def _result_text(self) -> str:
        return storage.read_from(storage.join(self.path, wire.RESULT_FILE)).decode()

    def finished(self) -> wire.Result | None:
        """Return the result of this stage if an earlier attempt of this run ended it well.

        Raises:
            Conflict: the stage is finished, and this is not a retry but a new run of the same name.
        """
        text = self._result_text()
        if not text:
            return None
        if self.place.attempt > 1:
            log.info("%s of run %s is finished, its result is kept", self.name, self.place.run)
            # The attempt may have ended between its two writes; and the run's result is that of its last stage.
            storage.write_text(storage.join(self.parent, wire.RESULT_FILE), text)
            return wire.Result.from_json(text)
        raise Conflict(
            f"run {self.place.run} has finished",
            why=f"{self.path} holds its result",
            next_step="choose another name, or delete it; what two scripts of one run train, one script can",
        )

    def finish(self, result: wire.Result) -> wire.Result:
        """Write the result; from here on this stage counts as finished."""
        for folder in (self.path, self.parent):
            storage.write_text(storage.join(folder, wire.RESULT_FILE), result.to_json())
        return result

    def conclude(self, result: wire.Result, tracker: tracking.Tracker, model: tracking.Loader | None) -> wire.Result:
        """Write the result, have its model registered, and write it again with what came of that.

        So the result is kept even if the model's loader, or MLflow, raises.

        Raises:
            RunFailed: the loader, or MLflow, raised.
        """
        self.finish(replace(result, notes=(*result.notes, _UNREGISTERED)) if model else result)
        try:
            concluded = tracker.conclude(result, model)
        except Exception as error:
            if not model:
                raise
            raise RunFailed.of(self.place.run, self._unloaded(error, result)) from error
        return self.finish(concluded)

    def _unloaded(self, error: Exception, result: wire.Result) -> Failure:
        """Return the failure for an error of the loader: the training itself is complete."""
        return Failure(
            "ModelFailed",
            f"its model could not be loaded and logged: {type(error).__name__}: {error}",
            next_step="correct the function given as model=; "
            f"the checkpoint is safe in {result.checkpoint or self.path}",
        )
