"""The state of a run on KubeRay. Pure functions of what Kubernetes and Ray say of it.

Ray's own state takes precedence: the RayJob follows it up to three seconds late.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from raykube import wire
from raykube.backends import State, Status
from raykube.backends.endings import BEING_DELETED, opening
from raykube.backends.kuberay.causes import clustercauses, diagnosis
from raykube.backends.kuberay.causes.observed import Observed
from raykube.backends.kuberay.runs import rayjobs
from raykube.backends.kubernetes import fields
from raykube.errors import Failure

_STARTS = "Initializing"
_RAY_STATES: frozenset[State] = frozenset({"PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"})
_WORKERS = re.compile(rf"^ *{wire.WORKERS}: ['\"]?([0-9.]+)", re.MULTILINE)
_STAGES = ("looking for a node", "getting image and volumes", "in an init container", "starting Ray")


def status_of(seen: Observed, told: Mapping[str, Any], url: str = "") -> Status:
    """Return a run's status.

    Args:
        seen: its RayJob and what belongs to it.
        told: the state that the run's own pod leaves (``inside/attempts.py``); empty while there is none.
        url: of its dashboard.
    """
    job = seen.owner
    state = state_of(seen)
    status = Status(
        name=seen.name,
        kind="job",
        state=state,
        submitted=fields.seconds(job["metadata"].get("creationTimestamp")) or None,
        started=_moment(seen, "start_time", "startTime"),
        ended=_moment(seen, "end_time", "endTime") or fields.seconds(fields.status_of(job).get("endTime")) or None,
        attempt=rayjobs.attempt_of(job, told),
        earlier=tuple(_earlier(told)),
        progress=dict(told.get("progress") or {}),
        quiet_s=float(told.get("quiet_s") or 0) if state == "RUNNING" else 0.0,
        url=url,
        workers=_workers(job),
        storage=rayjobs.storage_of(job),
    )
    cause = _cause(seen, state)
    ended = status.ended if status.is_terminal else None
    detail = _trouble(told) if state == "RUNNING" and not cause else ""
    return replace(status, failure=cause, detail=detail or _detail(seen, state, cause), ended=ended)


def state_of(seen: Observed) -> State:
    """Return the state: Ray's own, unless the RayJob has ended by itself or waits for its cluster."""
    status, deployment = fields.status_of(seen.owner), rayjobs.deployment(seen.owner)
    if deployment == "Complete":
        return "STOPPED" if status.get("jobStatus") == "STOPPED" else "SUCCEEDED"
    if deployment == "Suspended" and rayjobs.is_stopped(seen.owner):
        return "STOPPED"
    if clustercauses.has_lost_its_cluster(seen):
        return "STOPPED" if fields.is_leaving(seen.owner) else "FAILED"  # its cluster may go before it
    early = deployment == "Waiting" or (deployment == _STARTS and rayjobs.is_sidecar(seen.owner))
    if deployment == "Running" or (early and seen.ray):
        rays = seen.ray.get("status") or status.get("jobStatus") or "PENDING"
        if rays == "FAILED" and rayjobs.is_tried_again(seen.owner):
            return "WAITING"
        return next((state for state in _RAY_STATES if state == rays), "PENDING")
    return "FAILED" if deployment in ("Failed", "ValidationFailed") else "WAITING"


def _workers(job: Mapping[str, Any]) -> str:
    found = _WORKERS.search(fields.spec_of(job).get("runtimeEnvYAML") or "")
    return found[1] if found else ""


def _earlier(told: Mapping[str, Any]) -> Iterator[str]:
    for row in told.get("attempts") or ():
        if "ended" in row and row["attempt"] < told["attempt"]:
            code = f" (exit code {row['exit_code']})" if row.get("exit_code") else ""
            yield f"attempt {row['attempt']}: {row.get('reason', '')}{code}"


def _trouble(told: Mapping[str, Any]) -> str:
    """Return what the current attempt has lost, or waits for."""
    return wire.trouble(str(told.get("trouble") or ""), int(told.get("attempt") or 0))


def _cause(seen: Observed, state: State) -> Failure | None:
    if state in ("SUCCEEDED", "STOPPED"):
        return None
    return diagnosis.cause(seen)


def _detail(seen: Observed, state: State, cause: Failure | None) -> str:
    if cause:
        return f"{cause.reason}: {opening(cause.message)}"
    if state == "STOPPED" and rayjobs.is_being_deleted(seen.owner):
        return BEING_DELETED
    if state == "WAITING":
        return _waiting(seen)
    if state in ("SUCCEEDED", "STOPPED") and rayjobs.deployment(seen.owner) == _STARTS:
        # KubeRay 1.6 never sees the end of a job that ended before all pods were ready: its issues 4199 and 4945.
        return f"KubeRay does not see that it has ended: its cluster stays until raykube job delete {seen.name}"
    return opening(str(seen.ray.get("message") or fields.status_of(seen.owner).get("message") or ""))


def _waiting(seen: Observed) -> str:
    """Return what a run waits for when nothing is wrong."""
    deployment = rayjobs.deployment(seen.owner)
    if deployment in ("Suspended", "Suspending", "Retrying"):
        return deployment.lower()
    if deployment == "Running":
        return "retrying"
    if deployment == "Waiting":
        return "its cluster is ready; with InteractiveMode KubeRay waits until somebody submits the job there"
    if cluster := rayjobs.selected(seen.owner):
        return f"waiting for KubeRay to hand it to cluster {cluster}"
    if not seen.pods:
        return "waiting for KubeRay to create its cluster"
    stages = Counter(_stage(pod) for pod in seen.pods)
    others = ", ".join(f"{stages[stage]} {stage}" for stage in _STAGES if stages[stage])
    return f"{stages['']} of {len(seen.pods)} pods ready" + (f": {others}" if others else "")


def _stage(pod: fields.Object) -> str:
    """Return which stage a pod is in before it is ready; "" once it is ready."""
    if fields.is_ready(pod):
        return ""
    status, rays = fields.status_of(pod), pod["spec"]["containers"][0]["name"]  # the first, by KubeRay's rule
    running = {
        kind: {each["name"] for each in status.get(kind) or () if "running" in (each.get("state") or {})}
        for kind in ("containerStatuses", "initContainerStatuses")
    }
    if rays in running["containerStatuses"]:
        return _STAGES[3]
    if running["initContainerStatuses"]:
        return _STAGES[2]
    return _STAGES[fields.is_true(pod, "PodScheduled")]


def _moment(seen: Observed, rays: str, kuberays: str) -> float | None:
    """Return when Ray's job started or ended, in Unix seconds: from Ray, else from KubeRay's copy."""
    if milliseconds := seen.ray.get(rays):
        return float(milliseconds) / 1000
    info = fields.status_of(seen.owner).get("rayJobInfo") or {}
    return fields.seconds(info.get(kuberays)) or None
