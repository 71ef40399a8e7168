"""The output of a run on KubeRay, from its head while that lives, else from the run's storage.

A stream that breaks is opened again, and what was given already is skipped: a line is neither lost nor doubled. A log
begins with a few lines of Ray's own; that of a head which took the place of a lost one goes on with a copy of what was
printed before. The storage has what was printed, and nothing of Ray's.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from raykube import wire
from raykube.backends.kuberay import logfiles, storage
from raykube.backends.kuberay.followed import Followed, log_of
from raykube.backends.kuberay.logfiles import LogFile
from raykube.backends.kuberay.look import Look
from raykube.backends.kuberay.observed import storage_of
from raykube.backends.kuberay.rayhead import RayHead
from raykube.backends.kubernetes.kubeapi import Kube, Stop
from raykube.backends.sources import Lines
from raykube.errors import BackendError, Forbidden, NotFound, Unreachable

_PAUSE_S = 0.3
#: For so long a head that does not answer is asked again, before the storage is.
_PATIENCE_S = 5.0
#: For so long a run's pod is waited for that has not told yet what its log begins with.
_TOLD_S = 10.0


def lines(kube: Kube, name: str, *, follow: bool) -> Iterator[str]:
    """Yield a run's log lines without their newlines; with `follow` until it has ended."""
    chunks = _followed(kube, name) if follow else iter([_whole(kube, name).data])
    made = Lines()
    for chunk in chunks:
        yield from made.take(chunk)
    yield from made.end()


@dataclass(frozen=True)
class _Whole:
    """All of a run's log, and the head that has it with its driver's node; none for the storage's copy."""

    data: bytes
    head: RayHead | None = None
    node: str = ""


def _whole(kube: Kube, name: str) -> _Whole:
    look = Look(kube, name)
    away: BackendError | None = None
    started = _was_in_ray(look.job)
    try:
        if found := _from_head(look, _PATIENCE_S if started else 0):
            return found
        # Where Ray itself tells of no driver there was none, as when its environment could not be made.
        started = False
    except NotFound:  # the cluster is gone, or the driver's node
        pass
    except Forbidden as error:  # who may not ask a head may yet have its storage read
        away = error
    except Unreachable as error:
        away = error if started else None
    return _Whole(_kept(kube, look, away, started=started))


def _from_head(look: Look, patience_s: float) -> _Whole | None:
    """Return the log as the head hands it out; None when it knows of no driver.

    Raises:
        NotFound: the cluster is gone, or the node that the driver was on.
        Forbidden, Unreachable: it may not be asked, or does not answer.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return _asked(look)
        except Unreachable:  # a head that lives misses an answer at times
            if time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE_S)


def _asked(look: Look) -> _Whole | None:
    head = look.head()
    if head is None:
        raise NotFound(f"{look.name} has no head")
    node = head.api.job(head.submission_id).get("driver_node_id")
    return _Whole(head.api.log(node, head.log_file), head, node) if node else None


def _kept(kube: Kube, look: Look, away: BackendError | None, *, started: bool) -> bytes:
    """Return the log that outlived the cluster; nothing when there was none yet, or no driver to write it.

    Raises:
        Forbidden, Unreachable: that is `away`, and nothing was kept.
    """
    if kept := storage.read(kube, look.job, wire.LOG_FILE):
        return kept
    if away:
        raise away
    if not started or not look.status().is_terminal:
        return b""
    raise BackendError(
        f"the log of {look.name} is gone: it was lost with the node that it was on",
        why="the cluster names no storage that would have kept it"
        if not storage_of(look.job)
        else f"there is no {wire.LOG_FILE} in {storage_of(look.job)}",
        next_step="annotate the cluster's manifest with raykube.io/storage, or give a longer --keep-cluster-s "
        "(of a RayJob of your own: ttlSecondsAfterFinished)",
    )


def _was_in_ray(job: Mapping[str, Any]) -> bool:
    """Whether Ray ever had the job: one that was never handed to it, or was too late, has printed nothing."""
    status = job.get("status") or {}
    return bool(status.get("jobStatus") or status.get("rayJobInfo"))


def _followed(kube: Kube, name: str) -> Iterator[bytes]:
    with contextlib.closing(Followed(kube, name)) as run:
        reader = _Reader(kube, run.told)
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
        whole = _whole(kube, name)
        if whole.head:
            run.learn(whole.head, whole.node)
        yield reader.rest(whole)
        run.check()


class _Reader:
    """Remembers what was given of a run's log, over all its streams; `told` is what its pods tell of their logs."""

    def __init__(self, kube: Kube, told: Mapping[str, Mapping[str, Any]]) -> None:
        self._kube = kube
        self._told = told
        self._log = ""
        self._at = 0
        self._since: dict[str, float] = {}

    def is_ready(self, log: str) -> bool:
        """Whether it is known what to skip of a log; that a pod never tells, as one without its storage, is borne."""
        if self._log in ("", log) or log in self._told:
            return True
        return time.monotonic() - self._since.setdefault(log, time.monotonic()) > _TOLD_S

    def stream(self, head: RayHead, node: str, stop: Stop) -> Iterator[bytes]:
        """Yield what comes, without what was given before."""
        log, file = log_of(head, node), LogFile(head.cluster, node, head.log_file, head.api)
        at = self._given_of(log)
        for chunk in logfiles.chunks(self._kube, file, at, stop):
            at += len(chunk)
            self._log, self._at = log, at
            yield chunk

    def rest(self, whole: _Whole) -> bytes:
        """Return what the streams did not."""
        log = log_of(whole.head, whole.node) if whole.head else ""
        return whole.data[self._given_of(log) :]

    def _given_of(self, log: str) -> int:
        """Return how many bytes at the beginning of a log were given, by whichever head; "" is the storage's copy."""
        if log == self._log or not self._log:
            return self._at
        # Of the run's own output: Ray's lines before it are of another length in each log.
        own = max(0, self._at - _number(self._told, self._log, "log_starts_at", self._at))
        if not log:
            return own
        return _number(self._told, log, "log_starts_at") + min(own, _number(self._told, log, "log_replayed"))


def _number(told: Mapping[str, Mapping[str, Any]], log: str, key: str, default: int = 0) -> int:
    return int(told.get(log, {}).get(key, default))
