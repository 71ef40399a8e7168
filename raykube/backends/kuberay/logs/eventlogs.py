"""What KubeRay and Kubernetes note about a run: the events of its RayJob, clusters, pods and claims, a line each."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from raykube import manifests
from raykube.backends.kuberay import rayhead
from raykube.backends.kuberay.runs.look import Look
from raykube.backends.kuberay.runs.rayjobs import cluster_name, selected
from raykube.backends.kubernetes.fields import Object, claims_of, moment, times
from raykube.backends.kubernetes.watching import Watching
from raykube.errors import NotFound, Unreachable

#: So much of a cluster's name, or of it and a group's, KubeRay puts before the names of its pods.
_POD_PREFIX = 50
#: What Kubernetes puts behind the name of a Job or of a group of a cluster, for a pod of it.
_RANDOM = "[bcdfghjklmnpqrstvwxz2456789]{5}"


def lines(look: Look, *, follow: bool) -> Iterator[str]:
    """Yield a line an event, the oldest first; with `follow` each as it comes first, until the run has ended."""
    spec = _spec(look)
    shown: set[str] = set()
    try:
        for events in _followed(look) if follow else ():
            yield from _fresh(ours(look.job, spec, events), shown)
    except NotFound:  # the run was deleted
        return
    yield from _fresh(ours(look.job, spec, look.kube.listed("Event")), shown)


def _followed(look: Look) -> Iterator[Iterable[Object]]:
    """Yield the namespace's events again and again, until the run has ended."""
    watching = Watching(look.kube)
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


def _spec(look: Look) -> Object:
    """Return the spec of a run's cluster; empty when that cluster is gone."""
    try:
        return rayhead.cluster_spec(look.kube, look.job)
    except NotFound:
        return {}


def ours(job: Object, spec: Object, events: Iterable[Object]) -> list[Object]:
    """Return the events about a run's objects: those about its RayJob name the clusters that it has had."""
    events = list(events)
    own = [event for event in events if event["involvedObject"].get("uid") == job["metadata"]["uid"]]
    clusters, claims = _clusters(job, own), _claims(spec)
    pods = re.compile("|".join([_submitter(job), *(_pods(job, spec, cluster) for cluster in clusters)]))

    def is_ours(kind: str, name: str) -> bool:
        if kind == "Pod":
            return bool(pods.fullmatch(name))
        return name in {"RayCluster": clusters, "PersistentVolumeClaim": claims}.get(kind, ())

    about = [(event["involvedObject"], event) for event in events]
    return [*own, *(event for thing, event in about if is_ours(thing.get("kind", ""), thing.get("name", "")))]


def _claims(spec: Object) -> set[str]:
    groups = manifests.groups(spec) if spec else ()
    return {claim for group in groups for claim in claims_of(group["template"])}


def _submitter(job: Object) -> str:
    return f"{re.escape(job['metadata']['name'])}-{_RANDOM}"


def _pods(job: Object, spec: Object, cluster: str) -> str:
    """Return a pattern for the names of a cluster's pods.

    A run's own cluster has a random end, which is no other's. The name of one that stays may begin those of other
    clusters, of runs and of their pods: there the groups tell, as long as there is somebody to tell of them.
    """
    if not spec or not selected(job):
        return f"{re.escape(f'{cluster}-'[:_POD_PREFIX])}.*"
    groups = [f"{cluster}-{group['groupName']}" for group in spec.get("workerGroupSpecs") or []]
    workers = [f"{re.escape(group[:_POD_PREFIX].lower())}-worker-{_RANDOM}" for group in groups]
    # An operator may be told to give heads no random end.
    return "|".join([f"{re.escape(cluster[:_POD_PREFIX])}-head(?:-{_RANDOM})?", *workers])


def _clusters(job: Object, own: Iterable[Object]) -> set[str]:
    """Return the names of a run's clusters; of those that are gone KubeRay's words tell: "Created … team/a-x1".

    The run's own name, which such words tell of its submitter, is that of no cluster unless its status says so.
    """
    named = re.compile(rf"\b{re.escape(job['metadata']['namespace'])}/([a-z0-9.-]*[a-z0-9])")
    found = {name for event in own for name in named.findall(event.get("message") or "")}
    now = cluster_name(job)
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
