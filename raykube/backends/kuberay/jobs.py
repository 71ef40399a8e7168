"""Starts, stops and removes RayJobs."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from raykube import plans, wire
from raykube.backends.kuberay import largecode, objects, runstates
from raykube.backends.kuberay.look import Look
from raykube.backends.kubernetes.fields import is_leaving
from raykube.backends.kubernetes.kubeapi import Kube, Object
from raykube.errors import Conflict
from raykube.plans import Plan

_TRIES = 5


def start(kube: Kube, plan: Plan) -> None:
    """Create a plan's objects. The same name and plan is the same run; one that failed or was stopped starts again.

    Raises:
        Conflict: a run of that name came from another plan; the difference is told.
        ManifestError: the server refused the manifest; nothing was created.
    """
    *code, job = plan.body
    largecode.before(kube, plan)
    for _ in range(_TRIES):
        owner = objects.created(kube, job)
        if owner is None:
            owner, attempt = _there(kube, plan)
            if attempt:
                job = again(plan.body[-1], attempt)
        if owner:
            for part in code:
                _own(kube, part, owner)
            largecode.after(kube, plan)
            return
    raise Conflict(f"{plan.name} is started and deleted by others at once", next_step="submit it again")


def _there(kube: Kube, plan: Plan) -> tuple[Object | None, int]:
    """Return the run that has the plan's name: it is joined. None with the next attempt's number once it is removed.

    A run that goes on or went well is joined, one that failed or was stopped makes room for its next attempt.
    """
    known = kube.find("RayJob", plan.name)
    if known is None or is_leaving(known):
        objects.wait_gone(kube, "RayJob", plan.name)
        return None, 0
    _check_same(known, plan.body[-1])
    status = Look(kube, plan.name).status()
    if status.state not in ("FAILED", "STOPPED"):
        return known, 0
    remove(kube, known)
    return None, status.attempt + 1


def _own(kube: Kube, part: Mapping[str, Any], owner: Object) -> None:
    """Create the object that carries the code, owned by the run: it goes when the run does."""
    references = [_reference(owner)]
    owned = {**part, "metadata": {**part["metadata"], "ownerReferences": references}}
    name = part["metadata"]["name"]
    for _ in range(_TRIES):
        if objects.created(kube, owned):
            return
        known = kube.find(part["kind"], name)
        if known and known["metadata"].get("ownerReferences") == references:
            return
        if known and not known["metadata"].get("ownerReferences"):  # somebody's own, which the run may use
            return
        if known:  # of an earlier run of that name, and about to be collected as garbage
            objects.delete(kube, known)
    raise Conflict(f"{part['kind']} {name} is held by something else", next_step=f"kubectl describe configmap {name}")


def _reference(owner: Object) -> dict[str, Any]:
    metadata = owner["metadata"]
    found = {"apiVersion": "ray.io/v1", "kind": owner["kind"], "name": metadata["name"], "uid": metadata["uid"]}
    return {**found, "controller": True, "blockOwnerDeletion": True}


def _check_same(known: Object, wanted: Mapping[str, Any]) -> None:
    label = plans.PLAN_LABEL
    if (known["metadata"].get("labels") or {}).get(label) == wanted["metadata"]["labels"][label]:
        return
    name = known["metadata"]["name"]
    different = [*differences(wanted["spec"], known.get("spec") or {}, "spec")][:20]
    raise Conflict(
        f"the name {name!r} is taken by another run",
        why="\n".join(different) or "it was made by something else, or something was taken out of it",
        next_step=f"choose another --name, or: raykube job delete {name}",
    )


def differences(wanted: Any, known: Any, path: str) -> Iterator[str]:
    """Yield the fields of `wanted` that are not so in `known`; what a server added is no difference."""
    if isinstance(wanted, Mapping) and isinstance(known, Mapping):
        for key, value in wanted.items():
            yield from differences(value, known.get(key), f"{path}.{key}")
    elif isinstance(wanted, (list, tuple)) and isinstance(known, list) and len(wanted) == len(known):
        for index, (ours, theirs) in enumerate(zip(wanted, known, strict=True)):
            yield from differences(ours, theirs, f"{path}[{index}]")
    elif isinstance(wanted, str) and isinstance(known, str) and "\n" in wanted:
        if told := plans.difference(known, wanted):
            yield f"{path}:\n{told}"
    elif wanted != known:
        yield f"{path}: {known!r} there, {wanted!r} here"


def again(job: Mapping[str, Any], attempt: int) -> dict[str, Any]:
    """Return the RayJob for a later attempt of the same run."""
    later: dict[str, Any] = copy.deepcopy(dict(job))
    environment = yaml.safe_load(later["spec"].get("runtimeEnvYAML") or "") or {}
    if wire.ATTEMPT in environment.get("env_vars", {}):  # a RayJob that somebody has written asks for none
        environment["env_vars"][wire.ATTEMPT] = str(attempt)
        later["spec"]["runtimeEnvYAML"] = plans.as_yaml(environment, sort_keys=True)
    later["metadata"].setdefault("annotations", {})[runstates.ATTEMPT_ANNOTATION] = str(attempt)
    return later


def stop(kube: Kube, look: Look) -> None:
    """Ask for a run's end: Ray's job is stopped; one that is not there yet will not be started."""
    head = look.head()
    if head and head.details():
        head.api.stop(head.submission_id)
        return
    annotations = {runstates.STOP_ANNOTATION: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    kube.patch("RayJob", look.name, {"metadata": {"annotations": annotations}, "spec": {"suspend": True}})


def remove(kube: Kube, job: Object) -> None:
    """Delete a RayJob and what it owns, and wait until its name is free."""
    objects.delete(kube, job)
    objects.wait_gone(kube, "RayJob", job["metadata"]["name"])
