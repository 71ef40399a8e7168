"""Makes services on KubeRay, changes them in place and takes them down.

If only code or configuration changes, Serve applies the change on the existing cluster, in seconds: the new code is put
next to the old in the service's ConfigMap, which all pods mount. If the cluster itself changes, KubeRay makes a second
cluster, and switches over once that one serves.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

import yaml

from raykube import differences, manifests, marks
from raykube.backends import serveapps
from raykube.backends.kuberay import largecode, objects
from raykube.backends.kuberay.causes import diagnosis
from raykube.backends.kuberay.serve import servecode, servelook, servestates
from raykube.backends.kubernetes.fields import is_current, is_leaving, labels_of, name_of, spec_of
from raykube.backends.kubernetes.kubeapi import Kube, Object
from raykube.errors import BackendError, Conflict, Forbidden, NotFound, Unreachable
from raykube.plans import Plan
from raykube.yamltext import as_yaml

_SCALES = "enableInTreeAutoscaling"
_COUNTS = ("replicas", "minReplicas", "maxReplicas", "scaleStrategy")
#: Fields of a pod that KubeRay leaves out of the hash by which it tells one cluster from another.
_NOT_HASHED = ("tolerations", "schedulingGates")
#: Fields that have quantities in them.
_AMOUNTS = ("limits", "requests")
_SERVE_S = 0.3
#: Seconds that Serve takes, at most, to begin with a change.
_BEGUN_S = 15.0
_TRIES = 5

_log = logging.getLogger("raykube")


def deploy(kube: Kube, plan: Plan) -> None:
    """Make the service of a plan, or change the existing one of that name in place.

    The same plan again changes nothing, unless the service has failed: then Serve tries again. What somebody changed in
    the RayService by other means is put right.

    Raises:
        Conflict: the name belongs to a run, a cluster or a RayService that raykube did not make; or others deploy and
            delete the service at the same time.
        ManifestError, Forbidden: the server refused the service, or something that it needs; nothing new is left.
    """
    *parts, wanted = plan.body
    code = parts[0] if parts else None
    objects.check_free(kube, wanted)
    largecode.before(kube, plan)
    for _ in range(_TRIES):
        if owner := objects.created(kube, wanted):
            with objects.needed_by(kube, owner, is_new=True):
                servecode.carry(kube, code, owner)
            return
        known = kube.find("RayService", plan.name)
        if known and not is_leaving(known):
            _check_ours(kube, known)
            if _must_be_made_anew(known):
                objects.delete(kube, known)
            else:
                with contextlib.suppress(NotFound):  # somebody deletes it at this moment: make it anew
                    _change(kube, known, code, wanted)
                    return
        objects.wait_gone(kube, "RayService", plan.name)
    raise Conflict(f"{plan.name} is deployed and deleted by others at once", next_step="deploy it again")


def check_change(kube: Kube, wanted: Object) -> bool:
    """Have the server check a change of an existing service, without changing it; return whether it makes new pods.

    Raises:
        Conflict: raykube did not make the service.
        ManifestError: the server refuses the change.
    """
    known = kube.find("RayService", name_of(wanted))
    if known is None or is_leaving(known):
        return True
    _check_ours(kube, known)
    changed = kube.patch("RayService", name_of(wanted), objects.difference(known, wanted), dry_run=True)
    return _uncounted(known) != _uncounted(changed)


def take_down(kube: Kube, name: str) -> None:
    """Delete a service, what it owns and its code in the storage; wait until its name is free.

    Raises:
        NotFound: there is none.
        Conflict: raykube did not make the service.
        BackendError: the service is deleted, but its code is still in the storage.
    """
    service = objects.found(kube, "RayService", name)
    if not objects.is_ours(service):
        raise Conflict(
            f"service {name} is left alone: raykube did not make its RayService",
            next_step=f"if you mean to delete it: {_delete_command(kube, service)}",
        )
    with largecode.code_removed_with(kube, service):
        objects.delete(kube, service)
        objects.wait_gone(kube, "RayService", name)


def _must_be_made_anew(service: Object) -> bool:
    """Whether a service must be made anew: KubeRay has given up on it, or refused it before any cluster served.

    Corrected in place, it would still be called invalid until it answers requests.
    """
    refused = diagnosis.is_invalid(service) and not servestates.clusters_of(service)[0]
    return servestates.has_timed_out(service) or refused


def _change(kube: Kube, known: Object, code: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> None:
    """Change an existing service into the wanted one."""
    is_other = differs(known, wanted)
    if changes := ", ".join(_changed_counts(known, wanted)):
        _log.info(serveapps.CHANGES, name_of(known), changes)
    servecode.carry(kube, code, known, wanted if is_other else None)
    undone = _undone(kube, known)
    changed = _patch(kube, code, known, retried(wanted, known, undone)) if is_other else known
    # Even if nothing is new: the last deployment may have been interrupted before this step.
    _resize(kube, known, changed)
    if undone and not is_other:
        _try_again(kube, known, undone)
    if code and (undone or is_other):
        _wait_until_begun(kube, name_of(known), servecode.file_of(code))


def _changed_counts(known: Object, wanted: Mapping[str, Any]) -> Iterator[str]:
    """Yield which numbers of replicas and of worker pods an update changes: it sets all anew, also those not given."""
    yield from serveapps.resized(*(servestates.apps_of(each).values() for each in (known, wanted)))
    then, now = (_worker_pods(each["spec"]["rayClusterConfig"]) for each in (known, wanted))
    for name in then:
        if then[name] != now.get(name, then[name]):
            yield f"worker pods{f' of {name}' if len(then) > 1 else ''} {then[name]} -> {now[name]}"


def _worker_pods(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return how many pods each worker group is to have; with the autoscaler, its bounds."""
    groups = spec.get("workerGroupSpecs") or []
    if not spec.get(_SCALES):
        return {group["groupName"]: str(manifests.pods(group)) for group in groups}
    return {group["groupName"]: f"{group.get('minReplicas') or 0}..{manifests.max_replicas(group)}" for group in groups}


def _patch(kube: Kube, code: Mapping[str, Any] | None, known: Object, wanted: Mapping[str, Any]) -> Object:
    """Patch a service into the wanted one, and return it as it is then: somebody else may have changed it since."""
    kube.patch("RayService", name_of(known), objects.difference(known, wanted))
    found = objects.found(kube, "RayService", name_of(known))
    # A deployment of something else at the same time has dropped this code, if the service did not name it yet.
    servecode.carry(kube, code, found)
    return found


def differs(known: Object, wanted: Mapping[str, Any]) -> bool:
    """Return whether a service is of another plan than the wanted one, or somebody has changed its spec since. Pure.

    The numbers of its attempts do not count, and neither do fields that the server or somebody else has added.
    """
    if labels_of(known).get(marks.PLAN) != wanted["metadata"]["labels"][marks.PLAN]:
        return True
    ours, theirs = _with_numbers(retried(wanted, known, [])["spec"]), _with_numbers(spec_of(known))
    return any(differences.of_objects(ours, theirs, "spec", omits=True))


def _with_numbers(value: Any, field: str = "") -> Any:
    """Return a spec with its quantities as numbers, because KubeRay writes them in its own form."""
    if isinstance(value, Mapping):
        return {key: _with_numbers(each, "quantity" if field in _AMOUNTS else key) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_numbers(each) for each in value]
    with contextlib.suppress(ValueError):
        return manifests.quantity(value) if field in ("quantity", "sizeLimit") else value
    return value


def _check_ours(kube: Kube, known: Object) -> None:
    if not objects.is_ours(known):
        name = name_of(known)
        raise Conflict(
            f"the name {name!r} is taken by a RayService that raykube did not make",
            next_step=f"choose another name, or: {_delete_command(kube, known)}",
        )


def _delete_command(kube: Kube, service: Object) -> str:
    return f"kubectl -n {kube.namespace} delete rayservice {name_of(service)}"


def _wait_until_begun(kube: Kube, name: str, file: str) -> None:
    """Wait until Serve has begun with the new code.

    If the code reaches a pod only after Serve's three attempts of a second each, Serve gives up, and Ray remembers the
    failure for ten minutes: it tries again only with a different runtime environment.
    """
    begun, deadline = time.monotonic() + _BEGUN_S, time.monotonic() + servecode.SYNCED_S
    while time.monotonic() < deadline:
        try:
            progress = _progress(kube, name, file)
        except NotFound:  # somebody has deleted the service, which those who wait for it report
            return
        except Unreachable:  # the server may be back in time
            progress = "waits"
        if progress == "again":
            begun = time.monotonic() + _BEGUN_S
        elif progress == "begun" or time.monotonic() > begun:
            return
        time.sleep(_SERVE_S)


def _progress(kube: Kube, name: str, file: str) -> Literal["again", "begun", "waits"]:
    """Return how far Serve is with new code; have Serve begin again if the code had not reached a pod."""
    service = objects.found(kube, "RayService", name)
    # A new cluster, or one without a head, gets the code with its pods.
    head = None if all(servestates.clusters_of(service)) else _head(kube, service)
    apps = servestates.applications(service, head.applications() if head else None)
    if lacking := [each for each, app in apps.items() if servestates.lacks(app, file)]:
        servecode.hasten(kube, service, file)
        _try_again(kube, service, lacking)
        return "again"
    return "begun" if head is None or all(map(servestates.has_begun, apps.values())) else "waits"


def _undone(kube: Kube, service: Object) -> list[str]:
    """Return the names of the applications that have failed."""
    head = _head(kube, service)
    apps = servestates.applications(service, head.applications() if head else None)
    return [name for name, app in apps.items() if serveapps.is_undone(app)]


def _head(kube: Kube, service: Object) -> servelook.ServeHead | None:
    """Return the head that serves or will serve; None when there is none that answers and may be asked."""
    with contextlib.suppress(BackendError):
        return servelook.serve_head(kube, service)
    return None


def _try_again(kube: Kube, service: Object, undone: Collection[str]) -> None:
    """Have Serve build these applications again, although their configuration is unchanged."""
    name, plan = name_of(service), service["metadata"]["labels"].get(marks.PLAN)
    for _ in range(_TRIES):
        if service["metadata"]["labels"].get(marks.PLAN) != plan:
            return  # somebody has deployed something else meanwhile
        version = {"resourceVersion": service["metadata"]["resourceVersion"]}
        with contextlib.suppress(Conflict):
            config = retried(service, service, undone)["spec"]["serveConfigV2"]
            kube.patch("RayService", name, {"metadata": version, "spec": {"serveConfigV2": config}})
            return
        service = objects.found(kube, "RayService", name)


def retried(wanted: Mapping[str, Any], known: Object, undone: Collection[str]) -> dict[str, Any]:
    """Return the wanted service with its applications' numbers of attempts, one higher for those in `undone`."""
    before = list(servestates.apps_of(known).values())
    config = yaml.safe_load(wanted["spec"]["serveConfigV2"])
    config["applications"] = serveapps.retried(config["applications"], before, undone)
    return {**wanted, "spec": {**wanted["spec"], "serveConfigV2": as_yaml(config, sort_keys=True)}}


def _resize(kube: Kube, before: Object, after: Object) -> None:
    """Apply the worker counts to the existing cluster: KubeRay does not if nothing else has changed.

    If anything else has changed, KubeRay makes another cluster, and the one that serves until then keeps its workers.
    The same may follow from an earlier version that KubeRay has not seen yet.
    """
    cluster = servestates.cluster_of(before)
    if not (cluster and is_current(before) and _uncounted(before) == _uncounted(after)):
        return
    spec = after["spec"]["rayClusterConfig"]
    try:
        _resize_one(kube, cluster, spec)
    except Forbidden:
        if spec != before["spec"]["rayClusterConfig"]:
            raise


def _resize_one(kube: Kube, name: str, spec: Mapping[str, Any]) -> None:
    for _ in range(_TRIES):
        cluster = kube.find("RayCluster", name)
        groups = resized(cluster["spec"], spec) if cluster else []
        if cluster is None or groups == (cluster["spec"].get("workerGroupSpecs") or []):
            return
        # The autoscaler changes the same list, and what it wrote must not be lost.
        version = {"resourceVersion": cluster["metadata"]["resourceVersion"]}
        with contextlib.suppress(Conflict):
            kube.patch("RayCluster", name, {"metadata": version, "spec": {"workerGroupSpecs": groups}})
            return


def _uncounted(service: Object) -> dict[str, Any]:
    """Return a service's cluster spec without what KubeRay makes no new cluster for: counts, and where pods go."""
    spec = service["spec"]["rayClusterConfig"]
    groups = [_lasting(group) for group in spec.get("workerGroupSpecs") or []]
    return {**spec, "headGroupSpec": _lasting(spec.get("headGroupSpec") or {}), "workerGroupSpecs": groups}


def _lasting(group: Mapping[str, Any]) -> dict[str, Any]:
    # KubeRay writes empty metadata where there was none.
    template = {key: value for key, value in (group.get("template") or {}).items() if value}
    pod = {key: value for key, value in spec_of(template).items() if key not in _NOT_HASHED}
    return {key: group[key] for key in group if key not in _COUNTS} | {"template": {**template, "spec": pod}}


def resized(spec: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a cluster's worker groups with the wanted counts of the groups of the same names.

    If Ray's autoscaler is on, the number of workers within the bounds is left to it.
    """
    bounds = {group["groupName"]: group for group in wanted.get("workerGroupSpecs") or []}
    groups: list[dict[str, Any]] = copy.deepcopy(spec.get("workerGroupSpecs") or [])
    for group in groups:
        after = bounds.get(group["groupName"], group)
        low, high = int(after.get("minReplicas") or 0), manifests.max_replicas(after)
        count = int((group if wanted.get(_SCALES) else after).get("replicas") or 0)
        group.update(minReplicas=low, maxReplicas=high, replicas=min(max(count, low), high))
    return groups
