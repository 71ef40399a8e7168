"""What a RayJob says of itself. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raykube import marks
from raykube.backends.kubernetes.fields import Object, annotations_of, name_of, seconds, spec_of, status_of
from raykube.bodies import CODE_FOLDER

#: The operator ends what is overdue at its next look, seconds later.
OVERDUE_S = 30.0

_OPERATOR = ("", "ray.io/kuberay-operator")
_BEFORE_RUNNING = ("Initializing", "Waiting")
_ENDED = ("Complete", "Failed", "ValidationFailed")


def deployment(job: Object) -> str:
    """Return how far KubeRay is with a job, as ``Initializing``; "" before it has begun."""
    return str(status_of(job).get("jobDeploymentStatus") or "")


def has_ended(job: Object) -> bool:
    """Whether KubeRay is done with a job: of one that was taken back before it began it stays suspended."""
    return deployment(job) in _ENDED or (deployment(job) == "Suspended" and is_stopped(job))


def cluster_name(job: Object) -> str:
    """Return the name of the cluster that a job is on; "" while it is on none."""
    return str(status_of(job).get("rayClusterName") or "")


def selected(job: Object) -> str:
    """Return the name of the cluster that stays on which a job is to run; "" for one that gets its own."""
    return str((spec_of(job).get("clusterSelector") or {}).get(marks.CLUSTER) or "")


def service_of(job: Object) -> str:
    """Return the name of the head's Service: the first part of ``status.dashboardURL``; "" before there is one."""
    status = status_of(job)
    if url := status.get("dashboardURL"):
        return str(url).partition(".")[0]
    # A job that starts with its head may be over before KubeRay takes the cluster for ready and names the address.
    head = (status.get("rayClusterStatus") or {}).get("head") or {}
    return str(head.get("serviceName") or "") if is_sidecar(job) else ""


def storage_of(owner: Object) -> str:
    """Return the folder or URI below which a run's files lie, or a service's; "" when its cluster has no storage."""
    base = annotations_of(owner).get(marks.STORAGE, "")
    return f"{base.rstrip('/')}/{name_of(owner)}" if base else ""


def attempt_of(job: Object, told: Mapping[str, Any]) -> int:
    """Return the number of the attempt: as its pod tells, as was noted when it did, else KubeRay's count of retries."""
    failed = int(status_of(job).get("failed") or 0)
    counted = failed if deployment(job) == "Failed" else failed + 1
    return int(told.get("attempt") or annotations_of(job).get(marks.ATTEMPT) or max(1, counted))


def is_sidecar(job: Object) -> bool:
    """Whether a container beside the head hands the job to Ray, as soon as that answers (``SidecarMode``)."""
    return bool(spec_of(job).get("submissionMode") == "SidecarMode")


def has_code_in_head(job: Object) -> bool:
    """Whether a run's code was uploaded to the head of its cluster, with which it goes."""
    return "gcs://_ray_pkg_" in str(spec_of(job).get("runtimeEnvYAML") or "")


def was_in_ray(job: Object) -> bool:
    """Whether Ray ever had the job: one that was never handed to it, or was too late, has printed nothing."""
    status = status_of(job)
    return bool(status.get("jobStatus") or status.get("rayJobInfo"))


def keeps_nothing(job: Object) -> bool:
    """Whether a run has nothing in its storage: no code, and no part of it ever had a head to run on.

    A RayJob that was suspended says nothing of what was before: whether it was is seen by the changes of its spec.
    """
    has_begun = service_of(job) or was_in_ray(job) or attempt_of(job, {}) > 1
    was_changed = int(job["metadata"].get("generation") or 1) > 1
    has_code = f"{storage_of(job)}/{CODE_FOLDER}/" in str(spec_of(job).get("runtimeEnvYAML") or "")
    return not (has_begun or was_changed or has_code)


def is_stopped(job: Object) -> bool:
    """Whether somebody has asked for the run's end before its job was there to be stopped."""
    return marks.STOP in annotations_of(job)


def is_suspended(owner: Object) -> bool:
    """Whether somebody has a job, or a service, wait without a cluster."""
    return bool(spec_of(owner).get("suspend")) or deployment(owner) in ("Suspended", "Suspending")


def is_tried_again(job: Object) -> bool:
    """Whether KubeRay will start anew what has failed in Ray: it says so a moment later, with another cluster."""
    return int(status_of(job).get("failed") or 0) < int(spec_of(job).get("backoffLimit") or 0)


def is_overdue(job: Object, now: float) -> bool:
    """Whether a job waits for longer than it may: who would end it does not run."""
    spec, started = spec_of(job), status_of(job).get("startTime")
    limit, state = spec.get("preRunningDeadlineSeconds"), deployment(job)
    # None, with a start: on the way from a suspension or a try before, whose start that is.
    waits = (state in _BEFORE_RUNNING or not (state or started)) and not spec.get("suspend")
    if not (limit and waits and is_kuberays(job)):
        return False
    return now > seconds(started or job["metadata"].get("creationTimestamp")) + int(limit) + OVERDUE_S


def is_kuberays(thing: Object) -> bool:
    """Whether it is KubeRay's operator that works on an object, and not another controller."""
    return spec_of(thing).get("managedBy", "") in _OPERATOR
