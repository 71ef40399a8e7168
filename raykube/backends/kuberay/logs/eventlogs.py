"""What KubeRay and Kubernetes note about a run: one line per event of its RayJob, clusters, pods and claims."""

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

#: How many characters of a cluster's name, or of cluster and group, KubeRay puts at the start of a pod's name.
_POD_PREFIX = 50
#: What Kubernetes appends to the name of a Job, or of a cluster's group, to name one of its pods.
_RANDOM = "[bcdfghjklmnpqrstvwxz2456789]{5}"


def lines(look: Look, *, follow: bool) -> Iterator[str]:
    """Yield one line per event, oldest first; with `follow` yield new events too, until the run has ended."""
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
    """Return the spec of a run's cluster; empty when the cluster is gone."""
    try:
        return rayhead.cluster_spec(look.kube, look.job)
    except NotFound:
        return {}


def ours(job: Object, spec: Object, events: Iterable[Object]) -> list[Object]:
    """Return the events about a run's objects; its clusters are found in the events about its RayJob."""
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

    The name of a run's own cluster ends in random characters, so it is unique. The name of a long-lived cluster may be
    the beginning of others' (clusters, runs, their pods), so its groups' names must match too, while its spec is known.
    """
    if not spec or not selected(job):
        return f"{re.escape(f'{cluster}-'[:_POD_PREFIX])}.*"
    groups = [f"{cluster}-{group['groupName']}" for group in spec.get("workerGroupSpecs") or []]
    workers = [f"{re.escape(group[:_POD_PREFIX].lower())}-worker-{_RANDOM}" for group in groups]
    # An operator can be configured to give heads no random ending.
    return "|".join([f"{re.escape(cluster[:_POD_PREFIX])}-head(?:-{_RANDOM})?", *workers])


def _clusters(job: Object, own: Iterable[Object]) -> set[str]:
    """Return the names of a run's clusters; KubeRay's messages name those that are gone: "Created … team/a-x1".

    Such messages also name the run itself, for its submitter; that is a cluster's name only if the status says so.
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
    """Return the sort key of an event: its time and, within a second, the end of its name, which is a finer time."""
    return moment(event), event["metadata"]["name"].rpartition(".")[2]


def line_of(event: Mapping[str, Any]) -> str:
    """Return an event as one line, with the count if it came more than once."""
    about, count = event["involvedObject"], times(event)
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment(event)))
    what = f"{about.get('kind', '').lower()}/{about.get('name')}"
    message = " ".join((event.get("message") or "").split())
    again = f" (x{count})" if count > 1 else ""
    return f"{when} {event.get('type', ''):<7} {event.get('reason')} {what}: {message}{again}"
