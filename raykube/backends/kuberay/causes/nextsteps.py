"""The next step for each cause that is found on Kubernetes, and the failure that says it. Pure functions."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from raykube.backends import endings
from raykube.backends.kuberay import quotas
from raykube.backends.kuberay.causes.observed import Observed
from raykube.backends.kubernetes.fields import Object, spec_of
from raykube.errors import Failure

_INSUFFICIENT = re.compile(r"Insufficient ([\w./-]*\w)")
_TAINT = re.compile(r"untolerated taint\(?s?\)? \{([^}]*)\}")
#: Taints of control planes, and of nodes that Kubernetes itself has found unfit to run pods.
_NOT_FOR_PODS = ("node-role.kubernetes.io/", "node.kubernetes.io/")
#: The end of a pod's name, of characters that Kubernetes draws; one that was never made has another in each try.
_DRAWN = re.compile(r'([Pp]ods? "[^"]+)-[bcdfghjklmnpqrstvwxz2456789]{5}"(?= is )')
_SECOND_RUN = "look at the log of the try before: kubectl -n {namespace} logs {pod} -c {container} --previous"
_PULL = "correct `image` in the manifest, or push it; a node must be able to pull it"

#: Filled in with: name (of the run, service or cluster), namespace, pod, container, again (how a corrected manifest is
#: sent), and what a check adds.
_STEPS = endings.NEXT_STEPS | {
    "ImageNotFound": _PULL,
    "ImagePullDenied": "see that `image` is right, then name a secret of {namespace} in the pods' imagePullSecrets",
    "ImagePullFailed": "see to it that the nodes reach the registry, or name an image that they have",
    "QuotaExceeded": "ask for less, or for more quota: kubectl -n {namespace} describe resourcequota",
    "ResourcesUnset": "{unset}, {again}",
    "Queued": "wait, or see what is before it: kubectl -n {namespace} get workloads",
    "Suspended": """kubectl -n {namespace} patch {thing} --type merge -p '{{"spec":{{"suspend":false}}}}'""",
    "Inadmissible": "correct the label kueue.x-k8s.io/queue-name: kubectl -n {namespace} get localqueues",
    "VolumeClaimMissing": "create the claim, or correct claimName in the manifest: kubectl -n {namespace} get pvc",
    "VolumeClaimUnbound": "see why no volume is bound: kubectl -n {namespace} describe pvc {claim}",
    "ConfigMapMissing": "create it, or correct its name in the manifest: kubectl -n {namespace} get configmaps",
    "SecretMissing": "create it, or correct its name in the manifest: kubectl -n {namespace} get secrets",
    "CrashLoopBackOff": _SECOND_RUN,
    "PodFailed": "look at the log of the next try: kubectl -n {namespace} logs {pod}",
    "RunContainerError": "correct command and args of container {container} in the manifest",
    "HeadOOMKilled": "raise limits.memory of the head ({limit} now), and keep work off it with num-cpus: '0'",
    "WorkerOOMKilled": "raise limits.memory of the worker group ({limit} now), or load less data at a time",
    "OutOfMemory": "raise limits.memory of the pod, or run fewer tasks at a time by giving each more num_cpus",
    "WorkerDied": "raise limits.memory of the pod if the kernel killed it for want of memory; else look for a crash of "
    "native code: raykube job logs {name}",
    "Evicted": "raise the requests in the pod's resources to what the message names",
    "NameTaken": "choose another --name, or remove what that run has kept: raykube job delete {name}",
    "RayVersionMismatch": "give all groups one image, and rayVersion the version of Ray in it",
    "PythonVersionMismatch": "give all groups, and whoever connects, the same minor version of Python",
    "OperatorNotRunning": "start it, or have it watch {namespace}: kubectl get deployments -A | grep kuberay-operator",
    "InvalidRayClusterSpec": "correct what the message names in the manifest, {again}",
    "InvalidRayJobSpec": "correct what the message names, delete the run and submit again",
    "InvalidRayServiceSpec": "correct what the message names and deploy again",
    "FailedToUpdateServeApplications": "deploy again, which writes serveConfigV2 anew; or correct it: kubectl -n "
    "{namespace} edit rayservice {name}",
    "PreRunningDeadlineExceeded": "ask for less (--workers, --entrypoint-num-cpus), or a longer --pending-timeout-s "
    "(of a RayJob of your own: preRunningDeadlineSeconds)",
    "DeadlineExceeded": "give it a longer --timeout-s (of a RayJob of your own: activeDeadlineSeconds), or less to do",
    "HeadLost": "wait for the new head, on which it starts again; a job resumes, if its script loads its checkpoint",
    "DriverDied": "submit it again under the same name: it resumes, if its script loads its checkpoint",
    "SubmissionFailed": "see what its submitter says: kubectl -n {namespace} logs -l job-name={name} --tail=20",
    "SubmitterEnded": "see what became of the job: kubectl -n {namespace} logs {pod} -c {container}; delete it, and "
    "submit it with submissionMode: HTTPMode, which has no such container",
    "NodeLost": "submit it again once the node is back or replaced: kubectl get nodes",
    "WorkerGroupIncomplete": "see what the worker waits for: kubectl -n {namespace} logs {pod} --all-containers",
    # KubeRay chooses the probes by rayVersion, and raykube cannot know which Ray a custom image has.
    "HeadNotReady": "see what the head waits for: kubectl -n {namespace} logs {pod}; if its probes fail, see that its "
    "image has the Ray of rayVersion: kubectl -n {namespace} exec {pod} -- ray --version",
    "InitializingTimeout": "annotate the manifest with a longer ray.io/initializing-timeout, as 60m, and deploy again",
    "FailedMount": "see what the volume waits for: kubectl -n {namespace} describe pod {pod}",
    "ClusterDeleted": "create cluster {cluster} again, then submit the run again under its name: it resumes, if its "
    "script loads its checkpoint",
    "RayClusterNotFound": "name a cluster that exists: raykube cluster list",
    "JobStatusCheckTimeoutExceeded": "see whether the head answers: kubectl -n {namespace} get pods",
}
#: Next steps for an eviction that a pod's resources are not to blame for, by the reason of its DisruptionTarget.
_DISRUPTED = {
    "PreemptionByScheduler": "give the pods a priorityClassName as high as that of what took their place, or wait for "
    "room",
    "EvictionByEvictionAPI": "wait for the new pod, as somebody drains the node; a job that has ended with the old one "
    "resumes when it is submitted again, if its script loads its checkpoint",
}
#: How a corrected manifest is sent, by the kind of the owner.
_AGAIN = {
    "rayjob": "delete the run and submit again",
    "rayservice": "then deploy again",
    "": "delete the cluster and create it again",
}
_OTHERWISE = "see what Kubernetes says: kubectl -n {namespace} get events --sort-by=.lastTimestamp"


class _Blank(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return f"<{key}>"


def next_step(reason: str, **words: str) -> str:
    """Return the next step for a reason, with names filled in from `words`."""
    return _STEPS.get(reason, _OTHERWISE).format_map(_Blank(words))


def complete(seen: Observed, found: Failure, where: str, like: str = "", **words: str) -> Failure:
    """Add where a cause was found and, unless it has one, the next step.

    If the reason `like` is given, the next step is that of `like`.
    """
    namespace = (seen.owner or seen.cluster).get("metadata", {}).get("namespace", "default")
    words |= {"name": seen.name, "namespace": namespace, "again": _AGAIN[owner_kind(seen.owner) if seen.owner else ""]}
    return replace(found, where=where, next_step=found.next_step or next_step(like or found.reason, **words))


def not_created(seen: Observed, reason: str, message: str, where: str) -> Failure:
    """Return the failure that an object was not created, from the operator's reason and message."""
    words = message.removeprefix(f"{reason}\n")  # the first line is all that is shown, and must not be the reason again
    words = _DRAWN.sub(r'\1-…"', words)  # else the same cause would be told as a new one at each try
    if unset := quotas.unset(words):
        return complete(seen, Failure("ResourcesUnset", words), where, unset=unset[2])
    found = Failure("QuotaExceeded" if "exceeded quota" in words else reason, words)
    return complete(seen, found, where, like="InvalidRayClusterSpec" if "is invalid:" in words else "")


def event_place(event: Object) -> str:
    """Return the words for where an event was found."""
    about = event["involvedObject"]
    return f"{about.get('kind', '').lower()}/{about.get('name')}: event {event.get('reason')}"


def owner_kind(owner: Object) -> str:
    """Return an owner's kind, judged by its spec: the API server leaves the kind out of lists."""
    return "rayservice" if "rayClusterConfig" in spec_of(owner) else "rayjob"


def after(disruption: str) -> str:
    """Return the next step for a pod that was taken from its node; "" when the general one for evictions applies."""
    return _DISRUPTED.get(disruption, "")


def to_fit(pod: Object, message: str) -> str:
    """Return the next step for a pod that the scheduler finds no node for, from the scheduler's message."""
    short = list(dict.fromkeys(_INSUFFICIENT.findall(message)))
    taints = [each for each in _TAINT.findall(message) if not each.startswith(_NOT_FOR_PODS)]
    tolerate = f"add a toleration for the taint {{{taints[0]}}} to the group's pod template" if taints else ""
    if short:
        return _smaller(pod, short) + (f", or {tolerate}" if tolerate else "")
    if "affinity/selector" in message:
        return _selected(pod)
    if "untolerated taint" in message and not _TAINT.search(message):  # from 1.34 on, the scheduler names no taints
        return "add a toleration to the group's pod template for a taint of: kubectl describe nodes | grep Taints"
    return tolerate or "see which nodes are ready and what they offer: kubectl describe nodes"


def _smaller(pod: Object, short: list[str]) -> str:
    """Return a next step that names what no node has, the rarest first: asking for less memory yields no GPU."""
    rarest = sorted(short, key=lambda name: name in ("cpu", "memory"))
    asked = ", ".join(f"{_asked(pod, name)} {name}" for name in rarest)
    return f"no node has {asked} free: ask for less in the group's resources, or add such a node"


def _selected(pod: Object) -> str:
    spec = spec_of(pod)
    wanted: Any = spec.get("nodeSelector") or (spec.get("affinity") or {}).get("nodeAffinity") or {}
    return f"no node has the labels {json.dumps(wanted)}: correct nodeSelector or affinity, or label a node"


def _asked(pod: Object, resource: str) -> str:
    """Return how much of a resource a pod asks for: the sum over its containers, as a term unless all are integers."""
    found = [_request(each, resource) for each in spec_of(pod).get("containers", ())]
    amounts = [each for each in found if each]
    return str(sum(map(int, amounts))) if all(each.isdigit() for each in amounts) else " + ".join(amounts)


def _request(container: Object, resource: str) -> str:
    resources = container.get("resources") or {}
    asked = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return str(asked.get(resource, ""))
