"""The one cause for which a run, service or cluster on Kubernetes does not do what it should. Pure functions.

KubeRay itself says little about it: the truth is in its pods' states, in events and in Ray's own job. The checks below
go through these in an order in which an earlier cause explains later ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from raykube.backends import endings
from raykube.backends.kuberay.causes import clustercauses
from raykube.backends.kuberay.causes.nextsteps import complete, event_place, not_created, owner_kind
from raykube.backends.kuberay.causes.observed import Observed, events_about, head_pod
from raykube.backends.kuberay.causes.podcauses import LASTING, Pod, cause_of, departure_of, loss_of
from raykube.backends.kuberay.runs.rayjobs import cluster_name, deployment, is_suspended, is_tried_again
from raykube.backends.kubernetes.fields import (
    Object,
    changed,
    claims_of,
    conditions,
    is_leaving,
    moment,
    name_of,
    seconds,
    status_of,
    times,
)
from raykube.errors import Failure

_FAILED = ("Failed", "ValidationFailed")
#: Reasons for an end that is only the consequence of a lost head or pod, if that can still be seen.
_HEAD_GONE = (
    *("HeadLost", "CodeLost", "DriverDied"),
    *("JobFailed", "AppFailed", "SubmissionFailed", "JobStatusCheckTimeoutExceeded"),
)
#: Reasons with which KubeRay passes on Ray's message about the job; with others the message is its own.
_ABOUT_THE_JOB = ("AppFailed", "JobFailed", "SubmissionFailed")
_SUBMITTER = "ray-job-submitter"
_TOO_LATE = ("PreRunningDeadlineExceeded", "DeadlineExceeded")
#: A warning of the same kind about a service's configuration; a head that starts may be the cause of a single one.
UNAPPLIED = "FailedToUpdateServeApplications"
#: Warnings about what the operator tries again and again; a single one may be a race that it has won since.
_TRIED = (
    "AutoscalerServiceAccountNotFound",
    "RayClusterNotFound",
    "FailedToCreateRayCluster",
    "FailedToCreateRayJobSubmitter",
    "FailedToCreateService",
    "FailedToCreateServiceAccount",
    "FailedToCreateRole",
    "FailedToCreateRoleBinding",
    "ForceDeletedStuckCluster",
)


#: Those of them that are over once there is a cluster; the next ones are over once there are pods.
_BEFORE_THE_CLUSTER = ("RayClusterNotFound", "FailedToCreateRayCluster")
_BEFORE_PODS = (
    *("AutoscalerServiceAccountNotFound", "FailedToCreateServiceAccount"),
    *("FailedToCreateRole", "FailedToCreateRoleBinding"),
)


def cause(seen: Observed) -> Failure | None:
    """Return the one cause of what is wrong; None when nothing is wrong.

    Args:
        seen: what was observed; objects that could not be read are left empty, and fewer causes are found then.
    """
    if _went_well(seen):
        return None
    return next((found for check in _CHECKS if (found := check(seen))), None)


def _went_well(seen: Observed) -> bool:
    """Whether the run has ended as it should: what its pods say then does not matter."""
    state = deployment(seen.owner)
    # A job that exceeds its deadline is STOPPED in Ray, but has failed all the same.
    return state == "Complete" or (state not in _FAILED and seen.ray.get("status") in ("SUCCEEDED", "STOPPED"))


def _ended(seen: Observed) -> Failure | None:
    """Return why the run failed. Ray's own reason comes first: it is known up to three seconds before the RayJob's.

    The exception is a run that KubeRay has ended for being late: what Ray says of its job is a consequence.
    """
    told = _ended_in_kuberay(seen)
    found = told if told and told.reason in _TOO_LATE else _ended_in_ray(seen) or told
    if found is None:
        return None
    if found.reason in _HEAD_GONE:
        since = seconds(seen.owner.get("metadata", {}).get("creationTimestamp"))
        heads = (loss_of(pod, since) for pod in _views(seen) if pod.is_head)
        return next((loss for loss in heads if loss), None) or clustercauses.deleted(seen) or found
    return _with_pods(seen, found) if found.reason in _TOO_LATE else found


def _ended_in_ray(seen: Observed) -> Failure | None:
    if seen.ray.get("status") != "FAILED":
        return None
    words, code = str(seen.ray.get("message") or ""), seen.ray.get("driver_exit_code")
    found = endings.ending(words, str(seen.ray.get("error_type") or ""), code)
    where = f"ray job {seen.ray.get('submission_id') or ''}: message"
    return complete(seen, replace(found, reason=found.reason or "JobFailed"), where)


def _ended_in_kuberay(seen: Observed) -> Failure | None:
    status = status_of(seen.owner)
    if deployment(seen.owner) not in _FAILED and not _is_about_to_fail(seen.owner):
        return None
    reason, where = str(status.get("reason") or "JobFailed"), f"rayjob/{seen.name}: status.message"
    if reason == "ValidationFailed":
        return complete(seen, Failure("InvalidRayJobSpec", str(status.get("message", ""))), where)
    words = str(status.get("message") or "")
    if reason not in _ABOUT_THE_JOB:
        return complete(seen, Failure(reason, endings.first_line(words)), where)
    found = endings.ending(words)
    return complete(seen, replace(found, reason=found.reason or reason), where)


def _is_about_to_fail(job: Object) -> bool:
    """Whether KubeRay will call a job failed as soon as its own submitter has ended."""
    ends = deployment(job) == "Running" and status_of(job).get("jobStatus") == "FAILED"
    return ends and not is_tried_again(job)


def _with_pods(seen: Observed, found: Failure) -> Failure:
    """Add what kept the run or service from being in time, if that can still be seen."""
    inner = _pods(seen) or clustercauses.replicas(seen)
    if inner is None:
        return found
    message = f"{found.message.rstrip('.')}. {inner.reason}: {inner.message}"
    return replace(found, message=message, next_step=inner.next_step, where=inner.where)


def is_invalid(service: Object) -> bool:
    """Whether KubeRay calls a RayService, as it is now, invalid.

    The condition alone does not tell: after a correction it stays until something answers requests.
    """
    status, ready = status_of(service), conditions(service).get("Ready", {})
    if ready.get("reason") != "ValidationFailed":
        return False
    # A version counts as observed once it was found valid; a condition has the version that was observed at its time.
    corrected = int(status.get("observedGeneration") or 0) > int(ready.get("observedGeneration") or 0)
    return not corrected and seconds(status.get("lastUpdateTime")) >= changed(service)


def _invalid(seen: Observed) -> Failure | None:
    """Return what the operator calls invalid; only an event says so, except for rules of RayJobs and RayServices."""
    if is_invalid(seen.owner):
        ready = conditions(seen.owner)["Ready"]
        where = f"{owner_kind(seen.owner)}/{seen.name}: status.conditions[Ready].message"
        return complete(seen, Failure("InvalidRayServiceSpec", ready.get("message", "")), where)
    for event in events_about(seen, _owned(seen)):
        kind = str(event.get("reason", "")).removesuffix("Spec").removesuffix("Metadata").removesuffix("Status")
        # An object that has got a status since then was corrected.
        if event.get("reason", "").startswith("InvalidRay") and not _was_taken(seen, event):
            return complete(seen, Failure(f"{kind}Spec", event.get("message", "")), event_place(event))
    return None


def _was_taken(seen: Observed, event: Object) -> bool:
    about = seen.cluster if event["involvedObject"].get("name") == name_of(seen.cluster) else seen.owner
    return bool(conditions(about) or cluster_name(about))


def _queued(seen: Observed) -> Failure | None:
    """Return why Kueue keeps a run suspended: until Kueue admits the run, only its Workload says why."""
    if not seen.workload or not is_suspended(seen.owner):
        return None
    found = conditions(seen.workload)
    for kind in ("QuotaReserved", "Admitted"):
        if (each := found.get(kind, {})).get("status") == "False":
            where = f"workload/{name_of(seen.workload)}: status.conditions[{kind}].message"
            reason = "Inadmissible" if each.get("reason") == "Inadmissible" else "Queued"
            words = each.get("message") or each.get("reason", "")
            place = "" if seen.before is None else f". {_place(seen.before)} in the queue"
            return complete(seen, Failure(reason, words.rstrip(".") + place), where)
    return None


def _place(before: int) -> str:
    return f"{before} before it" if before else "It is the first"


def _pods(seen: Observed) -> Failure | None:
    """Return what is wrong with a pod. The head comes first: without it no worker can do anything."""
    pods = sorted(_views(seen), key=lambda pod: (not pod.is_head, pod.name))
    found = (departure_of(pod) if is_leaving(pod.thing) else cause_of(pod) for pod in pods)
    return next((each for each in found if each), None)


def _submitter(seen: Observed) -> Failure | None:
    """Return what keeps the submitter's pod from submitting the job to Ray; it is ignored once Ray has the job."""
    if seen.ray or status_of(seen.owner).get("jobStatus"):
        return None
    return cause_of(_view(seen, seen.submitter)) if seen.submitter else _sidecar(seen)


def _sidecar(seen: Observed) -> Failure | None:
    """Return that the submitter in the head's pod has ended: the pod cannot become ready, and KubeRay waits forever."""
    if deployment(seen.owner) != "Initializing":
        return None
    head = head_pod(seen.pods)
    for each in status_of(head).get("containerStatuses") or ():
        if each["name"] == _SUBMITTER and (end := each.get("state", {}).get("terminated")):
            words = f"container {_SUBMITTER} has ended (exit code {end['exitCode']}) before the cluster was ready, and "
            found = Failure("SubmitterEnded", f"{words}KubeRay waits for its pod, which cannot become ready any more")
            where = f"pod/{name_of(head)}: status.containerStatuses[{_SUBMITTER}].state.terminated"
            return complete(seen, found, where, pod=name_of(head), container=_SUBMITTER)
    return None


def _timeout(seen: Observed) -> Failure | None:
    ready = conditions(seen.owner).get("Ready", {})
    if ready.get("reason") != "InitializingTimeout":
        return None
    where = f"rayservice/{seen.name}: status.conditions[Ready].message"
    return _with_pods(seen, complete(seen, Failure("InitializingTimeout", ready.get("message", "")), where))


def _tried(seen: Observed) -> Failure | None:
    """Return what the operator keeps trying in vain, unless something that comes after it exists by now."""
    for event in events_about(seen, _owned(seen)):
        words = event.get("message", "")
        if _has_come(seen, str(event.get("reason"))):
            continue
        is_race = "already exists" in words and event.get("reason") != "FailedToCreateService"
        if event.get("reason") in _TRIED and times(event) >= LASTING and not is_race:
            return not_created(seen, event["reason"], words, event_place(event))
    return None


def _unapplied(seen: Observed) -> Failure | None:
    """Return why KubeRay cannot give Serve the configuration of a RayService since its last change."""
    for event in events_about(seen, (seen.name,), "RayService"):
        # What it said of the version before may be of the same second as the change.
        is_new = moment(event) > changed(seen.owner) and times(event) >= LASTING
        if event.get("reason") == UNAPPLIED and is_new:
            return complete(seen, Failure(UNAPPLIED, event.get("message", "")), event_place(event))
    return None


def _has_come(seen: Observed, reason: str) -> bool:
    if reason in _BEFORE_THE_CLUSTER:
        return bool(seen.cluster)
    return bool(seen.ray) or (reason in _BEFORE_PODS and bool(seen.pods))


def _views(seen: Observed) -> list[Pod]:
    return [_view(seen, pod) for pod in seen.pods]


def _view(seen: Observed, pod: Object) -> Pod:
    claims = events_about(seen, claims_of(pod), "PersistentVolumeClaim")
    return Pod(pod, events_about(seen, (name_of(pod),)), claims, seen.now, serves=clustercauses.serves(seen, pod))


def _owned(seen: Observed) -> tuple[str, ...]:
    return tuple(filter(None, (name_of(seen.owner), name_of(seen.cluster))))


#: The checks, in order. Those of an end come first: what pods say afterwards is its consequence.
_CHECKS: tuple[Callable[[Observed], Failure | None], ...] = (
    clustercauses.gone,
    _ended,
    _invalid,
    _timeout,
    _queued,
    clustercauses.suspended,
    _pods,
    clustercauses.replicas,
    clustercauses.deleted,
    clustercauses.head_lost,
    _submitter,
    _tried,
    _unapplied,
    clustercauses.operator,
    clustercauses.incomplete,
)
