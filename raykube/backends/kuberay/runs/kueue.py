"""What Kueue has made of a run, and where that stands in its queue, which Kueue answers on an API of its own."""

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
#: There is no watch on a place in a queue.
_EVERY_S = 5.0
_TIMEOUT_S = 2.0


def selectors(job: Object) -> dict[str, str]:
    """Return what finds the Workload of a RayJob; nothing for one that is in no queue."""
    in_queue = marks.QUEUE in labels_of(job)
    return {"labelSelector": f"{marks.JOB_UID}={job['metadata']['uid']}"} if in_queue else {}


def take_off(kube: Kube, job: Object) -> bool:
    """Take a run off its queue, if it is on one: it is Kueue that suspends it, and that starts it again.

    Raises:
        BackendError: it is on one, and this user may not take it off, or there is no Workload of it yet.
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
    """Return what Kueue has made of a run; None where that is in no queue, or there is no Kueue.

    Raises:
        NotFound: there is none, or not yet.
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


class Place:
    """The place of one workload, asked for at most every few seconds."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._asked = -_EVERY_S
        self._before: int | None = None

    def before(self, workload: Mapping[str, Any]) -> int | None:
        """Return how many workloads of its queue come first; None when it is not told, or nobody may ask."""
        if time.monotonic() - self._asked >= _EVERY_S:
            self._before = self._ask(workload)
            self._asked = time.monotonic()
        return self._before

    def _ask(self, workload: Mapping[str, Any]) -> int | None:
        queue, name = spec_of(workload).get("queueName", ""), name_of(workload)
        path = f"/{_VISIBILITY}/namespaces/{self._kube.namespace}/localqueues/{queue}/pendingworkloads"
        with contextlib.suppress(BackendError):  # an older Kueue, or this API is off: there is its condition
            items = self._kube.send("GET", path, timeout=_TIMEOUT_S).json()["items"]
            found = (each["positionInLocalQueue"] for each in items if each["metadata"]["name"] == name)
            return next((int(position) for position in found), None)
        return None
