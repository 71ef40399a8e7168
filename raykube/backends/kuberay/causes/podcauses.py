"""What keeps one pod from running, or what ended it. Pure functions of the pod and its events.

KubeRay repeats next to nothing of this in its own objects, so most causes are found here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from raykube.backends import endings
from raykube.backends.kuberay.causes.nextsteps import after, next_step, to_fit
from raykube.backends.kuberay.causes.observed import is_head
from raykube.backends.kubernetes.fields import (
    Object,
    claims_of,
    conditions,
    is_true,
    name_of,
    seconds,
    spec_of,
    status_of,
    times,
)
from raykube.errors import Failure

#: Events that Kubernetes repeats are believed from the third time on: what is missing is often there a moment later.
LASTING = 3
#: Seconds before an unbound claim is reported; on-demand provisioning takes that long.
_BINDING_S = 3.0
_CRASHES = 2
#: Seconds that a container must run after an end to count as recovered from it.
_RECOVERED_S = 60.0

PULL = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
_DENIED = re.compile(r"\b40[13]\b|denied|unauthorized|authorization|authentication required|forbidden", re.IGNORECASE)
_NO_IMAGE = re.compile(
    r"not found|notfound|manifest unknown|no such image|not present|invalid reference|couldn't parse|\b404\b",
    re.IGNORECASE,
)
_MISSING = re.compile(
    r"""(configmap|secret)\b.*(not found|non-existent|doesn't exist)|couldn't find key""", re.IGNORECASE
)
_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)" (?:not found|is being deleted)|claim "([^"]+)" not found')
_MOUNTS = ("FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox")
_CREATION = ("CreateContainerError", "RunContainerError", "PostStartHookError")
_NODE_GONE = ("DeletionByTaintManager", "DeletionByPodGC")


@dataclass(frozen=True)
class Pod:
    """A pod and the events about it.

    Attributes:
        thing: the pod.
        events: those about the pod, newest first.
        claims: the events about the volume claims that it uses, newest first.
        now: Unix time in seconds; 0 when it is not known.
        serves: whether it is a service's worker, which is not ready while no replica is on it.
    """

    thing: Object
    events: tuple[Object, ...] = ()
    claims: tuple[Object, ...] = ()
    now: float = 0.0
    serves: bool = False

    @property
    def name(self) -> str:
        """Its name."""
        return name_of(self.thing)

    @property
    def is_head(self) -> bool:
        """Whether Ray's head is in it."""
        return is_head(self.thing)

    @property
    def rays(self) -> str:
        """The name of the container that runs Ray: the first, by KubeRay's rule."""
        return next((str(each["name"]) for each in spec_of(self.thing).get("containers") or ()), "")

    @property
    def status(self) -> Object:
        """Its status; empty before anybody has written one."""
        return status_of(self.thing)

    def containers(self) -> Iterator[tuple[str, Object]]:
        """Yield the place and the status of each container."""
        for kind in ("initContainerStatuses", "containerStatuses"):
            for each in self.status.get(kind) or ():
                yield f"status.{kind}[{each['name']}]", each

    def waiting(self) -> Iterator[tuple[str, Object, str, str]]:
        """Yield place, container, reason and message of each container that waits."""
        for place, each in self.containers():
            if found := (each.get("state") or {}).get("waiting"):
                yield f"{place}.state.waiting", each, found.get("reason", ""), found.get("message", "")

    def ended(self) -> Iterator[tuple[str, Object, Object]]:
        """Yield place, container and termination state for each end of a container that is still recorded."""
        for place, each in self.containers():
            for state in ("state", "lastState"):
                if found := (each.get(state) or {}).get("terminated"):
                    yield f"{place}.{state}.terminated", each, found

    def is_well(self, container: Object) -> bool:
        """Whether a container has recovered from an earlier end: it is ready or, in a service's worker, runs on."""
        began = ((container.get("state") or {}).get("running") or {}).get("startedAt")
        runs_on = self.serves and began and self.now - seconds(began) > _RECOVERED_S
        return bool(container.get("ready") or runs_on)

    def failure(self, reason: str, message: str, place: str, *, step: str = "", **words: str) -> Failure:
        """Return the failure that was found at `place` in this pod."""
        names = {"namespace": self.thing["metadata"].get("namespace", "default"), "pod": self.name, **words}
        return Failure(reason, message, next_step=step or next_step(reason, **names), where=f"pod/{self.name}: {place}")


Check = Callable[[Pod], "Failure | None"]


def cause_of(pod: Pod) -> Failure | None:
    """Return what is wrong with a pod; None when nothing is, or the pod only needs more time."""
    return next((found for check in _CHECKS if (found := check(pod))), None)


def departure_of(pod: Pod) -> Failure | None:
    """Return what removes a pod from outside: the loss of its node, or an eviction."""
    return _node(pod) or _evicted(pod)


def loss_of(pod: Pod, since: float) -> Failure | None:
    """Return what ended Ray in a pod since a time, even if Ray was restarted there.

    Earlier ends were another run's. The end of a container beside Ray's, such as the autoscaler's, does not end a run.
    """
    return _memory(pod, lambda each, end: each["name"] == pod.rays and _is_since(end, since)) or departure_of(pod)


def _is_since(end: Object, moment: float) -> bool:
    return "finishedAt" not in end or seconds(end["finishedAt"]) >= moment


def _image(pod: Pod) -> Failure | None:
    for place, _, reason, message in pod.waiting():
        if reason in PULL:
            return pod.failure(_pull_reason(reason, message), message or reason, f"{place}.message")
    return None


def _pull_reason(reason: str, message: str) -> str:
    """Return why a pull failed. A registry that hides images from strangers names both reasons: denied is likelier."""
    if _DENIED.search(message):
        return "ImagePullDenied"
    named = reason in ("InvalidImageName", "ErrImageNeverPull") or _NO_IMAGE.search(message)
    return "ImageNotFound" if named else "ImagePullFailed"


def _config(pod: Pod) -> Failure | None:
    for place, _, reason, message in pod.waiting():
        if reason == "CreateContainerConfigError":
            return pod.failure(_missing(message) or reason, message, f"{place}.message")
    return None


def _missing(message: str) -> str:
    if not _MISSING.search(message):
        return ""
    return "SecretMissing" if "secret" in message.lower() else "ConfigMapMissing"


def _mount(pod: Pod) -> Failure | None:
    """Return a failed mount, but only while the pod has not started: what was mounted in the end was just late."""
    if pod.status.get("phase") != "Pending":
        return None
    for event in pod.events:
        if event.get("reason") in _MOUNTS and times(event) >= LASTING:
            message = event.get("message", "")
            return pod.failure(_missing(message) or event["reason"], message, f"event {event['reason']}")
    return None


def _unscheduled(pod: Pod) -> Failure | None:
    found = conditions(pod.thing).get("PodScheduled", {})
    if found.get("status") != "False" or found.get("reason") == "SchedulingGated":
        return None
    message, place = found.get("message", ""), "status.conditions[PodScheduled].message"
    if _CLAIM.search(message):
        return pod.failure("VolumeClaimMissing", message, place)
    if "unbound" in message and "PersistentVolumeClaim" in message:
        return _unbound(pod, message, place) if _lasts(pod, found, _BINDING_S) else None
    if not message:
        return None
    return pod.failure("Unschedulable", message, place, step=to_fit(pod.thing, message))


def _unbound(pod: Pod, message: str, place: str) -> Failure:
    """Return that a claim is unbound, with the reason from its own events: the scheduler does not know it."""
    told = next((each["message"] for each in pod.claims if each.get("message")), "")
    claim = next(iter(claims_of(pod.thing)), "")
    return pod.failure("VolumeClaimUnbound", f"{message}: {told}" if told else message, place, claim=claim)


def _lasts(pod: Pod, condition: Object, least_s: float) -> bool:
    return not pod.now or pod.now - seconds(condition.get("lastTransitionTime")) >= least_s


def _oom(pod: Pod) -> Failure | None:
    return _memory(pod, lambda container, _: not pod.is_well(container))


def _memory(pod: Pod, counts: Callable[[Object, Object], bool]) -> Failure | None:
    for place, each, end in pod.ended():
        if end.get("reason") == "OOMKilled" and counts(each, end):
            words = f"container {each['name']}: OOMKilled, exit code {end.get('exitCode')}"
            reason = "HeadOOMKilled" if pod.is_head else "WorkerOOMKilled"
            return pod.failure(reason, words, f"{place}.reason", limit=_limit(pod, each["name"]))
    return None


def _limit(pod: Pod, container: str) -> str:
    spec = spec_of(pod.thing)
    for each in (*(spec.get("containers") or ()), *(spec.get("initContainers") or ())):
        if each["name"] == container:
            return str(((each.get("resources") or {}).get("limits") or {}).get("memory", "none"))
    return "none"


def _versions(pod: Pod) -> Failure | None:
    for place, each, end in pod.ended():
        if not pod.is_well(each) and (found := endings.mismatch(end.get("message") or "")):
            return pod.failure(*found, f"{place}.message")
    return None


def _creation(pod: Pod) -> Failure | None:
    for place, _, reason, message in pod.waiting():
        if reason in _CREATION:
            return pod.failure(reason, message, f"{place}.message")
    return None


def _crash(pod: Pod) -> Failure | None:
    """Return that a container crashes again and again, even if it runs for a moment between two crashes."""
    for place, each, end in pod.ended():
        waits = ((each.get("state") or {}).get("waiting") or {}).get("reason") == "CrashLoopBackOff"
        again = each.get("restartCount", 0) >= _CRASHES
        if not pod.is_well(each) and (waits or (again and end.get("exitCode"))):
            return _crashed(pod, "CrashLoopBackOff", place, each, end)
    return None


def _dead(pod: Pod) -> Failure | None:
    """Return how a pod failed that will not be restarted: by the end of a container, if there is one."""
    if pod.status.get("phase") != "Failed":
        return None
    for place, each, end in pod.ended():
        if end.get("exitCode"):
            return _crashed(pod, "PodFailed", place, each, end)
    message = pod.status.get("message") or "the pod has failed"
    return pod.failure(pod.status.get("reason") or "PodFailed", message, "status.message")


def _crashed(pod: Pod, reason: str, place: str, container: Object, end: Object) -> Failure:
    name, count = container["name"], container.get("restartCount", 0)
    words = f"container {name} ended with exit code {end['exitCode']} ({end.get('reason', 'Error')}), {count} restarts"
    last = endings.tail_of(end.get("message") or "")
    if end.get("reason") in ("StartError", "ContainerCannotRun"):
        return pod.failure("RunContainerError", end.get("message") or words, f"{place}.message", container=name)
    return pod.failure(reason, f"{words}: {last[-1].strip()}" if last else words, place, container=name)


def _evicted(pod: Pod) -> Failure | None:
    """Return that a pod was evicted; the kubelet's event tells it seconds before the pod's status does."""
    target = conditions(pod.thing).get("DisruptionTarget", {})
    if pod.status.get("reason") == "Evicted":
        return pod.failure("Evicted", pod.status.get("message") or "Evicted", "status.message")
    if is_true(pod.thing, "DisruptionTarget") and target.get("reason") not in _NODE_GONE:
        by = target.get("reason", "")
        words, place = target.get("message") or by, "status.conditions[DisruptionTarget].message"
        return pod.failure("Evicted", words, place, step=after(by))
    told = next((each for each in pod.events if each.get("reason") == "Evicted"), None)
    return None if told is None else pod.failure("Evicted", told.get("message", ""), "event Evicted")


def _node(pod: Pod) -> Failure | None:
    target = conditions(pod.thing).get("DisruptionTarget", {})
    if is_true(pod.thing, "DisruptionTarget") and target.get("reason") in _NODE_GONE:
        words = target.get("message") or target["reason"]
        return pod.failure("NodeLost", words, "status.conditions[DisruptionTarget].message")
    if pod.status.get("reason") in ("NodeLost", "NodeShutdown", "Terminated"):
        return pod.failure("NodeLost", pod.status.get("message") or pod.status["reason"], "status.message")
    return _unready_node(pod)


def _unready_node(pod: Pod) -> Failure | None:
    """Return that a pod's node is silent: its containers still look ready, and only its Ready condition is false."""
    ready = conditions(pod.thing).get("Ready", {}).get("status")
    for event in pod.events if ready == "False" else ():
        if event.get("reason") == "NodeNotReady":
            return pod.failure("NodeLost", event.get("message", ""), "event NodeNotReady")
    return None


#: The checks of a pod, in order: what explains more comes first.
_CHECKS: tuple[Check, ...] = (
    _node,
    _evicted,
    _unscheduled,
    _image,
    _config,
    _mount,
    _oom,
    _versions,
    _creation,
    _crash,
    _dead,
)
