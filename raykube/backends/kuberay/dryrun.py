"""What ``--dry-run=server`` asks: whether the API server would accept a plan's objects, and their pods."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from raykube import marks
from raykube.backends.kuberay import clusters, objects, quotas
from raykube.backends.kuberay.runs import jobs
from raykube.backends.kuberay.serve import services
from raykube.backends.kubernetes.fields import name_of, spec_of
from raykube.backends.kubernetes.kubeapi import Kube, Object
from raykube.backends.kubernetes.refusals import Denied, Lacking
from raykube.errors import Conflict, Forbidden, ManifestError, Problem
from raykube.plans import Plan

_CLUSTER_IN = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
#: Volumes that KubeRay adds to pods: a template's containers may mount them although the template lacks them.
_ADDED = {"shared-mem", "ray-logs"}
_OF_KUBERAY = {
    "ray.io/is-ray-node": "yes",
    "app.kubernetes.io/name": "kuberay",
    "app.kubernetes.io/created-by": "kuberay-operator",
}
_QUOTA = ("exceeded quota", "has no room")
_log = logging.getLogger("raykube")


def check(kube: Kube, plan: Plan) -> None:
    """Have the API server check a plan's objects, with strict validation, and a pod of each group, creating none.

    Pods are checked only of what would make new ones.

    Raises:
        Conflict: the name of the run, service or cluster belongs to something else.
        ManifestError: there are fields that the server does not know or accept, or pods that it would refuse; each is
            named with its path.
    """
    *parts, work = plan.body
    objects.check_free(kube, work)
    for part in parts:
        with contextlib.suppress(Conflict):  # whose it is shows when the run or service, its owner, exists
            kube.create(part, dry_run=True)
    refused = refused_pods(kube, work) or _short(kube, work) if _makes_pods(kube, work) else []
    if refused:
        step = "correct the manifest, or see what its namespace allows"
        if any(words in problem.what for problem in refused for words in _QUOTA):
            step += "; a quota may have room later"
        raise ManifestError.of(f"the API server would refuse pods of {plan.name}", refused, next_step=step)


def _makes_pods(kube: Kube, work: Object) -> bool:
    """Have the server check a Ray object; return whether it would make pods: what exists already may have them."""
    if work["kind"] == "RayCluster":
        known = kube.find("RayCluster", name_of(work))
        clusters.create(kube, work, dry_run=True)
        return known is None
    try:
        kube.create(work, dry_run=True)
    except Conflict:
        if work["kind"] == "RayService":
            return services.check_change(kube, work)
        # A run that goes on or went well is joined. Of one that failed, the cluster that goes may fill the quota still.
        return jobs.same(kube, work) is None
    return True


def _cluster(work: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return the path of the cluster's spec in a Ray object, and that spec; it is empty for a RayJob on another's."""
    place = _CLUSTER_IN.get(work["kind"])
    return (f"spec.{place}", spec_of(work).get(place) or {}) if place else ("spec", spec_of(work))


def _pods(work: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield, for each group of a Ray object, the path of its template and a pod made from it."""
    prefix, spec = _cluster(work)
    named = [("headGroupSpec", spec.get("headGroupSpec"))]
    named += [(f"workerGroupSpecs[{i}]", group) for i, group in enumerate(spec.get("workerGroupSpecs") or [])]
    for where, group in named:
        if group:
            yield f"{prefix}.{where}.template", _pod(work, group)


def _pod(work: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pod as KubeRay would make it, as far as rules of a cluster may look at it."""
    template, name = group["template"], work["metadata"]["name"]
    said = template.get("metadata") or {}
    kind = "worker" if "groupName" in group else "head"
    labels = {**_OF_KUBERAY, marks.CLUSTER: name, marks.NODE_TYPE: kind}
    metadata = {"labels": {**labels, **(said.get("labels") or {})}, "annotations": said.get("annotations") or {}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**metadata, "generateName": f"{name}-"},
        "spec": _with_volumes(spec_of(template)),
    }
    return objects.owned(pod, {"kind": "RayCluster", "metadata": {"name": name, "uid": str(uuid.uuid4())}})


def _with_volumes(pod: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pod's spec with the volumes that its containers mount and KubeRay adds."""
    volumes = pod.get("volumes") or []
    containers = [*(pod.get("containers") or []), *(pod.get("initContainers") or [])]
    mounted = {mount.get("name") for each in containers for mount in each.get("volumeMounts") or []}
    missing = sorted((mounted & _ADDED) - {volume.get("name") for volume in volumes})
    return {**pod, "volumes": [*volumes, *({"name": name, "emptyDir": {}} for name in missing)]}


def refused_pods(kube: Kube, work: Object) -> list[Problem]:
    """Return what the server has against a pod of each group; nothing if this user may create no pods."""
    try:
        return [problem for path, pod in _pods(work) for problem in _refusals(kube, path, pod)]
    except Lacking:
        _log.info("pods were not checked: this user may not create any")
        return []


def _short(kube: Kube, work: Object) -> list[Problem]:
    """Return which quotas have no room for all pods together; the server has seen each of them by itself."""
    path, spec = _cluster(work)
    try:
        found = kube.listed("ResourceQuota") if spec else []
    except Forbidden:
        _log.info("quotas were not checked: this user may not list any")
        return []
    compared = quotas.compared(found, quotas.asked(spec)) if found else ()
    return [
        Problem(path, f"quota {name} has no room for all pods together: {'; '.join(short)}")
        for name, short in compared
        if short
    ]


def _refusals(kube: Kube, path: str, pod: Object) -> Iterator[Problem]:
    """Yield what the server has against a pod: its fields, or a quota or a policy of its namespace.

    Raises:
        Lacking: this user may not create pods.
    """
    try:
        kube.create(pod, dry_run=True)
    except Denied as error:  # it may let pass what KubeRay makes, whose user it knows
        _log.info("%s: %s, if a user made such a pod; KubeRay's may be treated otherwise", path, error)
    except ManifestError as error:
        for problem in error.problems:
            yield Problem(f"{path}.{problem.path}".rstrip("."), problem.what, problem.next_step)
    except Lacking:
        raise
    except Forbidden as error:
        yield Problem(path, error.why)
