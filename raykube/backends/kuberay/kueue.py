"""Where a run stands in Kueue's queue, which no object says: Kueue answers it on an API of its own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from raykube.backends.kubernetes.fields import name_of, spec_of
from raykube.backends.kubernetes.kubeapi import Kube
from raykube.errors import BackendError

_VISIBILITY = "apis/visibility.kueue.x-k8s.io/v1beta2"
#: There is no watch on a place in a queue.
_EVERY_S = 5.0
_TIMEOUT_S = 2.0


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
