"""A value: what Kubernetes and Ray say about one run, service or cluster at one moment."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from raykube import marks
from raykube.backends.kubernetes.fields import Object, labels_of, moment, name_of, newest, status_of


@dataclass(frozen=True)
class Observed:
    """The objects behind one name, as the API server gives them; an empty mapping for what is not there.

    Attributes:
        owner: the RayJob or RayService; empty for a cluster that stands alone.
        cluster: the RayCluster that the owner uses now.
        pods: of that cluster, head and workers.
        events: those (``v1`` Event) whose ``involvedObject`` is one of these objects.
        workload: Kueue's Workload of the owner.
        before: how many Workloads of its queue come first; None when Kueue does not say.
        submitter: the newest pod of the Job by which KubeRay's K8sJobMode hands a job to Ray.
        ray: Ray's own JobDetails, once the head answers.
        now: when this was seen, by the API server's clock, in Unix seconds.
    """

    owner: Object = field(default_factory=dict)
    cluster: Object = field(default_factory=dict)
    pods: tuple[Object, ...] = ()
    events: tuple[Object, ...] = ()
    workload: Object = field(default_factory=dict)
    before: int | None = None
    submitter: Object = field(default_factory=dict)
    ray: Object = field(default_factory=dict)
    now: float = 0.0

    @property
    def name(self) -> str:
        """The name of the run, service or cluster."""
        metadata = (self.owner or self.cluster).get("metadata", {})
        return str(metadata.get("name", ""))


def events_about(seen: Observed, names: Collection[str], kind: str = "") -> tuple[Object, ...]:
    """Return the events about objects of these names, and of one kind if it is given, the newest first."""
    about = [each for each in seen.events if each["involvedObject"].get("name") in names]
    found = [each for each in about if not kind or each["involvedObject"].get("kind") == kind]
    return tuple(sorted(found, key=moment, reverse=True))


def events_of(events: Iterable[Object], things: Iterable[Object], claims: Collection[str] = ()) -> tuple[Object, ...]:
    """Return the events about these objects, but not earlier ones of their names, and about claims of these names."""
    known = [(name_of(thing), thing["metadata"].get("uid")) for thing in things if thing]

    def is_ours(about: Object) -> bool:
        name, uid = about.get("name", ""), about.get("uid")
        return name in claims or any(name == each and (not uid or not own or uid == own) for each, own in known)

    return tuple(event for event in events if is_ours(event["involvedObject"]))


def is_head(pod: Object) -> bool:
    """Whether Ray's head is in a pod."""
    return bool(labels_of(pod).get(marks.NODE_TYPE) == "head")


def head_pod(pods: tuple[Object, ...]) -> Object:
    """Return the head's pod, the newest where one is being replaced; empty when there is none."""
    return newest(filter(is_head, pods))


def head_service(cluster: Object) -> str:
    """Return the name of the Service of a cluster's head; "" before KubeRay has made one."""
    return str((status_of(cluster).get("head") or {}).get("serviceName") or "")
