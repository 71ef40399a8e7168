"""A run's files in its cluster's storage, reached through a short-lived pod when there is no head to ask.

A storage is a volume that only pods mount, or a bucket that only pods have the keys to. The pod is made from the head's
own template, so it sees what the head sees; the only code of raykube that it runs is the text of one module.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raykube import marks, wire
from raykube.backends.kuberay.causes.podcauses import PULL, Pod, cause_of
from raykube.backends.kuberay.rayhead import cluster_spec
from raykube.backends.kuberay.runs.rayjobs import selected, storage_of
from raykube.backends.kubernetes.fields import annotations_of, conditions, name_of, seconds, spec_of, status_of
from raykube.backends.kubernetes.kubeapi import Kube, Object
from raykube.bodies import storage_template
from raykube.errors import BackendError, ManifestError, NotFound, Unreachable

_LIMIT_S = 300  # a node may have to be provisioned for the pod
_POLL_S = 0.2
_TRIES = 3
_ANSWER = re.compile(r"^<(!|[A-Za-z0-9+/]*=*)>$", re.MULTILINE)
_HOPELESS = (*PULL, "CreateContainerConfigError")
_PORT = 8080
_CONTAINER = "storage"
_REMOVE = "remove"
_ENDED = "status.phase!=Pending,status.phase!=Running,status.phase!=Unknown"
_MODULE = Path(wire.__file__).parent / "inside" / "storage.py"


def read(kube: Kube, job: Object, file: str) -> bytes:
    """Return the bytes of a run's file; empty when there is no such file, or no storage."""
    folder = storage_of(job)
    return (_data(kube, job, "cat", f"{folder}/{file}") if folder else None) or b""


def read_newest(kube: Kube, job: Object, file: str) -> bytes | None:
    """Return the newest `file` that a stage or trial of a run wrote; None when there is none, or no storage."""
    folder = storage_of(job)
    return _data(kube, job, "newest", folder, file) if folder else None


def lost(job: Object, what: str, file: str) -> BackendError:
    """Return the error that `what` of an ended run is lost, because there is no `file` in a storage."""
    folder, cluster = storage_of(job), selected(job)
    went = f"went with cluster {cluster}, or its node there" if cluster else "was lost with the node that it was on"
    longer = ", or give a longer --keep-cluster-s (of a RayJob of your own: ttlSecondsAfterFinished)"
    return BackendError(
        f"{what} is gone: it {went}",
        why=f"there is no {file} in {folder}" if folder else "the cluster names no storage that would have kept it",
        next_step="annotate the cluster's manifest with raykube.io/storage" + ("" if cluster else longer),
    )


def _data(kube: Kube, job: Object, verb: str, path: str, *more: str) -> bytes | None:
    """Return the bytes that a pod reads from the storage; None when there is no such file."""
    for _ in range(_TRIES):
        if found := _ANSWER.search(_run(kube, job, verb, path, *more)):
            return None if found[1] == "!" else base64.b64decode(found[1])
    raise BackendError(
        f"the answer of the storage came in part ({verb} {path})",
        why="a node hands out only the end of a pod's log when that has just been put aside as full",
        next_step="ask again",
    )


@contextlib.contextmanager
def files_removed_with(kube: Kube, thing: Object, below: str = "") -> Iterator[None]:
    """Remove a run's files, or only its folder `below`, then run the block, which deletes its objects in any case.

    Raises:
        BackendError: the objects are deleted, but the files could not be removed.
    """
    folder, failed = storage_of(thing), None
    folder += f"/{below}" if folder and below else ""
    try:
        if folder:
            _run(kube, thing, _REMOVE, folder)
    except BackendError as error:
        failed = error
    yield
    if failed:
        name = thing["metadata"]["name"]
        step = f"remove {folder} by hand, in a pod that reaches it"
        raise BackendError(
            f"{name} is deleted, but not what it kept in {folder}", why=str(failed), next_step=step
        ) from failed


def write(kube: Kube, job: Mapping[str, Any], path: str, data: bytes) -> None:
    """Put a file where the pods of a job, which is yet to be created, will find it, unless it is already there."""
    _sweep(kube)
    # Everything in the cluster's network can reach the pod, so it accepts only the file with this hash.
    with _pod(kube, job, "receive", path, str(_PORT), hashlib.sha256(data).hexdigest()) as name:
        there = f"/api/v1/namespaces/{kube.namespace}/pods/{name}:{_PORT}/proxy/"
        if not _is_there(kube, name, there):
            # The pod answers only once it has written the file.
            kube.send("POST", there, content=data, timeout=_LIMIT_S)


def _sweep(kube: Kube) -> None:
    """Remove the pods of clients that were killed while writing: no run existed yet that could have owned the pods."""
    with contextlib.suppress(BackendError):  # leftover pods are in nobody's way
        for pod in kube.listed("Pod", labelSelector=f"{marks.OURS},{marks.RUN}", fieldSelector=_ENDED):
            late = kube.now() - seconds(pod["metadata"].get("creationTimestamp")) > _LIMIT_S  # no client still waits
            if late and not pod["metadata"].get("ownerReferences"):
                with contextlib.suppress(NotFound):
                    kube.delete("Pod", name_of(pod))


def _is_there(kube: Kube, name: str, path: str) -> bool:
    """Wait until the pod answers; return whether the file is already there."""
    deadline = time.monotonic() + _LIMIT_S
    while True:
        try:
            kube.send("GET", path)
        except BackendError as error:
            # The server refuses a request that it cannot pass on: an unscheduled pod has no address.
            pod = kube.get("Pod", name)
            phase = pod["status"].get("phase")
            if phase == "Running" and not isinstance(error, Unreachable):  # the pod's own 404: no such file yet
                return False
            if time.monotonic() > deadline or _ended_well(pod) is not None or _never_starts(pod):
                raise _late(pod, f"write {name}") from error
        else:
            return True
        time.sleep(_POLL_S)


def _run(kube: Kube, job: Object, verb: str, path: str, *more: str) -> str:
    with _pod(kube, job, verb, path, *more) as name:
        deadline = time.monotonic() + _LIMIT_S
        while (well := _ended_well(pod := kube.get("Pod", name))) is None:
            if time.monotonic() > deadline or _never_starts(pod):
                raise _late(pod, f"{verb} {path}")
            time.sleep(_POLL_S)
        if well and verb == _REMOVE:  # it prints nothing, and not everybody may read logs
            return ""
        text = kube.pod_log(name, container=_CONTAINER) if well else _last_words(kube, name)
    if not well:
        raise BackendError(f"{verb} {path} failed in the storage", why=text)
    return text


def _last_words(kube: Kube, name: str) -> str:
    """Return the end of the log of a pod that failed, or why it cannot be read."""
    try:
        return kube.pod_log(name, container=_CONTAINER).strip()[-1000:]
    except BackendError as error:
        return f"its log cannot be read: {error}"


def _state(pod: Object) -> Mapping[str, Any]:
    """Return the state of the pod's own container; sidecars that a cluster injects may run forever."""
    for each in status_of(pod).get("containerStatuses") or ():
        if each["name"] == _CONTAINER:
            return dict(each.get("state") or {})
    return {}


def _ended_well(pod: Object) -> bool | None:
    """Whether the pod has done its work; None while it has not ended."""
    if ended := _state(pod).get("terminated"):
        return bool(ended["exitCode"] == 0)
    return {"Succeeded": True, "Failed": False}.get(pod["status"].get("phase", ""))


def _never_starts(pod: Object) -> bool:
    return (_state(pod).get("waiting") or {}).get("reason") in _HOPELESS


def _late(pod: Object, what: str) -> BackendError:
    cause = cause_of(Pod(pod))
    why = f"{cause.reason}: {cause.message}" if cause else _unmet(pod)
    step = "look whether its volumes can be mounted: kubectl get pvc"
    # Other next steps are about long-lived pods that request what the manifest says; this pod does not.
    if cause and (_never_starts(pod) or (cause.reason == "Unschedulable" and "Insufficient" not in cause.message)):
        step = cause.next_step
    return BackendError(f"the storage could not be reached ({what})", why=why, next_step=step)


def _unmet(pod: Object) -> str:
    """Return what the pod says of itself: its conditions that have a message, else its message or phase."""
    status = status_of(pod)
    told = [f"{each.get('reason')}: {each['message']}" for each in conditions(pod).values() if each.get("message")]
    return "; ".join(told) or str(status.get("message") or status.get("phase"))


@contextlib.contextmanager
def _pod(kube: Kube, job: Mapping[str, Any], *words: str) -> Iterator[str]:
    """Create a pod that runs the storage module with `words`; yield its name, and delete it after the block."""
    name = _created(kube, _body(kube, job, *words))
    try:
        yield name
    finally:
        with contextlib.suppress(NotFound):
            kube.delete("Pod", name, gracePeriodSeconds=0)


def _created(kube: Kube, pod: Mapping[str, Any]) -> str:
    try:
        return str(kube.create(pod)["metadata"]["name"])
    except ManifestError as error:  # by a policy of the cluster or a mistake in the manifest: not the user's fault
        step = "have it allowed a pod like the head's own, or correct the cluster's manifest"
        raise BackendError(
            "the cluster refuses the pod that reads the storage", why=str(error), next_step=step
        ) from error


def _body(kube: Kube, job: Mapping[str, Any], *words: str) -> dict[str, Any]:
    metadata, template = job["metadata"], _template(kube, job)
    said, pod = template["metadata"], template["spec"]
    own = {**marks.MANAGED_BY, marks.RUN: metadata["name"]}
    owner = [{"apiVersion": "ray.io/v1", "kind": job["kind"], "name": metadata["name"], "uid": metadata.get("uid")}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{metadata['name']}-storage-{secrets.token_hex(3)}",
            "labels": said["labels"] | own,
            "annotations": said["annotations"],
            "ownerReferences": owner if "uid" in metadata else [],
        },
        "spec": {
            **pod,
            "restartPolicy": "Never",
            "activeDeadlineSeconds": _LIMIT_S,
            "automountServiceAccountToken": "serviceAccountName" in pod,
            "containers": [_container(pod["containers"][0], words)],
        },
    }


def _template(kube: Kube, job: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a pod needs of the pod template of a job's head to see the same storage.

    Raises:
        NotFound: the cluster that the job ran on is gone, and the job has no note of the template.
    """
    spec = spec_of(job)
    cluster = spec.get("rayClusterSpec") or spec.get("rayClusterConfig")
    try:
        cluster = cluster or cluster_spec(kube, job)
    except NotFound as error:
        if noted := annotations_of(job).get(marks.STORAGE_POD):
            return dict(json.loads(noted))
        step = "make a cluster of that name again, from its manifest: raykube cluster create"
        what = f"the cluster is gone that {job['metadata']['name']} ran on, and with it the way to its storage"
        raise NotFound(what, why=error.why or error.what, next_step=step) from error
    return storage_template(cluster["headGroupSpec"]["template"])


def _container(head: Mapping[str, Any], words: tuple[str, ...]) -> dict[str, Any]:
    return {
        **head,
        "name": _CONTAINER,
        "command": ["python", "-c", _MODULE.read_text(encoding="utf-8"), *words],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
    }
