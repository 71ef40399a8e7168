"""Creates, observes and deletes long-lived RayClusters."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import replace
from typing import Any

from raykube import marks
from raykube.backends.kuberay import objects, rayhead
from raykube.backends.kuberay.causes.diagnosis import cause
from raykube.backends.kuberay.causes.observed import Observed
from raykube.backends.kuberay.clusterstates import ClusterStatus, seen, status_of
from raykube.backends.kuberay.polling import looks, unreachable
from raykube.backends.kuberay.runs import jobs, rayjobs
from raykube.backends.kuberay.runs.look import Look
from raykube.backends.kubernetes import fields
from raykube.backends.kubernetes.kubeapi import Kube, Object
from raykube.backends.kubernetes.refusals import UnknownKind
from raykube.backends.kubernetes.watching import Watching
from raykube.differences import ABSENT, of_objects
from raykube.errors import BackendError, Conflict, Failure, Forbidden, NotFound, Unreachable, WaitTimeout

_KIND = "RayCluster"
_TICK_S = 0.5
#: Seconds for KubeRay to note the end of a stopped run: Ray gives the run 3 s to end, and KubeRay looks every 3 s.
_NOTED_S = 20.0


def create(kube: Kube, body: Mapping[str, Any], *, dry_run: bool = False) -> None:
    """Create a cluster from the body of its plan; an existing one of that name and plan is the same cluster.

    Raises:
        Conflict: the name belongs to a run, to a service, to a cluster that is being deleted, or to a different cluster
            (the error lists the differences).
        ManifestError: the server refused a field; nothing was created.
    """
    objects.check_free(kube, body)
    try:
        kube.create(body, dry_run=dry_run)
    except Conflict:
        _check_same(kube, body)


def _check_same(kube: Kube, body: Mapping[str, Any]) -> None:
    name = body["metadata"]["name"]
    known = kube.get(_KIND, name)
    if fields.is_leaving(known):
        raise Conflict(
            f"cluster {name} is being deleted", next_step="create it again when it is gone, or choose a name"
        )
    label = marks.PLAN
    if fields.labels_of(known).get(label) == body["metadata"]["labels"][label]:
        return
    if different := list(differences(known, _completed(kube, body)))[:20]:
        raise Conflict(
            f"the name {name!r} is taken by another cluster",
            why="\n".join(different),
            next_step=f"choose another name, or: raykube cluster delete {name}",
        )


def _completed(kube: Kube, body: Mapping[str, Any]) -> Object:
    """Return a body with the server's defaults filled in, by a dry run under a generated name."""
    metadata = {key: value for key, value in body["metadata"].items() if key != "name"}
    return kube.create({**body, "metadata": {**metadata, "generateName": "raykube-"}}, dry_run=True)


def differences(known: Object, wanted: Object) -> Iterator[str]:
    """Yield the differences of two RayClusters' manifests, as ``PATH: A there, B here``. Pure."""
    for key in ("labels", "annotations"):
        theirs, ours = (thing["metadata"].get(key) or {} for thing in (known, wanted))
        for name, value in ours.items():
            if name != marks.PLAN:
                yield from of_objects(value, theirs.get(name, ABSENT), f"metadata.{key}[{name}]")
    yield from of_objects(_comparable_spec(wanted), _comparable_spec(known), "spec", whole=True)


def _comparable_spec(thing: Object) -> Any:
    """Return a spec without the fields that the autoscaler writes."""
    spec = copy.deepcopy(dict(fields.spec_of(thing)))
    if spec.get("enableInTreeAutoscaling"):
        for group in spec.get("workerGroupSpecs") or []:
            group.pop("replicas", None)
            group.pop("scaleStrategy", None)
    return spec


def listed(kube: Kube) -> list[ClusterStatus]:
    """Return all clusters that stand alone, oldest first; leave out those of jobs and services."""
    clusters, pods = kube.listed(_KIND), kube.listed("Pod", labelSelector=marks.CLUSTER)
    events = objects.visible(kube, "Event", **objects.WARNINGS)
    found = [status_of(seen(cluster, pods, events, kube.now())) for cluster in clusters]
    alone = _with_runs(kube, [each for each in found if not each.owner])
    return sorted(alone, key=lambda each: (each.created, each.name))


def status(kube: Kube, name: str) -> ClusterStatus:
    """Return the current state. Raises NotFound."""
    return _with_runs(kube, [status_of(observe(kube, name))])[0]


def _with_runs(kube: Kube, clusters: list[ClusterStatus]) -> list[ClusterStatus]:
    with contextlib.suppress(Forbidden, UnknownKind):  # without RayJobs the runs stay unknown
        unended = [(rayjobs.selected(job), fields.name_of(job)) for job in _unended(kube)]
        return [replace(each, runs=tuple(run for on, run in unended if on == each.name)) for each in clusters]
    return clusters


def observe(kube: Kube, name: str) -> Observed:
    """Return what Kubernetes says about a cluster at this moment. Raises NotFound."""
    cluster = found(kube, name)
    pods = kube.listed("Pod", labelSelector=f"{marks.CLUSTER}={name}")
    return seen(cluster, pods, objects.visible(kube, "Event", **objects.WARNINGS), kube.now())


def why(kube: Kube, name: str) -> Failure | None:
    """Return the one cause of what is wrong with a cluster; None when nothing is."""
    return cause(observe(kube, name))


def found(kube: Kube, name: str) -> Object:
    """Return the RayCluster of that name. Raises NotFound."""
    return objects.found(kube, _KIND, name, otherwise=", or name another -n NAMESPACE or --context")


def changes(kube: Kube, name: str) -> Iterator[ClusterStatus]:
    """Yield the status now, after each change, and every half second, also while the API server is away.

    Raises:
        NotFound: there is none, or it was deleted.
        BackendError: this user may not see it, or the API server has been away for ten minutes.
    """
    with contextlib.closing(Watching(kube)) as watching:
        watching.watch(_KIND, fieldSelector=f"metadata.name={name}")
        watching.watch("Pod", labelSelector=f"{marks.CLUSTER}={name}")
        watching.watch("Event", **objects.WARNINGS)
        for clusters, away in looks(watching, _KIND):
            if clusters == []:
                raise NotFound(f"cluster {name} was deleted", next_step="see: raykube cluster list")
            pods, error = watching.of("Pod"), away or watching.error("Pod")
            if clusters and pods is not None and not away:
                yield status_of(seen(clusters[0], pods, watching.of("Event") or [], kube.now()))
            elif isinstance(error, Unreachable):
                yield ClusterStatus(name, "WAITING", error.what, unreachable(error))
            elif error:
                raise error


def wait_ready(
    kube: Kube, name: str, *, timeout_s: float, on_change: Callable[[ClusterStatus], None] | None = None
) -> ClusterStatus:
    """Wait until all pods of a cluster are ready.

    Raises:
        WaitTimeout: they are not ready within `timeout_s` seconds; the cluster stays.
        NotFound: it was deleted meanwhile.
    """
    deadline, last = time.monotonic() + timeout_s, None
    for found in changes(kube, name):
        if on_change and found != last:
            on_change(found)
        last = found
        if found.state == "RUNNING":
            return found
        if time.monotonic() > deadline:
            break
    raise _late(name, timeout_s, last)


def _late(name: str, timeout_s: float, last: ClusterStatus | None) -> WaitTimeout:
    failure = last.failure if last else None
    return WaitTimeout(
        f"cluster {name} is not ready after {timeout_s:g} s",
        why=f"{failure.reason}: {failure.message}" if failure else (last.detail if last else ""),
        next_step=(failure.next_step if failure else "") or f"see: raykube cluster why {name}",
    )


def delete(kube: Kube, name: str, *, tell: Callable[[str], None] = lambda _: None) -> None:
    """End the runs on a cluster and delete it; wait until it is gone and all its pods are terminating.

    `tell` gets a line on the runs that were ended, and one on each run that could not be ended: such a run does not
    keep the cluster from being deleted.

    Raises:
        NotFound: there is none.
        Conflict: it belongs to a job or service.
    """
    cluster = found(kube, name)
    if owner := status_of(seen(cluster, [], [], kube.now())).owner:
        kind, _, owner_name = owner.partition(" ")
        tool = {"RayJob": "raykube job", "RayService": "raykube service"}.get(kind, f"kubectl -n {kube.namespace}")
        what = "" if tool.startswith("raykube") else f" {kind.lower()}"
        raise Conflict(f"cluster {name} belongs to {owner}", next_step=f"{tool} delete{what} {owner_name}")
    try:
        _end_runs(kube, name, tell)
    except BackendError as error:
        tell(f"note: what runs on cluster {name} goes on once one of that name is made: {error}")
    objects.delete(kube, cluster)
    _wait_gone(kube, cluster)


def _end_runs(kube: Kube, name: str, tell: Callable[[str], None]) -> None:
    """End the runs on a cluster, and have KubeRay note it: else it restarts them on the next cluster of that name."""
    stopped = [run for job in _unended_on(kube, name) if _stop_unless_ended(kube, run := fields.name_of(job), tell)]
    left = _noted(kube, name, stopped)
    if ended := [run for run in stopped if run not in left]:
        tell(f"ended with it: {', '.join(ended)}")
    for run in left:
        tell(
            f"note: KubeRay has not seen the end of {run} within {_NOTED_S:g} s, and starts it again once a cluster "
            f"{name} is made; to prevent that, and remove its checkpoints too: raykube job delete {run}"
        )


def _stop_unless_ended(kube: Kube, run: str, tell: Callable[[str], None]) -> bool:
    """Ask a run to stop unless it has ended; return whether it was asked."""
    try:
        look = Look(kube, run)
        if look.status().is_terminal:
            return False
        jobs.stop(look)
    except NotFound:  # somebody else has deleted the run
        return False
    except BackendError as error:
        tell(f"note: {run} could not be ended: {error}")
        return False
    return True


def _noted(kube: Kube, name: str, stopped: Container[str]) -> list[str]:
    """Wait until KubeRay has noted that runs have ended, up to ``_NOTED_S`` seconds; return those it has not noted."""
    deadline = time.monotonic() + _NOTED_S
    while left := [run for run in _running(kube, name) if run in stopped or _has_ended(kube, run)]:
        if time.monotonic() > deadline:
            break
        time.sleep(_TICK_S)
    return left


def _running(kube: Kube, name: str) -> list[str]:
    """Return the names of the runs on a cluster that KubeRay takes to be running."""
    return [fields.name_of(job) for job in _unended_on(kube, name) if rayjobs.deployment(job) == "Running"]


def _unended_on(kube: Kube, name: str) -> list[Object]:
    return [job for job in _unended(kube) if rayjobs.selected(job) == name]


def _unended(kube: Kube) -> list[Object]:
    """Return the RayJobs whose end KubeRay has not seen."""
    return [job for job in kube.listed("RayJob") if not rayjobs.has_ended(job)]


def _has_ended(kube: Kube, run: str) -> bool:
    with contextlib.suppress(BackendError):  # the run is gone, or nobody answers
        return Look(kube, run).status().is_terminal
    return False


def _wait_gone(kube: Kube, cluster: Object) -> None:
    metadata = cluster["metadata"]

    def left() -> BackendError | None:
        if not (stays := _left(kube, metadata["name"], metadata["uid"])):
            return None
        return BackendError(
            f"cluster {metadata['name']} is not gone {objects.GONE_S:g} s after it was deleted",
            why=f"what stays: {', '.join(stays)}",
            next_step=objects.OPERATOR,
        )

    objects.until_gone(left)


def _left(kube: Kube, name: str, uid: str) -> list[str]:
    """Return the cluster if it still exists, else those of its pods that are not terminating."""
    known = kube.find(_KIND, name)
    if known and known["metadata"]["uid"] == uid:
        return [f"RayCluster {name} with finalizers {known['metadata'].get('finalizers') or []}"]
    pods = kube.listed("Pod", labelSelector=f"{marks.CLUSTER}={name}")
    owned = (pod for pod in pods if uid in {each["uid"] for each in pod["metadata"].get("ownerReferences") or []})
    return [f"Pod {pod['metadata']['name']}" for pod in owned if not fields.is_leaving(pod)]


def token(kube: Kube, name: str) -> str:
    """Return the token that a cluster's Ray requires; "" when it requires none.

    Raises:
        NotFound: there is no such cluster, or it has no token yet.
        Forbidden: this user may not read the Secret that holds it.
    """
    cluster = found(kube, name)
    try:
        return rayhead.token(kube, name, fields.spec_of(cluster))
    except NotFound as error:
        raise NotFound(
            f"cluster {name} has no token yet",
            why=error.why,
            next_step=f"the KubeRay operator makes it as soon as it sees the cluster; see: raykube cluster why {name}",
        ) from error
