"""What keeps a RayCluster from being complete, apart from what its pods themselves say. Pure functions."""

from __future__ import annotations

import re

from raykube import marks
from raykube.backends.kuberay.causes.nextsteps import complete, event_place, not_created, owner_kind
from raykube.backends.kuberay.causes.observed import Observed, events_about, head_pod
from raykube.backends.kuberay.runs.rayjobs import (
    cluster_name,
    deployment,
    has_code_in_head,
    is_kuberays,
    is_overdue,
    is_suspended,
    selected,
)
from raykube.backends.kubernetes.fields import (
    Object,
    changed,
    conditions,
    is_current,
    is_leaving,
    is_ready,
    is_true,
    labels_of,
    moment,
    name_of,
    seconds,
    spec_of,
    status_of,
)
from raykube.errors import Failure

#: Seconds without a status before the operator is taken to be down or busy; it normally takes less than one.
OPERATOR_S = 5.0
#: Seconds before a change of a service is reported as not taken up: the operator looks at a service every 2 s, and
#: takes up a change only after it has reached the head.
UNSEEN_S = 30.0
#: Seconds before an unready pod is reported: it may be pulling a large image, and nobody says how far that is.
INCOMPLETE_S = 180.0
#: Seconds before an unready head is reported: a busy head misses a probe now and then.
UNREADY_S = 30.0

_EXIT_CODE = re.compile(r"ContainerStateTerminated\{ExitCode:(\d+)")
_ENDED_FROM_OUTSIDE = ("0", "137", "143")
_DELETED = {"DeletedHeadPod": "HeadOOMKilled", "DeletedWorkerPod": "WorkerOOMKilled"}


def replicas(seen: Observed) -> Failure | None:
    """Return why pods were not created: a pod that does not exist cannot say so itself."""
    if is_true(seen.cluster, "ReplicaFailure"):
        found = conditions(seen.cluster)["ReplicaFailure"]
        where = f"raycluster/{name_of(seen.cluster)}: status.conditions[ReplicaFailure].message"
        return not_created(seen, found.get("reason", ""), found.get("message", ""), where)
    # Operators before 1.2 write no conditions; with later ones an event without the condition is about the past.
    for event in () if conditions(seen.cluster) else events_about(seen, (name_of(seen.cluster),)):
        if event.get("reason") in ("FailedToCreateHeadPod", "FailedToCreateWorkerPod"):
            return not_created(seen, event["reason"], event.get("message", ""), event_place(event))
    return None


def deleted(seen: Observed) -> Failure | None:
    """Return what a deleted pod died of: if it is not to restart, it is deleted at once, and only an event tells."""
    for event in events_about(seen, (name_of(seen.cluster),)) if _is_short(seen) else ():
        if event.get("reason") in _DELETED and (reason := _died_of(event)):
            words = {"limit": "too little", "pod": f"-f -l {marks.CLUSTER}={name_of(seen.cluster)}"}
            return complete(seen, Failure(reason, event["message"]), event_place(event), **words)
    return None


def _died_of(event: Object) -> str:
    message = event.get("message", "")
    code = _EXIT_CODE.search(message)
    if "Reason:OOMKilled" in message:
        return _DELETED[event["reason"]]
    return "PodFailed" if code and code.group(1) not in _ENDED_FROM_OUTSIDE else ""


def _is_unseen(seen: Observed) -> bool:
    """Whether pods were not read yet, or may not be: none is known, but the cluster says that its head is ready."""
    return not seen.pods and is_true(seen.cluster, "HeadPodReady")


def _is_short(seen: Observed) -> bool:
    if _is_unseen(seen):
        return False
    ready = [pod for pod in seen.pods if _is_up(seen, pod) and not is_leaving(pod)]
    return not head_pod(tuple(ready)) or len(ready) - 1 < status_of(seen.cluster).get("desiredWorkerReplicas", 0)


def _is_up(seen: Observed, pod: Object) -> bool:
    """Whether a pod is as it should be; KubeRay keeps a service's worker unready while no replica is on it."""
    return is_ready(pod) or (serves(seen, pod) and _runs(pod))


def serves(seen: Observed, pod: Object) -> bool:
    """Whether a pod is a worker of a service, which is ready only while Serve answers on it."""
    return owner_kind(seen.owner) == "rayservice" and labels_of(pod).get(marks.NODE_TYPE) == "worker"


def _runs(pod: Object) -> bool:
    states = [each.get("state") or {} for each in status_of(pod).get("containerStatuses") or ()]
    return bool(states) and all("running" in state for state in states)


def head_lost(seen: Observed) -> Failure | None:
    """Return that the head was lost: in HTTPMode, KubeRay starts the run again on a new head, and does not say so."""
    provisioned = conditions(seen.cluster).get("RayClusterProvisioned", {})
    if provisioned.get("status") != "True" or is_leaving(seen.cluster) or is_suspended(seen.owner) or _is_unseen(seen):
        return None
    head = head_pod(seen.pods)
    if not head or is_leaving(head):
        return _lost(
            seen, "the head pod is gone", f"raycluster/{name_of(seen.cluster)}: status.conditions[HeadPodReady]"
        )
    if is_ready(head):
        return None
    return _unready(seen, head, seconds(provisioned.get("lastTransitionTime")))


def _unready(seen: Observed, head: Object, since: float) -> Failure | None:
    where = f"pod/{name_of(head)}: status.conditions[Ready]"
    restarted = any(each.get("restartCount") for each in status_of(head).get("containerStatuses") or ())
    if restarted or seconds(head["metadata"].get("creationTimestamp")) > since:
        return _lost(seen, "a new head is starting", where)
    ready = conditions(head).get("Ready", {})
    if seen.now - seconds(ready.get("lastTransitionTime")) < UNREADY_S:
        return None
    return complete(seen, Failure("HeadNotReady", ready.get("message", "")), where, pod=name_of(head))


def _lost(seen: Observed, words: str, where: str) -> Failure:
    like = "CodeLost" if has_code_in_head(seen.owner) else ""
    return complete(seen, Failure("HeadLost", _head_words(seen, words)), where, like)


def _head_words(seen: Observed, otherwise: str) -> str:
    if is_true(seen.cluster, "HeadPodReady"):
        return otherwise
    found = conditions(seen.cluster).get("HeadPodReady", {})
    told = ": ".join(filter(None, (found.get("reason"), found.get("message"))))
    return f"{otherwise} ({told})" if told else otherwise


def operator(seen: Observed) -> Failure | None:
    """Return that the operator does not run: it writes a status at once. Objects of other controllers are skipped."""
    if is_overdue(seen.owner, seen.now):
        words = f"rayjob {seen.name} waits for longer than it may, and nobody ends it"
        where = f"rayjob/{seen.name}: spec.preRunningDeadlineSeconds"
        return complete(seen, Failure("OperatorNotRunning", words), where)
    for kind, thing in ((owner_kind(seen.owner), seen.owner), ("raycluster", seen.cluster)):
        if not thing or status_of(thing) or not is_kuberays(thing):
            continue
        age = seen.now - seconds(thing["metadata"].get("creationTimestamp"))
        if age > OPERATOR_S and not events_about(seen, (name_of(thing),)):
            words = f"{kind} {name_of(thing)} still has no status {OPERATOR_S:g} s after it was created"
            return complete(seen, Failure("OperatorNotRunning", words), f"{kind}/{name_of(thing)}: status")
    return _unseen(seen)


def _unseen(seen: Observed) -> Failure | None:
    """Return that the operator has neither taken up a change of a service, made a while ago, nor said why."""
    since = changed(seen.owner)
    if not since or is_current(seen.owner) or seen.now - since <= UNSEEN_S:
        return None
    if owner_kind(seen.owner) != "rayservice" or not is_kuberays(seen.owner):
        return None
    if any(moment(event) >= since for event in events_about(seen, (seen.name, name_of(seen.cluster)))):
        return None
    words = f"rayservice {seen.name} was changed, and {UNSEEN_S:g} s later the operator has not taken that up"
    return complete(seen, Failure("OperatorNotRunning", words), f"rayservice/{seen.name}: status.observedGeneration")


def has_lost_its_cluster(seen: Observed) -> bool:
    """Whether the long-lived cluster on which a run has begun is gone; KubeRay says so too, and waits for it."""
    status = status_of(seen.owner)
    begun = seconds((status.get("rayJobInfo") or {}).get("startTime"))
    if not (begun and selected(seen.owner)):
        return False
    ended = status.get("jobStatus") in ("SUCCEEDED", "STOPPED", "FAILED")  # and KubeRay has yet to conclude it
    if deployment(seen.owner) != "Running" or ended or seen.cluster or seen.ray:
        return False
    told = (event for event in events_about(seen, (seen.name,)) if event.get("reason") == "RayClusterNotFound")
    return any(moment(event) > begun for event in told)


def gone(seen: Observed) -> Failure | None:
    """Return that the long-lived cluster of a run was deleted while the run was on it."""
    if not has_lost_its_cluster(seen):
        return None
    name = cluster_name(seen.owner)
    found = Failure("ClusterDeleted", f"cluster {name} was deleted while the run was on it")
    return complete(seen, found, f"raycluster/{name}", cluster=name)


def incomplete(seen: Observed) -> Failure | None:
    """Return that a pod is not ready after a long time, and nothing says why."""
    late = [pod for pod in seen.pods if not _is_up(seen, pod) and _age(seen, pod) > INCOMPLETE_S]
    if not late:
        return None
    pod = min(late, key=lambda pod: (pod is not head_pod(seen.pods), name_of(pod)))
    words = conditions(pod).get("Ready", {}).get("message") or f"pod {name_of(pod)} is {status_of(pod).get('phase')}"
    if pod is head_pod(seen.pods):
        found = Failure("HeadNotReady", words)
    else:
        found = Failure("WorkerGroupIncomplete", f"{_counted(seen)} after {INCOMPLETE_S:g} s: {words}")
    return complete(seen, found, f"pod/{name_of(pod)}: status.conditions[Ready].message", pod=name_of(pod))


def _counted(seen: Observed) -> str:
    status = status_of(seen.cluster)
    ready, desired = status.get("readyWorkerReplicas", 0), status.get("desiredWorkerReplicas", "?")
    return f"{ready} of {desired} workers are ready"


def _age(seen: Observed, pod: Object) -> float:
    """Return for how many seconds a pod has not been ready."""
    since = conditions(pod).get("Ready", {}).get("lastTransitionTime")
    return seen.now - max(seconds(since), seconds(pod["metadata"].get("creationTimestamp")))


def suspended(seen: Observed) -> Failure | None:
    """Return that the owner or its cluster is suspended; if Kueue suspends a run, the run's Workload says more."""
    for kind, thing in ((owner_kind(seen.owner), seen.owner), ("raycluster", seen.cluster)):
        queue = labels_of(thing).get(marks.QUEUE)
        if not _is_held(kind, thing) or (kind == "rayjob" and (seen.workload or queue)):
            continue
        words = (
            f"spec.suspend is true: KubeRay makes no {'pods' if kind == 'raycluster' else 'cluster'} as long as it is"
        )
        found = Failure("Queued", f"Kueue has not admitted it to queue {queue}; {words}")
        found = found if queue else Failure("Suspended", words)
        return complete(seen, found, f"{kind}/{name_of(thing)}: spec.suspend", thing=f"{kind} {name_of(thing)}")
    return None


def _is_held(kind: str, thing: Object) -> bool:
    """Whether ``spec.suspend`` holds an object back; a run may first have to be stopped, and then counts as held."""
    held = bool(spec_of(thing).get("suspend"))
    return held and (kind != "rayjob" or deployment(thing) == "Suspended")
