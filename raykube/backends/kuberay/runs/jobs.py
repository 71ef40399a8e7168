"""Starts, stops and removes RayJobs."""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from raykube import differences, marks, runtime_env, sameness, wire
from raykube.backends import Status, endings
from raykube.backends.kuberay import largecode, objects
from raykube.backends.kuberay.rayhead import RayHead
from raykube.backends.kuberay.runs import kueue, rayjobs
from raykube.backends.kuberay.runs.look import Look
from raykube.backends.kubernetes.fields import is_leaving, labels_of, name_of, spec_of, status_of
from raykube.backends.kubernetes.kubeapi import Kube, Object
from raykube.bodies import CODE_NAME
from raykube.errors import BackendError, Conflict, Forbidden, NotFound, Unreachable
from raykube.plans import Plan
from raykube.yamltext import as_yaml

_log = logging.getLogger("raykube")
_TRIES = 5
_AGAIN = ("FAILED", "STOPPED")


def start(kube: Kube, plan: Plan) -> None:
    """Create a plan's objects. The same name and plan is the same run; one that failed or was stopped starts again.

    Raises:
        Conflict: the name belongs to a service or a cluster, or to a run of another plan (the error lists the
            differences); or the name of the run's code is taken; or others create and delete the run at the same time.
        ManifestError, Forbidden: the server refused the run, or something that it needs; nothing is left behind.
    """
    *code, job = plan.body
    objects.check_free(kube, job)
    for _ in range(_TRIES):
        largecode.before(kube, plan)  # in each try: a run removed meanwhile took its stored code with it
        made = owner = objects.created(kube, job)
        if owner is None:
            owner, attempt = _join_or_make_room(kube, plan)
            if attempt:
                job = again(plan.body[-1], attempt)
        if owner:
            with objects.needed_by(kube, owner, is_new=made is not None):
                for part in code:  # owned by the run, so it is deleted with it
                    objects.claim(kube, part, owner)
                largecode.after(kube, plan, owner)
            return
    raise Conflict(f"others are creating and deleting {plan.name} at the same time", next_step="submit it again")


def _join_or_make_room(kube: Kube, plan: Plan) -> tuple[Object | None, int]:
    """Return the run of the plan's name, to be joined; or None and the number of the next attempt, 0 for a new run.

    A run that goes on or succeeded is joined. One that failed or was stopped is removed for its next attempt.
    """
    known = same(kube, plan.body[-1])
    if known is None:
        objects.wait_gone(kube, "RayJob", plan.name)
        return None, 0
    job, status = known
    if status.state not in _AGAIN:
        if status.state == "SUCCEEDED":
            _log.info(endings.OVER, plan.name)
        return job, 0
    remove(kube, job)
    return None, status.attempt + 1


def same(kube: Kube, wanted: Object) -> tuple[Object, Status] | None:
    """Return the existing run of the wanted one's name, and its status; None when it is absent or being deleted.

    Raises:
        Conflict: it is a run of another plan or, if it failed or was stopped, of another work.
    """
    known = kube.find("RayJob", name_of(wanted))
    if known is None or is_leaving(known):
        return None
    _check_same(known, wanted, sameness.as_work, marks.PLAN, marks.WORK)
    status = Look(kube, name_of(wanted)).status()
    if status.state not in _AGAIN:
        step = "" if status.is_terminal else endings.stop_first(status.name)
        _check_same(known, wanted, sameness.as_plan, marks.PLAN, step=step)
    return known, status


def _check_same(
    known: Object, wanted: Object, counting: Callable[[Object], Object], *labels: str, step: str = ""
) -> None:
    """Raise Conflict, with the differences and `step`, unless at least one of these labels has the wanted value."""
    theirs, ours = labels_of(known), wanted["metadata"]["labels"]
    if any(theirs.get(label) == ours[label] for label in labels):
        return
    name, folder = name_of(known), "" if rayjobs.keeps_nothing(known) else rayjobs.storage_of(known)
    different = [*_differences(counting(known), counting(wanted))][:20]
    raise Conflict(
        f"the name {name!r} is taken by another run",
        why="\n".join(different) or "it was made by something else, or something was taken out of it",
        next_step=step or endings.other_name("job", name, folder),
    )


def _differences(theirs: Object, ours: Object) -> Iterator[str]:
    """Yield the differences of two RayJobs; false or empty fields may be absent, as KubeRay drops them on a change."""
    said = {"labels": {}, "annotations": {}, **theirs["metadata"]}
    yield from differences.of_objects(ours["metadata"], said, "metadata", omits=True)
    yield from differences.of_objects(spec_of(ours), spec_of(theirs), "spec", omits=True)


def again(job: Mapping[str, Any], attempt: int) -> dict[str, Any]:
    """Return the RayJob for a later attempt of the same run."""
    later: dict[str, Any] = copy.deepcopy(dict(job))
    environment = runtime_env.of_rayjob(later)
    if wire.ATTEMPT in (environment.get("env_vars") or {}):  # a hand-written RayJob does not have it
        environment["env_vars"][wire.ATTEMPT] = str(attempt)
        later["spec"]["runtimeEnvYAML"] = as_yaml(environment, sort_keys=True)
    later["metadata"].setdefault("annotations", {})[marks.ATTEMPT] = str(attempt)
    return later


def stop(look: Look) -> None:
    """Ask for a run's end: stop its job in Ray or, if Ray does not have the job yet, keep it from starting.

    Raises:
        Unreachable: the head of a running job does not answer.
        BackendError: the run is for a long-lived cluster, or waits to be submitted by hand (InteractiveMode), and only
            its deletion keeps it from starting; or this user cannot take it off Kueue's queue.
    """
    head = look.head()
    if head and _is_in_ray(head, look.job):
        head.api.stop(head.submission_id)
        return
    if rayjobs.selected(look.job):
        raise BackendError(
            f"run {look.name} is not in Ray yet, and KubeRay cannot hold back what is for a cluster that stays",
            next_step=f"stop it once it runs, or: raykube job delete {look.name}",
        )
    if rayjobs.deployment(look.job) == "Waiting":  # KubeRay leaves this state only once Ray has the job
        raise BackendError(
            f"run {look.name} waits to be submitted by hand (InteractiveMode), and KubeRay does not suspend it then",
            next_step=f"end it: raykube job delete {look.name}",
        )
    _hold_back(look)


def _is_in_ray(head: RayHead, job: Object) -> bool:
    try:
        return bool(head.api.job(head.submission_id))
    except NotFound:
        return False
    except Unreachable:
        if status_of(job).get("jobStatus"):
            raise
        return False


def _hold_back(look: Look) -> None:
    annotations = {marks.STOP: _now()}
    if kueue.take_off(look.kube, look.job):
        look.kube.patch("RayJob", look.name, {"metadata": {"annotations": annotations}})
        return
    # KubeRay does not suspend a RayJob that keeps its cluster: it calls the whole RayJob invalid, for good.
    spec = {"suspend": True, "shutdownAfterJobFinishes": True, "deletionStrategy": None}
    look.kube.patch("RayJob", look.name, {"metadata": {"annotations": annotations}, "spec": spec})


def announce_deletion(look: Look) -> None:
    """Note on a RayJob that it is about to be deleted: whoever waits for it would else hear only that it was stopped.

    Raises:
        Conflict: a newer run has its name.
    """
    metadata = {"uid": look.job["metadata"]["uid"], "annotations": {marks.DELETE: _now()}}
    look.kube.patch("RayJob", look.name, {"metadata": metadata})


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def remove(kube: Kube, job: Object) -> None:
    """Delete a RayJob and what it owns, and wait until its name is free."""
    objects.delete(kube, job)
    objects.wait_gone(kube, "RayJob", job["metadata"]["name"])


def forget(kube: Kube, job: Object) -> None:
    """Remove a RayJob and all that was made with it, even a ConfigMap of code that kubectl applied and nobody owns."""
    remove(kube, job)
    name = CODE_NAME.format(job["metadata"]["name"])
    with contextlib.suppress(Forbidden, NotFound, Conflict):
        code = kube.get("ConfigMap", name)
        if _is_left_of(job, code):
            # Only this version: a run that was submitted meanwhile may have taken it over.
            same = {key: code["metadata"].get(key) for key in ("uid", "resourceVersion")}
            kube.delete("ConfigMap", name, preconditions=same)


def _is_left_of(job: Object, code: Object) -> bool:
    plan = labels_of(job).get(marks.PLAN)
    is_same = bool(plan) and labels_of(code).get(marks.PLAN) == plan
    return is_same and objects.is_ours(code) and not code["metadata"].get("ownerReferences")
