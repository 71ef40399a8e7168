"""A run on KubeRay while its log is read."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from raykube.backends.kuberay.rayhead import RayHead
from raykube.backends.kuberay.runs.look import Look
from raykube.backends.kubernetes.kubeapi import Object, Stop
from raykube.backends.kubernetes.watching import Refusals
from raykube.errors import BackendError, Forbidden, NotFound


def log_of(head: RayHead, node: str) -> str:
    """Return a key that distinguishes a driver's log from those of other heads and tries."""
    return f"{node}/{head.log_file}"


def learn(known: dict[str, Mapping[str, Any]], name: str, head: RayHead, node: str) -> None:
    """Ask what the run's pod tells of this log, unless that is known; the pod tells it a second after its start."""
    log = log_of(head, node)
    if log not in known and (told := head.told(name, node)):
        known[log] = told


class Followed:
    """Where a run is now, and whether it has ended, for the reader of its log; a thread keeps this current."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self.head: RayHead | None = None
        self.details: Mapping[str, Any] = {}
        #: By log, what the run's pod tells: where the run's own output begins, and how much of that output is a copy.
        self.told: dict[str, Mapping[str, Any]] = {}
        self.ended = threading.Event()
        self.error: BackendError | None = None
        self._refusals = Refusals()
        self._stream = Stop()
        self._close = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="raykube-log").start()

    @property
    def job(self) -> Object:
        """The RayJob as it was seen last."""
        return self._look.job

    def stream(self) -> Stop:
        """Return a new stop for one stream; it is set when the run ends or is on another head."""
        self._stream = Stop()
        if self.ended.is_set():
            self._stream.set()
        return self._stream

    def close(self) -> None:
        """Stop following the run."""
        self._close.set()

    def check(self) -> None:
        """Raise the error that ended the following, such as Forbidden; a run that is gone is no error."""
        if self.error and not isinstance(self.error, NotFound):
            raise self.error

    def _watch(self) -> None:
        try:
            for status in self._look.changes():
                if self._close.is_set():
                    return
                self._take()
                if status.is_terminal:
                    break
        except BackendError as error:
            self.error = error
        self.ended.set()
        self._stream.set()

    def _take(self) -> None:
        """Learn where the run is now. Raises Forbidden if its head may not be asked: nothing could be read from it."""
        try:
            self._ask(self._look.head())
        except Forbidden:
            if self._refusals.is_final():
                raise
        except BackendError:
            pass

    def _ask(self, head: RayHead | None) -> None:
        if head and (head is not self.head or not self.details.get("driver_node_id")):
            self.details = head.details()
            self._refusals.end()
            self.head = head
            self._stream.set()
        if head and (node := self.details.get("driver_node_id")):
            learn(self.told, self._look.name, head, node)

    def refresh(self) -> None:
        """Have it asked again where the driver is: its head may have been replaced."""
        self.details = {}
