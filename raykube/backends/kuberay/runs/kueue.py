"""Kueue's Workload of a run, and its position in the queue, which Kueue tells through an API of its own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from raykube import marks
from raykube.backends.kubernetes.fields import Object, labels_of, name_of, spec_of
from raykube.backends.kubernetes.kubeapi import Kube
from raykube.backends.kubernetes.refusals import UnknownKind
from raykube.errors import BackendError, Forbidden, ManifestError, NotFound

_VISIBILITY = "apis/visibility.kueue.x-k8s.io/v1beta2"
#: Seconds between requests for a queue position, which cannot be watched.
_EVERY_S = 5.0
_TIMEOUT_S = 2.0


def selectors(job: Object) -> dict[str, str]:
    """Return the selectors of a RayJob's Workload; empty for a RayJob that is in no queue."""
    in_queue = marks.QUEUE in labels_of(job)
    return {"labelSelector": f"{marks.JOB_UID}={job['metadata']['uid']}"} if in_queue else {}


def take_off(kube: Kube, job: Object) -> bool:
    """Take a run off its queue and return whether it was on one: Kueue suspends such a run and starts it again.

    Raises:
        BackendError: it is on a queue, but this user may not take it off, or it has no Workload yet.
    """
    try:
        if found := _workload(kube, job):
            kube.patch("Workload", name_of(found), {"spec": {"active": False}})
    except (Forbidden, NotFound, ManifestError) as error:
        raise BackendError(
            f"run {name_of(job)} could not be taken off Kueue's queue, and starts when its turn comes",
            why=error.why or str(error),
            next_step=f"try it again in a moment, or: raykube job delete {name_of(job)}",
        ) from error
    return found is not None


def _workload(kube: Kube, job: Object) -> Object | None:
    """Return the Workload of a run; None when the run is in no queue, or there is no Kueue.

    Raises:
        NotFound: Kueue has made no Workload of it (yet).
        Forbidden: this user may not see it.
    """
    if not (which := selectors(job)):
        return None
    try:
        found = kube.listed("Workload", **which)
    except UnknownKind:
        return None
    if not found:
        raise NotFound(f"Kueue has made no Workload of run {name_of(job)}", next_step="ask again in a moment")
    return found[0]


class QueuePosition:
    """The position of one Workload in its queue; Kueue is asked at most every ``_EVERY_S`` seconds."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._asked = -_EVERY_S
        self._before: int | None = None

    def before(self, workload: Mapping[str, Any]) -> int | None:
        """Return how many Workloads of its queue come first; None if Kueue does not say, or this user may not ask."""
        if time.monotonic() - self._asked >= _EVERY_S:
            self._before = self._ask(workload)
            self._asked = time.monotonic()
        return self._before

    def _ask(self, workload: Mapping[str, Any]) -> int | None:
        queue, name = spec_of(workload).get("queueName", ""), name_of(workload)
        path = f"/{_VISIBILITY}/namespaces/{self._kube.namespace}/localqueues/{queue}/pendingworkloads"
        with contextlib.suppress(BackendError):  # Kueue is older, or this API is off: the Workload's condition must do
            items = self._kube.send("GET", path, timeout=_TIMEOUT_S).json()["items"]
            found = (each["positionInLocalQueue"] for each in items if each["metadata"]["name"] == name)
            return next((int(position) for position in found), None)
        return None
