"""The output of a run on KubeRay, from its head while that lives, else from the run's storage.

A stream that breaks is opened again, and what was given already is skipped: a line is neither lost nor doubled. A head
that took the place of a lost one begins its log with a copy of what was printed before.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from raykube import wire
from raykube.backends.kuberay import storage
from raykube.backends.kuberay.look import Look
from raykube.backends.kuberay.rayhead import RayHead
from raykube.backends.kubernetes.kubeapi import Kube, Object, Stop
from raykube.errors import BackendError, NotFound, Unreachable

_PAUSE_S = 0.3
#: For so long a head that does not answer is asked again, before the storage is.
_PATIENCE_S = 5.0


def lines(kube: Kube, name: str, *, follow: bool) -> Iterator[str]:
    """Yield a run's log lines without their newlines; with `follow` until it has ended."""
    chunks = _followed(kube, name) if follow else iter([_whole(kube, name)])
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.decode("utf-8", "replace") for line in whole)
    if rest:
        yield rest.decode("utf-8", "replace")


def _whole(kube: Kube, name: str) -> bytes:
    look = Look(kube, name)
    started, away = _was_in_ray(look.job), None
    try:
        if (log := _from_head(look, _PATIENCE_S if started else 0)) is not None:
            return log
        # Where Ray itself tells of no driver there was none, as when its environment could not be made.
        started = False
    except NotFound:  # the cluster is gone, or the driver's node
        pass
    except Unreachable as error:
        away = error if started else None
    return _kept(kube, look, away, started=started)


def _from_head(look: Look, patience_s: float) -> bytes | None:
    """Return the log as the head hands it out; None when it knows of no driver. Raises NotFound, Unreachable."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return _asked(look)
        except Unreachable:  # a head that lives misses an answer at times
            if time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE_S)


def _asked(look: Look) -> bytes | None:
    head = look.head()
    if head is None:
        raise NotFound(f"{look.name} has no head")
    node = head.api.job(head.submission_id).get("driver_node_id")
    return head.api.log(node, head.log_file) if node else None


def _kept(kube: Kube, look: Look, away: Unreachable | None, *, started: bool) -> bytes:
    """Return the log that outlived the cluster; nothing when there was none yet, or no driver to write it.

    Raises:
        Unreachable: that is `away`, and nothing was kept.
    """
    if kept := storage.read(kube, look.job, wire.LOG_FILE):
        return kept
    if away:
        raise away
    if not started or not look.status().is_terminal:
        return b""
    raise BackendError(
        f"the log of {look.name} ended with the node that it was on",
        why="the cluster names no storage that would have kept it"
        if not storage.storage_of(look.job)
        else f"there is no {wire.LOG_FILE} in {storage.storage_of(look.job)}",
        next_step="annotate the cluster's manifest with raykube.io/storage, or give a longer --keep-cluster-s",
    )


def _was_in_ray(job: Mapping[str, Any]) -> bool:
    """Whether Ray ever had the job: one that was never handed to it, or was too late, has printed nothing."""
    status = job.get("status") or {}
    return bool(status.get("jobStatus") or status.get("rayJobInfo"))


class Followed:
    """The run as its log's reader sees it: where it runs now, and whether it has ended. Kept current by a thread."""

    def __init__(self, kube: Kube, name: str) -> None:
        self._look = Look(kube, name)
        self.head: RayHead | None = None
        self.details: Mapping[str, Any] = {}
        self.ended = threading.Event()
        self.error: BackendError | None = None
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
        with contextlib.suppress(BackendError):
            head = self._look.head()
            if head and (head is not self.head or not self.details.get("driver_node_id")):
                self.details = head.details()
                self.head = head
                self._stream.set()

    def refresh(self) -> None:
        """Ask again where the driver is: its head may have been replaced."""
        self.details = {}


def _followed(kube: Kube, name: str) -> Iterator[bytes]:
    run = Followed(kube, name)
    reader = _Reader(kube, name)
    try:
        while not run.ended.is_set():
            head, details = run.head, run.details
            if not head or not details.get("driver_node_id"):
                run.ended.wait(_PAUSE_S)
                continue
            try:
                yield from reader.stream(head, details["driver_node_id"], run.stream())
            except BackendError:
                run.refresh()
            run.ended.wait(_PAUSE_S)
        if isinstance(run.error, NotFound):
            return
        yield from reader.last(_whole(kube, name))
        if run.error:
            raise run.error
    finally:
        run.close()


class _Reader:
    """Remembers what was given of a run's log, over all its streams."""

    def __init__(self, kube: Kube, name: str) -> None:
        self._kube = kube
        self._name = name
        self._log = ""
        self._given = 0

    def stream(self, head: RayHead, node: str, stop: Stop) -> Iterator[bytes]:
        """Yield what comes, without what was given before."""
        skip = self._skip(head, node)
        path, options = head.api.log_path(node, head.log_file)
        with self._kube.stream(path, stop, timeout=None, **options) as response:
            for chunk in response.iter_raw():
                if stop.is_set():  # the rest is read at once, from where this ends
                    return
                fresh = chunk[skip:]
                skip = max(0, skip - len(chunk))
                self._given += len(fresh)
                if fresh:
                    yield fresh

    def last(self, whole: bytes) -> Iterator[bytes]:
        """Yield what the streams did not."""
        yield whole[self._given :]

    def _skip(self, head: RayHead, node: str) -> int:
        """Return how many bytes of this log were given; of another head's log, how many of its copy of the last."""
        log = f"{node}/{head.log_file}"
        if self._log and log != self._log:
            told = head.told(self._name, {"driver_node_id": node})
            self._given = int(told.get("log_starts_at") or 0) + int(told.get("log_replayed") or 0)
        self._log = log
        return self._given
