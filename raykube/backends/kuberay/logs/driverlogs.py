"""The output of a run on KubeRay, from its head while that lives, else from the run's storage or its submitter's pod.

A broken stream is reopened, and what was already yielded is skipped: no line is lost or doubled. A log begins with a
few lines of Ray's own; on a head that has replaced a lost one, these are followed by a copy of the run's output so far.
The storage has the run's output only, without Ray's lines.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any

from raykube import wire
from raykube.backends.kuberay import storage
from raykube.backends.kuberay.logs import logfiles
from raykube.backends.kuberay.logs.followed import Followed, learn, log_of
from raykube.backends.kuberay.logs.logfiles import LogFile
from raykube.backends.kuberay.rayhead import RayHead
from raykube.backends.kuberay.runs.look import Look
from raykube.backends.kuberay.runs.rayjobs import was_in_ray
from raykube.backends.kubernetes.kubeapi import Kube, Stop
from raykube.backends.sources import Lines
from raykube.errors import BackendError, Forbidden, NotFound, Unreachable

_PAUSE_S = 0.3
#: Seconds for which a head that does not answer is asked again, before the storage is.
_PATIENCE_S = 5.0
#: Seconds to wait for a run's pod to tell where its output begins in its log.
_TOLD_S = 10.0


def lines(look: Look, *, follow: bool) -> Iterator[str]:
    """Yield a run's log lines without their newlines; with `follow` until it has ended."""
    chunks = _followed(look) if follow else _rest(look, _Reader(look.kube, {}))
    made = Lines()
    for chunk in chunks:
        yield from made.take(chunk)
    yield from made.end()


def _rest(look: Look, reader: _Reader) -> Iterator[bytes]:
    """Yield what a reader has not yielded yet of a run's log, as far as that is written."""
    away: BackendError | None = None
    started = was_in_ray(look.job)
    try:
        if (yield from _from_head(look, reader, _PATIENCE_S if started else 0)):
            return
        # If Ray itself knows of no driver, there was none, for example because its environment could not be made.
        started = False
    except NotFound:  # the cluster is gone, or the driver's node
        pass
    except Forbidden as error:  # a user who may not ask the head may still read the storage
        away = error
    except Unreachable as error:
        away = error if started else None
    yield _rest_of_kept(look, reader, away, started=started)


def _from_head(look: Look, reader: _Reader, patience_s: float) -> Generator[bytes, None, bool]:
    """Yield the rest of the log from the head, and return whether the head knows of a driver.

    Raises:
        NotFound: the cluster is gone, or the node that the driver was on.
        Forbidden, Unreachable: the head may not be asked, or does not answer.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return (yield from _read_head(look, reader))
        except Unreachable:  # even a running head fails to answer at times
            if time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE_S)


def _read_head(look: Look, reader: _Reader) -> Generator[bytes, None, bool]:
    head, node = look.driver()
    if node:
        learn(reader.told, look.name, head, node)
        yield from reader.rest(head, node)
    return bool(node)


def _rest_of_kept(look: Look, reader: _Reader, away: BackendError | None, *, started: bool) -> bytes:
    """Return what a reader has not yielded of the log that outlives the head, in the storage or the submitter's pod.

    Empty when no log was kept yet, or there was no driver to write one.

    Raises:
        Forbidden, Unreachable: the error `away`; no log was kept either.
        BackendError: the run has ended, and its log is gone.
    """
    if kept := storage.read(look.kube, look.job, wire.LOG_FILE):
        return reader.rest_of_copy(kept)
    if away:
        raise away
    if not started or not look.status().is_terminal:
        return b""
    # There, other lines are among the driver's, so a reader that has begun would not know where to go on.
    if not reader.has_begun and (printed := look.submitters_log()):
        return printed.encode()
    raise storage.lost(look.job, f"the log of {look.name}", wire.LOG_FILE)


def _followed(look: Look) -> Iterator[bytes]:
    with contextlib.closing(Followed(look)) as run:
        reader = _Reader(look.kube, run.told)
        while not run.ended.is_set():
            head, node = run.head, run.details.get("driver_node_id")
            if head and node and reader.is_ready(log_of(head, node)):
                try:
                    yield from reader.stream(head, node, run.stream())
                except BackendError:
                    run.refresh()
            run.ended.wait(_PAUSE_S)
        if isinstance(run.error, NotFound):
            return
        yield from _rest(Look(look.kube, look.name), reader)
        run.check()


class _Reader:
    """Tracks how many bytes of a run's log were already yielded; `told` is what its pods tell of their logs."""

    def __init__(self, kube: Kube, told: dict[str, Mapping[str, Any]]) -> None:
        self._kube = kube
        self.told = told
        self._log = ""
        self._at = 0
        self._since: dict[str, float] = {}

    @property
    def has_begun(self) -> bool:
        """Whether anything was yielded."""
        return bool(self._log)

    def is_ready(self, log: str) -> bool:
        """Whether it is known what to skip of a log; true after ``_TOLD_S`` seconds anyway, as some pods never tell."""
        if self._log in ("", log) or log in self.told:
            return True
        return time.monotonic() - self._since.setdefault(log, time.monotonic()) > _TOLD_S

    def stream(self, head: RayHead, node: str, stop: Stop) -> Iterator[bytes]:
        """Yield the log as it grows, without what was yielded before."""
        log, at = log_of(head, node), self._offset_in(log_of(head, node))
        return self._noted(log, at, logfiles.chunks(self._kube, _file(head, node), at, stop))

    def rest(self, head: RayHead, node: str) -> Iterator[bytes]:
        """Yield what is in the log now, without what was yielded before."""
        log, at = log_of(head, node), self._offset_in(log_of(head, node))
        return self._noted(log, at, _file(head, node).rest(at))

    def rest_of_copy(self, kept: bytes) -> bytes:
        """Return what was not yielded yet of the storage's copy of the log."""
        return kept[self._offset_in("") :]

    def _noted(self, log: str, at: int, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            at += len(chunk)
            self._log, self._at = log, at
            yield chunk

    def _offset_in(self, log: str) -> int:
        """Return how many bytes from a log's beginning were yielded, from any head; "" is the storage's copy."""
        if log == self._log or not self._log:
            return self._at
        # Only the run's own output is counted: Ray's lines before it differ in length from log to log.
        own = max(0, self._at - _number(self.told, self._log, "log_starts_at", self._at))
        if not log:
            return own
        return _number(self.told, log, "log_starts_at") + min(own, _number(self.told, log, "log_replayed"))


def _file(head: RayHead, node: str) -> LogFile:
    return LogFile(head.cluster, node, head.log_file, head.api)


def _number(told: Mapping[str, Mapping[str, Any]], log: str, key: str, default: int = 0) -> int:
    return int(told.get(log, {}).get(key, default))
