"""What KubeRay and Kubernetes note about a run: the events of its RayJob, clusters, pods and claims, a line each."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from raykube.backends.kuberay import rayhead
from raykube.backends.kuberay.look import Look
from raykube.backends.kubernetes.fields import Object, claims_of, moment, times
from raykube.backends.kubernetes.kubeapi import Kube
from raykube.backends.kubernetes.watching import Watching
from raykube.errors import NotFound, Unreachable

#: So much of a cluster's name KubeRay puts before the names of its pods.
_POD_PREFIX = 50
#: What Kubernetes puts behind the name of a Job, for a pod of it.
_RANDOM = "[bcdfghjklmnpqrstvwxz2456789]{5}"


def lines(kube: Kube, name: str, *, follow: bool) -> Iterator[str]:
    """Yield a line an event, the oldest first; with `follow` each as it comes first, until the run has ended."""
    look = Look(kube, name)
    claims = _claims(kube, look.job)
    shown: set[str] = set()
    try:
        for events in _followed(kube, look) if follow else ():
            yield from _fresh(ours(look.job, claims, events), shown)
    except NotFound:  # the run was deleted
        return
    yield from _fresh(ours(look.job, claims, kube.listed("Event")), shown)


def _followed(kube: Kube, look: Look) -> Iterator[Iterable[Object]]:
    """Yield the namespace's events again and again, until the run has ended."""
    watching = Watching(kube)
    try:
        watching.watch("Event")
        for status in look.changes():
            error = watching.error("Event")
            if error and not isinstance(error, Unreachable):
                raise error
            yield watching.of("Event") or []
            if status.is_terminal:
                return
    finally:
        watching.close()


def _claims(kube: Kube, job: Object) -> set[str]:
    """Return the claims that the pods of a run's cluster name; none when that cluster is gone."""
    try:
        spec = rayhead.cluster_spec(kube, job)
    except NotFound:
        return set()
    groups = [spec["headGroupSpec"], *(spec.get("workerGroupSpecs") or [])]
    return {claim for group in groups for claim in claims_of(group["template"])}


def ours(job: Object, claims: Collection[str], events: Iterable[Object]) -> list[Object]:
    """Return the events about a run's objects: those about its RayJob name the clusters that it has had."""
    events = list(events)
    own = [event for event in events if event["involvedObject"].get("uid") == job["metadata"]["uid"]]
    clusters = _clusters(job, own)
    pods = tuple(f"{cluster}-"[:_POD_PREFIX] for cluster in clusters)
    submitter = re.compile(rf"{re.escape(job['metadata']['name'])}-{_RANDOM}")

    def is_ours(kind: str, name: str) -> bool:
        if kind == "Pod":
            return name.startswith(pods) or bool(submitter.fullmatch(name))
        return name in {"RayCluster": clusters, "PersistentVolumeClaim": claims}.get(kind, ())

    about = [(event["involvedObject"], event) for event in events]
    return [*own, *(event for thing, event in about if is_ours(thing.get("kind", ""), thing.get("name", "")))]


def _clusters(job: Object, own: Iterable[Object]) -> set[str]:
    """Return the names of a run's clusters; of those that are gone KubeRay's words tell: "Created … team/a-x1".

    The run's own name, which such words tell of its submitter, is that of no cluster unless its status says so.
    """
    named = re.compile(rf"\b{re.escape(job['metadata']['namespace'])}/([a-z0-9.-]*[a-z0-9])")
    found = {name for event in own for name in named.findall(event.get("message") or "")}
    now = (job.get("status") or {}).get("rayClusterName")
    return found - {job["metadata"]["name"]} | ({now} if now else set())


def _fresh(events: Iterable[Object], shown: set[str]) -> Iterator[str]:
    for event in sorted(events, key=_order):
        if event["metadata"]["uid"] not in shown:
            shown.add(event["metadata"]["uid"])
            yield line_of(event)


def _order(event: Object) -> tuple[float, str]:
    """Return by what events are ordered: their time and, within a second, what their names end with, a finer one."""
    return moment(event), event["metadata"]["name"].rpartition(".")[2]


def line_of(event: Mapping[str, Any]) -> str:
    """Return an event as one line, with how often it came when that was more than once."""
    about, count = event["involvedObject"], times(event)
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment(event)))
    what = f"{about.get('kind', '').lower()}/{about.get('name')}"
    message = " ".join((event.get("message") or "").split())
    again = f" (x{count})" if count > 1 else ""
    return f"{when} {event.get('type', ''):<7} {event.get('reason')} {what}: {message}{again}"
