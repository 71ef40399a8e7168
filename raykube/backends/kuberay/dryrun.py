"""What ``--dry-run=server`` asks: whether the API server would accept a plan's objects, and their pods."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from raykube.backends.kuberay import clusters, objects
from raykube.backends.kuberay.runs import jobs
from raykube.backends.kuberay.serve import services
from raykube.backends.kubernetes.fields import spec_of
from raykube.backends.kubernetes.kubeapi import Kube, Object
from raykube.backends.kubernetes.refusals import Lacking
from raykube.errors import Conflict, Forbidden, ManifestError, Problem
from raykube.plans import Plan

_CLUSTER_IN = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
#: Volumes that KubeRay adds to pods: a template's containers may mount them although the template lacks them.
_ADDED = ("shared-mem", "ray-logs")


def check(kube: Kube, plan: Plan) -> None:
    """Have the API server check a plan's objects, with strict validation, and each kind of pod, without creating any.

    Pods are not checked for a user who may not create pods.

    Raises:
        Conflict: the name of one belongs to something else.
        ManifestError: there are fields that the server does not know or accept, or pods that it would refuse; each is
            named with its path.
    """
    *parts, work = plan.body
    objects.check_free(kube, work)
    for part in parts:
        with contextlib.suppress(Conflict):  # an existing one with the same content is shared
            kube.create(part, dry_run=True)
    _check_work(kube, work)
    if problems := [problem for path, pod in pods(work) for problem in _refusals(kube, path, pod)]:
        step = "correct the manifest, or see what its namespace allows"
        raise ManifestError.of(f"the API server would refuse pods of {plan.name}", problems, next_step=step)


def _check_work(kube: Kube, work: Object) -> None:
    if work["kind"] == "RayCluster":
        clusters.create(kube, work, dry_run=True)
        return
    try:
        kube.create(work, dry_run=True)
    except Conflict:
        (services.check_change if work["kind"] == "RayService" else jobs.same)(kube, work)


def pods(work: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield, for each group of a Ray object, the path of its template and a pod made from it. Pure."""
    place = _CLUSTER_IN.get(work["kind"])
    spec = spec_of(work).get(place) or {} if place else spec_of(work)
    prefix = f"spec.{place}." if place else "spec."
    named = [("headGroupSpec", spec.get("headGroupSpec"))]
    named += [(f"workerGroupSpecs[{i}]", group) for i, group in enumerate(spec.get("workerGroupSpecs") or [])]
    for where, group in named:
        if group:
            yield f"{prefix}{where}.template", _pod(work, group["template"])


def _pod(work: Mapping[str, Any], template: Mapping[str, Any]) -> dict[str, Any]:
    pod = spec_of(template)
    volumes = pod.get("volumes") or []
    missing = [name for name in _ADDED if name not in {volume.get("name") for volume in volumes}]
    said = {key: value for key, value in (template.get("metadata") or {}).items() if key in ("labels", "annotations")}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**said, "generateName": f"{work['metadata']['name']}-"},
        "spec": {**pod, "volumes": [*volumes, *({"name": name, "emptyDir": {}} for name in missing)]},
    }


def _refusals(kube: Kube, path: str, pod: Object) -> Iterator[Problem]:
    """Yield why the server would refuse a pod: its fields, or a quota, policy or webhook of its namespace."""
    try:
        kube.create(pod, dry_run=True)
    except Lacking:
        return
    except ManifestError as error:
        for problem in error.problems:
            yield Problem(f"{path}.{problem.path}".rstrip("."), problem.what, problem.next_step)
    except Forbidden as error:
        yield Problem(path, error.why)
