"""The state of a RayCluster that stands alone, from what Kubernetes says of it. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from raykube import manifests, marks
from raykube.backends.kuberay.causes.diagnosis import cause
from raykube.backends.kuberay.causes.observed import Observed, events_of, head_service
from raykube.backends.kubernetes.fields import Object, is_leaving, is_ready, labels_of, seconds, spec_of
from raykube.errors import Failure

ClusterState = Literal["WAITING", "RUNNING", "STOPPED"]


@dataclass(frozen=True)
class ClusterStatus:
    """The state of a RayCluster at one moment.

    Attributes:
        name: of the cluster.
        state: ``RUNNING`` while all its pods are ready, ``STOPPED`` while it is suspended or being deleted, else
            ``WAITING``.
        detail: one line on its pods, or that it is suspended or being deleted.
        failure: what keeps it from running; None when nothing is known to be wrong.
        created: Unix time in seconds.
        address: of its dashboard and Job API, inside the same Kubernetes; "" before there is one.
        ready, wanted: how many of its pods are ready, and how many there should be.
        owner: kind and name of the RayJob or RayService that it belongs to; "" when it stands alone.
        runs: names of the RayJobs on it that have not ended; None when nobody looked, or this user may not.
    """

    name: str
    state: ClusterState
    detail: str = ""
    failure: Failure | None = None
    created: float = 0.0
    address: str = ""
    ready: int = 0
    wanted: int = 0
    owner: str = ""
    runs: tuple[str, ...] | None = None


def seen(cluster: Object, pods: Iterable[Object], events: Iterable[Object], now: float) -> Observed:
    """Return what a namespace's pods and events say of one cluster; `now` is by the API server's clock."""
    name = cluster["metadata"]["name"]
    own = tuple(pod for pod in pods if labels_of(pod).get(marks.CLUSTER) == name)
    return Observed(cluster=cluster, pods=own, events=events_of(events, (cluster, *own)), now=now)


def status_of(look: Observed) -> ClusterStatus:
    """Return the status of an observed cluster. Pure."""
    metadata, spec = look.cluster["metadata"], spec_of(look.cluster)
    wanted = _wanted(spec)
    ready = sum(1 for pod in look.pods if is_ready(pod) and not is_leaving(pod))
    state = _state(spec, wanted, ready, leaving=is_leaving(look.cluster))
    owners = [f"{owner['kind']} {owner['name']}" for owner in metadata.get("ownerReferences") or []]
    return ClusterStatus(
        name=metadata["name"],
        state=state,
        detail=_detail(look.cluster, wanted, ready),
        failure=None if state == "RUNNING" or is_leaving(look.cluster) else cause(look),
        created=seconds(metadata.get("creationTimestamp")),
        address=_address(look.cluster),
        ready=ready,
        wanted=wanted,
        owner=owners[0] if owners else "",
    )


def _detail(cluster: Object, wanted: int, ready: int) -> str:
    if is_leaving(cluster):
        return "it is being deleted"
    return "it is suspended" if spec_of(cluster).get("suspend") else f"{ready} of {wanted} pods are ready"


def _state(spec: Object, wanted: int, ready: int, *, leaving: bool) -> ClusterState:
    if leaving or spec.get("suspend"):
        return "STOPPED"
    # Not the "ready" of the cluster's own status: it stays once it was true, whatever pods are lost.
    return "RUNNING" if ready >= wanted else "WAITING"


def _wanted(spec: Object) -> int:
    """Return how many pods there should be: the head, and what KubeRay makes of each worker group's counts."""
    if spec.get("suspend"):
        return 0
    return 1 + sum(map(manifests.pods, spec.get("workerGroupSpecs") or []))


def _address(cluster: Object) -> str:
    service, namespace = head_service(cluster), cluster["metadata"].get("namespace", "")
    return f"http://{service}.{namespace}.svc:{manifests.PORTS['dashboard']}" if service else ""
