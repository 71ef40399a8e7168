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
    """Return what tells a driver's log from those of other heads and tries."""
    return f"{node}/{head.log_file}"


def learn(known: dict[str, Mapping[str, Any]], name: str, head: RayHead, node: str) -> None:
    """Ask what the run's pod tells of this log, unless that is known: it tells it a second after its start."""
    log = log_of(head, node)
    if log not in known and (told := head.told(name, node)):
        known[log] = told


class Followed:
    """The run as its log's reader sees it: where it runs now, and whether it has ended. Kept current by a thread."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self.head: RayHead | None = None
        self.details: Mapping[str, Any] = {}
        #: What the run's pod tells, of each log: where its own output begins there, and how much of that is a copy.
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
        """Return what ends a stream: the end of the run does, and so does another head."""
        self._stream = Stop()
        if self.ended.is_set():
            self._stream.set()
        return self._stream

    def close(self) -> None:
        """Look no more."""
        self._close.set()

    def check(self) -> None:
        """Raise what ended the look at the run, as Forbidden; that it is gone is no error."""
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
        """Learn where the run is now. Raises Forbidden: its head may not be asked, so nothing would be read of it."""
        try:
            self._ask(self._look.head())
        except Forbidden:
            if self._refusals.are_meant():
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
        """Ask again where the driver is: its head may have been replaced."""
        self.details = {}
