"""Observes one run on KubeRay: once, or continuously."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from raykube import marks
from raykube.backends import Status, endings
from raykube.backends.kuberay import objects, rayhead
from raykube.backends.kuberay.causes.observed import Observed, events_of
from raykube.backends.kuberay.polling import Poll, looks, unreachable
from raykube.backends.kuberay.rayhead import RayHead
from raykube.backends.kuberay.runs import kueue, rayjobs, runstates
from raykube.backends.kubernetes.fields import claims_of, name_of, newest, spec_of, status_of
from raykube.backends.kubernetes.kubeapi import Kube, Object, Stop
from raykube.backends.kubernetes.watching import RefusalCache, Watching
from raykube.errors import BackendError, Failure, NotFound, Unreachable

_TAIL_LINES = 40  # some of them are Ray's own
_JOB_LABEL = "job-name"  # set by Kubernetes on the pods of a Job

_Told = tuple[Mapping[str, Any], Mapping[str, Any]]
_RayPoll = Poll[RayHead, _Told]


class Look:
    """Observes the run `name`; keeps its latest RayJob and its head."""

    def __init__(self, kube: Kube, name: str) -> None:
        self.kube = kube
        self.name = name
        self.job = objects.found(kube, "RayJob", name)
        self._head: RayHead | None = None
        self._head_of = ("", "")
        self._later = RefusalCache()
        self._place = kueue.QueuePosition(kube)

    def head(self) -> RayHead | None:
        """Return the head that the run is on; None when there is none to ask."""
        key = (rayjobs.cluster_name(self.job), status_of(self.job).get("jobId") or "")
        if self._head is None or self._head_of != key:
            head = self._later.asked(key, lambda: rayhead.head_of(self.kube, self.job))
            self._head, self._head_of = head, key
        return self._head

    def driver(self) -> tuple[RayHead, str]:
        """Return the head that the run is on, and its driver's node; "" when Ray knows of no node.

        Raises:
            NotFound: there is no head to ask, or the head does not know the job.
            Forbidden, BackendError: the head may not be asked, or does not answer.
        """
        head = self.head()
        if head is None:
            raise NotFound(f"{self.name} has no head")
        return head, head.api.job(head.submission_id).get("driver_node_id") or ""

    def status(self) -> Status:
        """Return the current status."""
        head = self._askable()
        details, told = _ask_ray(head, self.name)
        return self._status(self._once(details), told, head)

    def _askable(self) -> RayHead | None:
        """Return the head; None if this user may not ask it or nobody answers: the RayJob must do then."""
        with contextlib.suppress(BackendError):
            return self.head()
        return None

    def _once(self, details: Mapping[str, Any]) -> Observed:
        seen = Observed(owner=self.job, ray=details, now=self.kube.now())
        if runstates.state_of(seen) in ("SUCCEEDED", "STOPPED"):
            return seen
        found = {key: objects.visible(self.kube, kind, **which) for key, (kind, which) in _selectors(self.job).items()}
        return self._placed(_with_objects(seen, found))

    def _placed(self, seen: Observed) -> Observed:
        queued = seen.workload and rayjobs.is_suspended(seen.owner)
        return replace(seen, before=self._place.before(seen.workload)) if queued else seen

    def _status(self, seen: Observed, told: Mapping[str, Any], head: RayHead | None) -> Status:
        url = f"{self.kube.server.rstrip('/')}{head.path}/" if head else ""
        status = runstates.status_of(seen, told, url)
        if status.state != "FAILED" or status.failure is None:
            return status
        tail = _tail(head, seen.ray) if head and seen.ray else self._submitters_tail(status.failure)
        return replace(status, failure=replace(status.failure, tail=tail or status.failure.tail))

    def _submitters_tail(self, failure: Failure) -> tuple[str, ...]:
        """Return the last lines of the pod that failed to submit the job to Ray: KubeRay does not say why it failed."""
        if failure.reason != "SubmissionFailed":
            return ()
        return endings.tail_of(self.submitters_log(tailLines=_TAIL_LINES))

    def submitters_log(self, **params: Any) -> str:
        """Return the log of the pod that submits the job, which includes the driver's output; "" without such a pod."""
        selectors = _selectors(self.job)
        if "submitter" not in selectors:
            return ""
        with contextlib.suppress(BackendError):
            kind, which = selectors["submitter"]
            pod = newest(objects.visible(self.kube, kind, **which))
            return self.kube.pod_log(name_of(pod), **params) if pod else ""
        return ""

    def changes(self) -> Iterator[Status]:
        """Yield the status now, at each change, and every half second."""
        watching, stop = Watching(self.kube), Stop()
        ray: _RayPoll = Poll(lambda head: _ask_ray(head, self.name), lambda _: ({}, {}), watching.touch)
        try:
            watching.watch("RayJob", fieldSelector=f"metadata.name={self.name}")
            ray.ask(self._askable())
            ray.look()  # so that the first status is not older than Ray's own state
            threading.Thread(target=ray.run, args=(stop,), daemon=True, name="raykube-ray").start()
            yield from self._follow(watching, ray)
        finally:
            stop.set()
            watching.close()

    def _follow(self, watching: Watching, ray: _RayPoll) -> Iterator[Status]:
        for found, away in looks(watching, "RayJob"):
            if found is not None:
                self._take(found)
                ray.ask(self._askable() if not away else None)
                for key, (kind, selectors) in _selectors(self.job).items():
                    watching.watch(kind, key=key, **selectors)
                if not away and self._is_early(watching):
                    continue
                yield self._seen(watching, ray, away)
                if not away and rayjobs.is_overdue(self.job, self.kube.now()):
                    raise self._unended()
            elif away:
                yield Status(self.name, "job", "WAITING", away.what, unreachable(away))

    def _is_early(self, watching: Watching) -> bool:
        """Whether the watch on the cluster has yet to answer: a cluster not known yet would seem to be gone."""
        known = watching.of("cluster") is not None or watching.error("cluster")
        return "cluster" in _selectors(self.job) and not known

    def _unended(self) -> BackendError:
        """Return the error that nobody ends an overdue run: waiting for it would never end."""
        limit = spec_of(self.job)["preRunningDeadlineSeconds"]
        return BackendError(
            f"run {self.name} has not begun in its {limit} s, and nobody ends it",
            why="KubeRay's operator, which would have ended it, does not run or does not watch this namespace",
            next_step=f"start the operator; or take the run back: raykube job delete {self.name}",
        )

    def _take(self, found: list[Object]) -> None:
        if not found:
            raise NotFound(f"run {self.name} was deleted", next_step="see: raykube job list")
        self.job = found[0]

    def _seen(self, watching: Watching, ray: _RayPoll, away: Unreachable | None) -> Status:
        found = {key: watching.of(key) or [] for key in _selectors(self.job)}
        (details, told), head = ray.answer()
        seen = _with_objects(Observed(owner=self.job, ray=details, now=self.kube.now()), found)
        status = self._status(seen if away else self._placed(seen), told, head)
        return replace(status, failure=unreachable(away), detail=away.what) if away else status


def _ask_ray(head: RayHead | None, name: str) -> _Told:
    """Return Ray's JobDetails and the state from the run's pod; both empty if nobody answers: the RayJob must do."""
    with contextlib.suppress(BackendError):
        details = head.details() if head else {}
        node = details.get("driver_node_id")
        return details, head.told(name, node) if head and node else {}
    return {}, {}


def _selectors(job: Object) -> dict[str, tuple[str, dict[str, str]]]:
    """Return the other objects to look at for a RayJob, as key: (kind, selectors)."""
    selectors: dict[str, tuple[str, dict[str, str]]] = {"warnings": ("Event", objects.WARNINGS)}
    if cluster := rayjobs.cluster_name(job):
        selectors["cluster"] = ("RayCluster", {"fieldSelector": f"metadata.name={cluster}"})
        selectors["pods"] = ("Pod", {"labelSelector": f"{marks.CLUSTER}={cluster}"})
        # Why KubeRay deleted a pod is told by an event of type Normal, not Warning.
        about = f"involvedObject.kind=RayCluster,involvedObject.name={cluster},type=Normal"
        selectors["deletions"] = ("Event", {"fieldSelector": about})
    if (spec_of(job).get("submissionMode") or "K8sJobMode") == "K8sJobMode":
        selectors["submitter"] = ("Pod", {"labelSelector": f"{_JOB_LABEL}={name_of(job)}"})
    if queued := kueue.selectors(job):
        selectors["workload"] = ("Workload", queued)
    return selectors


def _with_objects(seen: Observed, found: Mapping[str, list[Object]]) -> Observed:
    cluster = next(iter(found.get("cluster") or []), {})
    pods = tuple(found.get("pods") or ())
    workload = next(iter(found.get("workload") or []), {})
    submitter = newest(found.get("submitter") or ())
    whole = (seen.owner, cluster, submitter, *pods)
    events = (*(found.get("warnings") or ()), *(found.get("deletions") or ()))
    ours = events_of(events, whole, {claim for pod in pods for claim in claims_of(pod)})
    return replace(seen, cluster=cluster, pods=pods, workload=workload, submitter=submitter, events=ours)


def _tail(head: RayHead, details: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the driver's last lines; ask twice, since a busy head may fail to answer once."""
    for _ in range(2):
        with contextlib.suppress(BackendError):
            data = head.api.log(details["driver_node_id"] or "", head.log_file, last_lines=_TAIL_LINES)
            return endings.tail_of(data.decode("utf-8", "replace"))
    return ()
