"""The log of a run's autoscaler, which is a container of the head's pod.

A broken stream is reopened from the second of its last line on, and lines that were already yielded are left out: no
line is lost or doubled, as far as the kubelet keeps the log.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from raykube import marks
from raykube.backends.kuberay import rayhead
from raykube.backends.kuberay.causes.observed import head_pod
from raykube.backends.kuberay.logs.followed import Followed
from raykube.backends.kuberay.runs.look import Look
from raykube.backends.kuberay.runs.rayjobs import cluster_name
from raykube.backends.kubernetes.fields import name_of
from raykube.backends.kubernetes.kubeapi import Kube, Object
from raykube.backends.kubernetes.watching import Refusals
from raykube.errors import BackendError, Forbidden, NotFound

_CONTAINER = "autoscaler"
_PAUSE_S = 0.3
# 2026-08-01T12:00:00.123456789Z, a space and the line; some nodes write +01:00 for Z.
_STAMPED = re.compile(r"(\S{19})\.\d+(\S+) (.*)", re.DOTALL)


def lines(look: Look, *, follow: bool) -> Iterator[str]:
    """Yield the lines of the autoscaler's log; with `follow` until the run has ended.

    Raises:
        NotFound: the run's cluster has no autoscaler.
    """
    _check_has_one(look)
    yield from _followed(look) if follow else _whole(look)


def _whole(look: Look) -> Iterator[str]:
    if pod := _head_pod(look.kube, look.job):
        yield from PodLog(look.kube, _CONTAINER).rest(pod)
    elif look.status().is_terminal:
        raise BackendError(
            f"the autoscaler's log of {look.name} is gone: it was lost with its cluster",
            why="Kubernetes keeps it with the head's pod",
            next_step="give a longer --keep-cluster-s, or follow it with -f while the run goes on",
        )


def _check_has_one(look: Look) -> None:
    if not rayhead.cluster_spec(look.kube, look.job).get("enableInTreeAutoscaling"):
        raise NotFound(
            f"the cluster of {look.name} has no autoscaler",
            why="enableInTreeAutoscaling is not set in its RayCluster: its workers are as many as it says",
            next_step="submit with a range, as in --workers 1..4",
        )


def _head_pod(kube: Kube, job: Object) -> str:
    cluster = cluster_name(job)
    pods = kube.listed("Pod", labelSelector=f"{marks.CLUSTER}={cluster}") if cluster else []
    return name_of(head_pod(tuple(pods)))


def _followed(look: Look) -> Iterator[str]:
    log, pod, refusals = PodLog(look.kube, _CONTAINER), "", Refusals()
    with contextlib.closing(Followed(look)) as run:
        while not run.ended.is_set():
            try:
                pod = _head_pod(look.kube, run.job) or pod
                for line in log.stream(pod, run) if pod else ():
                    refusals.end()
                    yield line
                if pod:  # a log without new lines is no refusal
                    refusals.end()
            except BackendError as error:  # the pod is not there yet, or the server is away
                if isinstance(error, Forbidden) and refusals.is_final():
                    raise
            run.ended.wait(_PAUSE_S)
        run.check()
        if not run.error and not pod:  # it raises the reason
            yield from _whole(Look(look.kube, look.name))
        with contextlib.suppress(BackendError):  # the pod is gone with the run
            yield from log.rest(pod) if pod else ()


class PodLog:
    """Reads what a container prints, over as many streams as that takes, without repeating a line."""

    def __init__(self, kube: Kube, container: str) -> None:
        self._kube = kube
        self._container = container
        self._pod = ""
        self._second, self._zone = "", ""
        self._given: set[str] = set()

    def stream(self, pod: str, run: Followed) -> Iterator[str]:
        """Yield new lines as they come, until the container or the run ends."""
        for line in self._kube.pod_log_lines(pod, run.stream(), **self.asked(pod)):
            yield from self.fresh(line.decode("utf-8", "replace"))

    def rest(self, pod: str) -> Iterator[str]:
        """Yield the lines there are that were not yielded yet."""
        for line in self._kube.pod_log(pod, **self.asked(pod)).split("\n"):
            yield from self.fresh(line)

    def asked(self, pod: str) -> dict[str, Any]:
        """Return the parameters of the next request; the API takes no finer time than seconds."""
        if pod != self._pod:
            self._pod, self._second, self._given = pod, "", set()
        since = {"sinceTime": f"{self._second}{self._zone}"} if self._second else {}
        return {"container": self._container, "timestamps": "true", **since}

    def fresh(self, line: str) -> Iterator[str]:
        """Yield a line without its timestamp, unless already yielded; a line without one is not the container's."""
        found = _STAMPED.fullmatch(line)
        if not found or line in self._given:
            return
        second, self._zone, text = found.groups()
        if second > self._second:
            self._second, self._given = second, set()
        self._given.add(line)
        yield text
