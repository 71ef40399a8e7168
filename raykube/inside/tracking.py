"""Feeds MLflow from the driver: never on the training thread, and not at all when MLflow is absent or off."""

from __future__ import annotations

import logging
import math
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from raykube import wire
from raykube.inside import addresses
from raykube.inside.history import Row
from raykube.inside.mlflowrun import MlflowRun, Subject
from raykube.inside.place import Place

log = logging.getLogger("raykube")
Loader = Callable[[str], Any]

_SEND_S = 1.0
_AGAIN_S = 20.0
_PATIENCE_S = 45.0
_LEAST_PATIENCE_S = 5.0
_RUN, _PARAMS, _MODEL = "run", "params", "model"  # what can be missing in MLflow
_UNREGISTERED = "did not register the model (its checkpoint is kept: serve it as run:{}, or register it by hand)"
# MLflow's own defaults retry for minutes; nobody's training should wait for that at its end.
_HTTP = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


class Tracker:
    """Records nothing: MLflow is absent or off.

    Attributes:
        tried: set after the first try to open its record, whatever came of that.
        patience: for how many seconds its end may still be waited for.
    """

    def __init__(self) -> None:
        self.tried = threading.Event()
        self.patience = _PATIENCE_S

    def rows(self, rows: list[Row]) -> None:
        """Take new rows of the metrics file."""

    def conclude(self, result: wire.Result, model: Loader | None = None) -> wire.Result:
        """Log the model if there is one, and return the result with what came of that."""
        del model
        return result

    def leave(self, status: str) -> None:
        """Begin to close the record with MLflow's ``FINISHED``, ``FAILED`` or ``KILLED``; wait for nothing."""

    def wait(self, deadline: float = math.inf) -> None:
        """Wait for all that is being sent, until `deadline` or the end of its patience."""

    def end(self, status: str) -> None:
        """Close the record."""
        self.leave(status)
        self.wait()


class MlflowTracker(Tracker):
    """Sends to MLflow from a thread of its own. A server that does not answer delays nothing but the end, a little."""

    def __init__(self, place: Place, subject: Subject, uri: str, after: threading.Event | None = None) -> None:
        super().__init__()
        self._after = after
        self._name = place.run
        self._uri = uri
        self._run = MlflowRun(place, subject, uri)
        self._queue: queue.SimpleQueue[list[Row] | None] = queue.SimpleQueue()
        self._pending: list[Row] = []
        self._troubles: dict[str, str] = {}
        self._next: dict[str, float] = {}
        self._status = ""
        for name, value in _HTTP.items():
            os.environ.setdefault(name, value)
        if self._shown(uri) != uri:  # MLflow prints a run's address, with the password in it
            os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        self._thread = self._start(self._relay)

    def rows(self, rows: list[Row]) -> None:
        """Take new rows; they are sent within about a second."""
        self._queue.put(rows)

    def conclude(self, result: wire.Result, model: Loader | None = None) -> wire.Result:
        """Send what is left, log and register the model, and note what did not work."""
        self._queue.put(None)
        self.wait()
        if model is not None and result.checkpoint and _RUN not in self._troubles:
            checkpoint = result.checkpoint
            found = self._attempt_to(lambda: self._run.register(checkpoint, model), _MODEL)
            result = replace(result, model_uri=found)
        return replace(result, notes=(*result.notes, *self._notes()))

    def _notes(self) -> Iterator[str]:
        if troubles := "; ".join(text for what, text in self._troubles.items() if what != _MODEL):
            yield f"MLflow at {self._shown(self._uri)} does not have all of this run: {troubles}"
        if trouble := self._troubles.get(_MODEL):
            yield f"MLflow at {self._shown(self._uri)} {_UNREGISTERED.format(self._name)}: {trouble}"

    def leave(self, status: str) -> None:
        """Have MLflow's run closed once all is sent."""
        self._status = status
        if self._thread.is_alive():
            self._queue.put(None)
        else:  # it has concluded
            self._thread = self._start(self._close)

    def wait(self, deadline: float = math.inf) -> None:
        """Wait for the thread, and say so if it takes too long."""
        began = time.monotonic()
        self._thread.join(max(0.0, min(self.patience, deadline - began)))
        self.patience -= time.monotonic() - began
        if self._thread.is_alive():
            self._complain("no answer in time")

    def _attempt_to(self, action: Callable[[], Any], missing: str = _RUN) -> Any:
        """Return what `action` returns; None, and one warning, if MLflow refuses or cannot be reached."""
        from mlflow.exceptions import MlflowException

        try:
            done = action()
        except (MlflowException, OSError) as error:
            self._complain(str(error) or type(error).__name__, missing)
            return None
        self._troubles.pop(missing, None)  # all that was missing has arrived
        return done

    def _complain(self, text: str, missing: str = _RUN) -> None:
        trouble = self._shown(text).strip().partition("\n")[0][:300]
        if missing == _MODEL:
            log.warning("MLflow at %s %s: %s", self._shown(self._uri), _UNREGISTERED.format(self._name), trouble)
        elif not self._troubles:
            log.warning("MLflow at %s does not take this run, training goes on: %s", self._shown(self._uri), trouble)
        self._troubles[missing] = trouble

    def _shown(self, text: str) -> str:
        return addresses.shown(text, self._uri, addresses.registry(self._uri))

    def _start(self, action: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=self._work, args=(action,), daemon=True, name="raykube-mlflow")
        thread.start()
        return thread

    def _work(self, action: Callable[[], None]) -> None:
        if sys.platform == "linux":  # where each thread has its own niceness: training and its start come first
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        if self._after:
            self._after.wait()
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - an error that is not MLflow's must not vanish with this thread
            self._complain(f"{type(error).__name__}: {error}")
            log.warning("%s", self._shown(traceback.format_exc()))
        finally:
            self.tried.set()

    def _relay(self) -> None:
        last = False
        while not last:
            last = self._collect()
            self._try(self._send, _RUN, last=last)
            if _RUN not in self._troubles:
                self._try(self._run.describe, _PARAMS, last=last)
            self.tried.set()
        if self._status:
            self._close()

    def _close(self) -> None:
        if _RUN not in self._troubles:
            self._attempt_to(lambda: self._run.close(self._status))

    def _try(self, send: Callable[[], None], what: str, *, last: bool) -> None:
        if last or time.monotonic() >= self._next.get(what, 0.0):
            self._attempt_to(send, what)
            self._next[what] = time.monotonic() + (_AGAIN_S if what in self._troubles else 0.0)

    def _collect(self) -> bool:
        """Gather rows for a second; return whether these are the last."""
        deadline = time.monotonic() + _SEND_S
        while (left := deadline - time.monotonic()) > 0:
            try:
                rows = self._queue.get(timeout=left)
            except queue.Empty:
                return False
            if rows is None:
                return True
            self._pending += rows
        return False

    def _send(self) -> None:
        self._run.send(self._pending)
        self._pending = []


def start(place: Place, subject: Subject, after: threading.Event | None = None) -> Tracker:
    """Begin to record `subject`, if the place says so and MLflow is there.

    Args:
        place: of the run.
        subject: what is recorded.
        after: set once its parent's record was tried: until then, the subject cannot refer to that.
    """
    if not place.tracking or find_spec("mlflow") is None:
        return Tracker()
    uri = addresses.tracking(place.storage)
    if not uri:
        log.warning("no MLflow: set MLFLOW_TRACKING_URI, a database cannot be kept in %s", place.storage)
        return Tracker()
    return MlflowTracker(place, subject, uri, after)


@contextmanager
def record(place: Place, subject: Subject) -> Iterator[Tracker]:
    """Record `subject` while the block runs; an exception marks it as failed."""
    tracker = start(place, subject)
    try:
        yield tracker
    except BaseException:
        tracker.end("FAILED")
        raise
    tracker.end("FINISHED")


def end_all(endings: Mapping[Tracker, str], parent: Tracker) -> None:
    """Close the records of trials, each with its status, in the time of one: MLflow may be gone, and each wait long.

    The time that this takes is taken off the wait for the record of their sweep.
    """
    began = time.monotonic()
    for tracker, status in endings.items():
        tracker.leave(status)
    for tracker in endings:
        tracker.wait(began + _PATIENCE_S)
    parent.patience = max(_LEAST_PATIENCE_S, parent.patience - (time.monotonic() - began))
