"""What a RayJob says of itself. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raykube import marks
from raykube.backends.kubernetes.fields import Object, annotations_of, is_leaving, name_of, seconds, spec_of, status_of
from raykube.bodies import CODE_FOLDER

#: Seconds past its deadline after which a job is overdue: the operator ends a late job at its next look, seconds later.
OVERDUE_S = 30.0

_OPERATOR = ("", "ray.io/kuberay-operator")
_BEFORE_RUNNING = ("Initializing", "Waiting")
_ENDED = ("Complete", "Failed", "ValidationFailed")


def deployment(job: Object) -> str:
    """Return how far KubeRay is with a job, such as ``Initializing``; "" before KubeRay has begun with it."""
    return str(status_of(job).get("jobDeploymentStatus") or "")


def has_ended(job: Object) -> bool:
    """Whether KubeRay is done with a job; a job that was stopped before it began stays suspended."""
    return deployment(job) in _ENDED or (deployment(job) == "Suspended" and is_stopped(job))


def cluster_name(job: Object) -> str:
    """Return the name of the cluster that a job is on; "" while it is on none."""
    return str(status_of(job).get("rayClusterName") or "")


def selected(job: Object) -> str:
    """Return the name of the long-lived cluster on which a job is to run; "" for a job with a cluster of its own."""
    return str((spec_of(job).get("clusterSelector") or {}).get(marks.CLUSTER) or "")


def service_of(job: Object) -> str:
    """Return the name of the head's Service: the first part of ``status.dashboardURL``; "" before there is one."""
    status = status_of(job)
    if url := status.get("dashboardURL"):
        return str(url).partition(".")[0]
    # A job that starts with its head may end before KubeRay finds the cluster ready and writes the address.
    head = (status.get("rayClusterStatus") or {}).get("head") or {}
    return str(head.get("serviceName") or "") if is_sidecar(job) else ""


def storage_of(owner: Object) -> str:
    """Return the folder or URI of a run's or service's files; "" when its cluster has no storage."""
    base = annotations_of(owner).get(marks.STORAGE, "")
    return f"{base.rstrip('/')}/{name_of(owner)}" if base else ""


def attempt_of(job: Object, told: Mapping[str, Any]) -> int:
    """Return the attempt's number: as its pod tells, else as noted at its submission, else by KubeRay's retries."""
    failed = int(status_of(job).get("failed") or 0)
    counted = failed if deployment(job) == "Failed" else failed + 1
    return int(told.get("attempt") or annotations_of(job).get(marks.ATTEMPT) or max(1, counted))


def is_sidecar(job: Object) -> bool:
    """Whether a container beside the head submits the job to Ray, as soon as Ray answers (``SidecarMode``)."""
    return bool(spec_of(job).get("submissionMode") == "SidecarMode")


def has_code_in_head(job: Object) -> bool:
    """Whether a run's code was uploaded to the head of its cluster, with which it goes."""
    return "gcs://_ray_pkg_" in str(spec_of(job).get("runtimeEnvYAML") or "")


def was_in_ray(job: Object) -> bool:
    """Whether Ray ever had the job: one that was never submitted, or came too late, has printed nothing."""
    status = status_of(job)
    return bool(status.get("jobStatus") or status.get("rayJobInfo"))


def keeps_nothing(job: Object) -> bool:
    """Whether a run has nothing in its storage: no code, and it never had a head to run on.

    The status of a RayJob that was suspended forgets what was before, so such a RayJob counts as begun.
    """
    has_begun = service_of(job) or was_in_ray(job) or attempt_of(job, {}) > 1
    has_code = f"{storage_of(job)}/{CODE_FOLDER}/" in str(spec_of(job).get("runtimeEnvYAML") or "")
    return not (has_begun or has_code or _was_suspended(job))


def _was_suspended(job: Object) -> bool:
    """Whether somebody may have suspended a job since it was created."""
    metadata = job["metadata"]
    specs = [(each.get("fieldsV1") or {}).get("f:spec") or {} for each in metadata.get("managedFields") or ()]
    # A changed spec alone does not say so: KubeRay itself writes into that of a new RayJob.
    may_be = any("f:suspend" in spec for spec in specs) or not specs
    return may_be and int(metadata.get("generation") or 1) > 1


def is_stopped(job: Object) -> bool:
    """Whether somebody asked to stop the run before Ray had its job."""
    return marks.STOP in annotations_of(job)


def is_being_deleted(job: Object) -> bool:
    """Whether somebody is deleting the run: Kubernetes says so, or raykube, which stops it first."""
    return is_leaving(job) or marks.DELETE in annotations_of(job)


def is_suspended(owner: Object) -> bool:
    """Whether a job or service is suspended: it waits without a cluster."""
    return bool(spec_of(owner).get("suspend")) or deployment(owner) in ("Suspended", "Suspending")


def is_tried_again(job: Object) -> bool:
    """Whether KubeRay will retry a job that failed in Ray: it says so a moment later, with a new cluster."""
    return int(status_of(job).get("failed") or 0) < int(spec_of(job).get("backoffLimit") or 0)


def is_overdue(job: Object, now: float) -> bool:
    """Whether a job has waited past its deadline, so that the operator, which would end it, must be down."""
    spec, started = spec_of(job), status_of(job).get("startTime")
    limit, state = spec.get("preRunningDeadlineSeconds"), deployment(job)
    # No state but a start time: KubeRay is past a suspension or an earlier try, and the time is still that one's.
    waits = (state in _BEFORE_RUNNING or not (state or started)) and not spec.get("suspend")
    if not (limit and waits and is_kuberays(job)):
        return False
    return now > seconds(started or job["metadata"].get("creationTimestamp")) + int(limit) + OVERDUE_S


def is_kuberays(thing: Object) -> bool:
    """Whether KubeRay's operator, and not another controller, manages an object."""
    return spec_of(thing).get("managedBy", "") in _OPERATOR
