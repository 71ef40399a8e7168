"""Services on KubeRay: made, changed in place and taken down.

A change of code or configuration alone is applied by Serve on the cluster that there is, in seconds: the new code is
put next to the old in the service's ConfigMap, which all pods have mounted. A change of the cluster itself has KubeRay
make a second one, and switch over once that serves.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

import yaml

from raykube.backends import serveapps
from raykube.backends.kuberay import diagnosis, largecode, objects, servelook, servestates
from raykube.backends.kubernetes.fields import is_current, is_leaving, name_of, spec_of
from raykube.backends.kubernetes.kubeapi import Kube, Object
from raykube.bodies import CLUSTER_LABEL, CONFIG_MAP_LIMIT
from raykube.errors import BackendError, Conflict, Forbidden, ManifestError, NotFound, Unreachable
from raykube.plans import Plan
from raykube.sameness import PLAN_LABEL
from raykube.yamltext import as_yaml

_CODE_ANNOTATION = "raykube.io/code"
_SCALES = "enableInTreeAutoscaling"
_COUNTS = ("replicas", "minReplicas", "maxReplicas", "scaleStrategy")
#: Of a pod: KubeRay leaves them out of the hash by which it tells one cluster from another.
_NOT_HASHED = ("tolerations", "schedulingGates")
_SERVE_S = 0.3
#: A kubelet that nobody told of a change looks at its ConfigMaps so often, and its caches add to that.
_SYNCED_S = 100.0
#: So long Serve takes, at most, to begin with a change.
_BEGUN_S = 15.0
_TRIES = 5

_log = logging.getLogger("raykube")


def deploy(kube: Kube, plan: Plan) -> None:
    """Make the service what its plan says: a new one, or the one of that name, changed in place.

    The same plan again changes nothing, unless the service has failed: then it is tried again.

    Raises:
        Conflict: a run or a cluster has that name, or a RayService that raykube did not make.
        ManifestError, Forbidden: the server refused the manifest, or what it needs; nothing new is left of it.
    """
    *code, wanted = plan.body
    objects.check_free(kube, wanted)
    largecode.before(kube, plan)
    for _ in range(_TRIES):
        if owner := objects.created(kube, wanted):
            with objects.needed_by(kube, owner, is_new=True):
                _carry_all(kube, code, owner)
            return
        known = kube.find("RayService", plan.name)
        if known and not is_leaving(known):
            _check_ours(known)
            if not _never_came_up(known):
                _change(kube, known, code, wanted)
                return
            objects.delete(kube, known)
        objects.wait_gone(kube, "RayService", plan.name)
    raise Conflict(f"{plan.name} is deployed and deleted by others at once", next_step="deploy it again")


def take_down(kube: Kube, name: str) -> None:
    """Delete a service, what it owns and what a storage holds of its code; wait until its name is free.

    Raises:
        NotFound: there is none.
        BackendError: it is deleted, and its code is still in the storage.
    """
    service = objects.found(kube, "RayService", name)
    with largecode.removed_with(kube, service):
        objects.delete(kube, service)
        objects.wait_gone(kube, "RayService", name)


def _never_came_up(service: Object) -> bool:
    """Whether a service is to be made anew: KubeRay has given up on it, or has refused it before any of it served.

    What is corrected in place would still be called invalid until it answers requests.
    """
    refused = diagnosis.is_invalid(service) and not servestates.clusters_of(service)[0]
    return servestates.has_timed_out(service) or refused


def _change(kube: Kube, known: Object, code: list[dict[str, Any]], wanted: Mapping[str, Any]) -> None:
    """Make a service that there is what is wanted."""
    is_other = known["metadata"]["labels"].get(PLAN_LABEL) != wanted["metadata"]["labels"][PLAN_LABEL]
    _carry_all(kube, code, known, wanted if is_other else None)
    undone = _undone(kube, known)
    changed = _changed(kube, code, known, retried(wanted, known, undone)) if is_other else known
    # Even where nothing is new: whoever deployed it last may have been interrupted before this.
    _resize(kube, known, changed)
    if undone and not is_other:
        _try_again(kube, known, undone)
    if code and (undone or is_other):
        _arrive(kube, name_of(known), next(iter(code[0]["binaryData"])))


def _changed(kube: Kube, code: list[dict[str, Any]], known: Object, wanted: Mapping[str, Any]) -> Object:
    """Make a service say what is wanted, and return what it says then: somebody else may have been faster."""
    kube.patch("RayService", name_of(known), _difference(known, wanted))
    found = objects.found(kube, "RayService", name_of(known))
    # Who deployed something else at the same time has dropped the code that the service did not name yet.
    _carry_all(kube, code, found)
    return found


def _check_ours(known: Object) -> None:
    if not objects.is_ours(known):
        name = name_of(known)
        raise Conflict(
            f"the name {name!r} is taken by a RayService that raykube did not make",
            next_step=f"choose another name, or: kubectl delete rayservice {name}",
        )


def _difference(known: Object, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the patch that makes `known` say what `wanted` says; what only the server or others added to it stays."""
    metadata = {key: wanted["metadata"][key] for key in ("labels", "annotations") if key in wanted["metadata"]}
    return {"metadata": metadata, "spec": replacement(spec_of(known), wanted["spec"])}


def replacement(known: Any, wanted: Any) -> Any:
    """Return the merge patch that leaves of `known` just `wanted`."""
    if not isinstance(known, Mapping) or not isinstance(wanted, Mapping):
        return wanted
    gone = {key: None for key in known if key not in wanted}
    return gone | {key: replacement(known.get(key), value) for key, value in wanted.items()}


def _carry_all(
    kube: Kube, code: list[dict[str, Any]], service: Object, wanted: Mapping[str, Any] | None = None
) -> None:
    """Put the code where the service's pods have it mounted: next to what is in use, if both find room.

    If they do not, the server first says whether it takes the service that is `wanted` next: were that refused
    afterwards, the service would go on with code that is gone.
    """
    for part in code:
        _carry(kube, part, service, wanted)


def _carry(kube: Kube, part: dict[str, Any], service: Object, wanted: Mapping[str, Any] | None = None) -> None:
    file = next(iter(part["binaryData"]))
    known = objects.claim(kube, part, service)
    if file not in (there := known.get("binaryData") or {}):
        change = kept(known, part, service)
        if wanted and any(change.get(each, "") is None for each in _in_use(there, service)):
            kube.patch("RayService", name_of(service), _difference(service, wanted), dry_run=True)
        kube.patch("ConfigMap", name_of(part), {"binaryData": change})
        _hasten(kube, service, file)


def kept(known: Object, part: Mapping[str, Any], service: Object) -> dict[str, str | None]:
    """Return the change of a ConfigMap that adds code to it, and drops what is not in use or finds no room."""
    there: dict[str, str] = known.get("binaryData") or {}
    choices = (_in_use(there, service), _named(there, service))
    room = CONFIG_MAP_LIMIT - _size(part["binaryData"].values())
    # What finds no room is unpacked in the pods that run it, but a pod that starts cannot load it: neither before the
    # service names the new code, nor on the cluster that serves until a new one does.
    stays = next((files for files in choices if _size(there[file] for file in files) <= room), [])
    return {**{file: None for file in there if file not in stays}, **part["binaryData"]}


def _in_use(there: Iterable[str], service: Object) -> list[str]:
    """Return the files that pods may have to load."""
    # The cluster that serves until a new one does runs what the service said before that.
    return _named(there, service) if servestates.has_one_cluster(service) else [*there]


def _named(there: Iterable[str], service: Object) -> list[str]:
    config = spec_of(service).get("serveConfigV2") or ""
    return [file for file in there if file in config]


def _size(texts: Iterable[str]) -> int:
    return sum(map(len, texts)) * 3 // 4


def _hasten(kube: Kube, service: Object, file: str) -> None:
    """Have the kubelets bring a changed ConfigMap to the service's pods at once: they do for a pod that was changed."""
    change = {"metadata": {"annotations": {_CODE_ANNOTATION: f"{file} {time.time():.3f}"}}}
    clusters = ",".join(filter(None, servestates.clusters_of(service)))
    pods = kube.listed("Pod", labelSelector=f"{CLUSTER_LABEL} in ({clusters})") if clusters else ()
    try:
        for pod in pods:
            with contextlib.suppress(NotFound):
                kube.patch("Pod", name_of(pod), change)
    except (Forbidden, ManifestError) as error:  # a policy of the cluster may be against it, too
        _log.warning("new code takes up to %g s to reach the pods: %s", _SYNCED_S, error.why or error)


def _arrive(kube: Kube, name: str, file: str) -> None:
    """Wait until Serve has begun with the new code.

    Where the code comes to a pod later than Serve's three attempts of a second each, Serve gives up, and Ray remembers
    for ten minutes that it did: only another runtime environment is tried again.
    """
    begun, deadline = time.monotonic() + _BEGUN_S, time.monotonic() + _SYNCED_S
    while time.monotonic() < deadline:
        with contextlib.suppress(Unreachable):  # it may be back in time
            progress = _progress(kube, name, file)
            if progress == "again":
                begun = time.monotonic() + _BEGUN_S
            elif progress == "begun" or time.monotonic() > begun:
                return
        time.sleep(_SERVE_S)


def _progress(kube: Kube, name: str, file: str) -> Literal["again", "begun", "waits"]:
    """Return how far Serve is with new code; where that had not come to it, Serve was now told to begin again."""
    service = objects.found(kube, "RayService", name)
    # To a new cluster, as to one without a head, the code comes with its pods.
    head = None if all(servestates.clusters_of(service)) else _head(kube, service)
    apps = servestates.applications(service, head.applications() if head else None)
    if lacking := [each for each, app in apps.items() if servestates.lacks(app, file)]:
        _hasten(kube, service, file)
        _try_again(kube, service, lacking)
        return "again"
    return "begun" if head is None or all(map(servestates.has_begun, apps.values())) else "waits"


def _undone(kube: Kube, service: Object) -> list[str]:
    """Return the names of the applications that have failed."""
    head = _head(kube, service)
    apps = servestates.applications(service, head.applications() if head else None)
    return [name for name, app in apps.items() if serveapps.is_undone(app)]


def _head(kube: Kube, service: Object) -> servelook.ServeHead | None:
    """Return the head that serves, or will; None when there is none, or none that may be asked."""
    with contextlib.suppress(BackendError):
        return servelook.serve_head(kube, service)
    return None


def _try_again(kube: Kube, service: Object, undone: Collection[str]) -> None:
    """Have Serve build these applications again, although their configuration is what it was."""
    name, plan = name_of(service), service["metadata"]["labels"].get(PLAN_LABEL)
    for _ in range(_TRIES):
        if service["metadata"]["labels"].get(PLAN_LABEL) != plan:
            return  # somebody has deployed something else meanwhile
        version = {"resourceVersion": service["metadata"]["resourceVersion"]}
        with contextlib.suppress(Conflict):
            config = retried(service, service, undone)["spec"]["serveConfigV2"]
            kube.patch("RayService", name, {"metadata": version, "spec": {"serveConfigV2": config}})
            return
        service = objects.found(kube, "RayService", name)


def retried(wanted: Mapping[str, Any], known: Object, undone: Collection[str]) -> dict[str, Any]:
    """Return the service that is wanted with the attempts that its applications have had, one more of each undone."""
    before = list(servestates.wanted(known).values())
    config = yaml.safe_load(wanted["spec"]["serveConfigV2"])
    config["applications"] = serveapps.retried(config["applications"], before, undone)
    return {**wanted, "spec": {**wanted["spec"], "serveConfigV2": as_yaml(config, sort_keys=True)}}


def _resize(kube: Kube, before: Object, after: Object) -> None:
    """Bring the counts of workers to the cluster that there is: KubeRay does not, for counts alone.

    Where anything else is new it makes another cluster, and the one that serves until then keeps its workers. What
    KubeRay has not seen yet of the version before may have it do so, too.
    """
    cluster = servestates.cluster_of(before)
    if not (cluster and is_current(before) and _uncounted(before) == _uncounted(after)):
        return
    wanted = after["spec"]["rayClusterConfig"]
    try:
        _resize_one(kube, cluster, wanted)
    except Forbidden:
        if wanted != before["spec"]["rayClusterConfig"]:
            raise


def _resize_one(kube: Kube, name: str, wanted: Mapping[str, Any]) -> None:
    for _ in range(_TRIES):
        cluster = kube.find("RayCluster", name)
        groups = resized(cluster["spec"], wanted) if cluster else []
        if cluster is None or groups == (cluster["spec"].get("workerGroupSpecs") or []):
            return
        # The autoscaler changes the same list, and must not lose what it wrote.
        version = {"resourceVersion": cluster["metadata"]["resourceVersion"]}
        with contextlib.suppress(Conflict):
            kube.patch("RayCluster", name, {"metadata": version, "spec": {"workerGroupSpecs": groups}})
            return


def _uncounted(service: Object) -> dict[str, Any]:
    """Return what a service says of its cluster, without what KubeRay makes no other for: counts, and where pods go."""
    spec = service["spec"]["rayClusterConfig"]
    groups = [_lasting(group) for group in spec.get("workerGroupSpecs") or []]
    return {**spec, "headGroupSpec": _lasting(spec.get("headGroupSpec") or {}), "workerGroupSpecs": groups}


def _lasting(group: Mapping[str, Any]) -> dict[str, Any]:
    template = group.get("template") or {}
    pod = {key: value for key, value in spec_of(template).items() if key not in _NOT_HASHED}
    return {key: group[key] for key in group if key not in _COUNTS} | {"template": {**template, "spec": pod}}


def resized(spec: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a cluster's worker groups with the counts that are wanted of those of the same name.

    Where Ray's autoscaler is on, how many there are within the bounds is its own affair.
    """
    bounds = {group["groupName"]: group for group in wanted.get("workerGroupSpecs") or []}
    groups: list[dict[str, Any]] = copy.deepcopy(spec.get("workerGroupSpecs") or [])
    for group in groups:
        after = bounds.get(group["groupName"], group)
        low, high = int(after.get("minReplicas") or 0), after.get("maxReplicas")
        high = int(2**31 - 1 if high is None else high)
        count = int((group if wanted.get(_SCALES) else after).get("replicas") or 0)
        group.update(minReplicas=low, maxReplicas=high, replicas=min(max(count, low), high))
    return groups
