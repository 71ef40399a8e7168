"""What a run keeps in its cluster's storage, reached by a pod of a few seconds when no head does it.

A storage is a volume that only pods mount, or a bucket that only they have the keys of. The pod is made of the head's
own template, so it sees what the head sees; all of raykube that it runs is the text of one module.
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

_LIMIT_S = 300  # a node may have to be made for it
_POLL_S = 0.2
_TRIES = 3
_ANSWER = re.compile(r"^<(!|[A-Za-z0-9+/]*=*)>$", re.MULTILINE)
_HOPELESS = (*PULL, "CreateContainerConfigError")
_PORT = 8080
_CONTAINER = "storage"
_ENDED = "status.phase!=Pending,status.phase!=Running,status.phase!=Unknown"
_MODULE = Path(wire.__file__).parent / "inside" / "storage.py"


def read(kube: Kube, job: Object, file: str) -> bytes:
    """Return a file of a run; nothing when there is none, or no storage."""
    folder = storage_of(job)
    return (_data(kube, job, "cat", f"{folder}/{file}") if folder else None) or b""


def read_newest(kube: Kube, job: Object, file: str) -> bytes | None:
    """Return the file of that name which a stage or trial of a run wrote last; None where there is none."""
    folder = storage_of(job)
    return _data(kube, job, "newest", folder, file) if folder else None


def lost(job: Object, what: str, file: str) -> BackendError:
    """Return the error that something of a run that has ended is gone, for its storage has no such file."""
    folder, cluster = storage_of(job), selected(job)
    went = f"went with cluster {cluster}, or its node there" if cluster else "was lost with the node that it was on"
    longer = ", or give a longer --keep-cluster-s (of a RayJob of your own: ttlSecondsAfterFinished)"
    return BackendError(
        f"{what} is gone: it {went}",
        why=f"there is no {file} in {folder}" if folder else "the cluster names no storage that would have kept it",
        next_step="annotate the cluster's manifest with raykube.io/storage" + ("" if cluster else longer),
    )


def _data(kube: Kube, job: Object, verb: str, path: str, *more: str) -> bytes | None:
    """Return what a pod reads, as it is; None where there is nothing to be read."""
    for _ in range(_TRIES):
        if found := _ANSWER.search(_run(kube, job, verb, path, *more)):
            return None if found[1] == "!" else base64.b64decode(found[1])
    raise BackendError(
        f"the answer of the storage came in part ({verb} {path})",
        why="a node hands out only the end of a pod's log when that has just been put aside as full",
        next_step="ask again",
    )


@contextlib.contextmanager
def removed_with(kube: Kube, thing: Object, below: str = "") -> Iterator[None]:
    """Remove what a run keeps, or what lies `below`, then have the block delete its objects, however that went.

    Raises:
        BackendError: the objects are deleted, and what was kept is still there.
    """
    folder, failed = storage_of(thing), None
    folder += f"/{below}" if folder and below else ""
    try:
        if folder:
            _run(kube, thing, "remove", folder)
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
    """Put a file where the pods of a job that is to be created will find it, unless it is there already."""
    _sweep(kube)
    # All in the cluster's network reach the pod: it takes only the file that it was told of.
    with _pod(kube, job, "receive", path, str(_PORT), hashlib.sha256(data).hexdigest()) as name:
        there = f"/api/v1/namespaces/{kube.namespace}/pods/{name}:{_PORT}/proxy/"
        if not _is_there(kube, name, there):
            # It answers only once it has written.
            kube.send("POST", there, content=data, timeout=_LIMIT_S)


def _sweep(kube: Kube) -> None:
    """Remove the pods of clients that were killed while they wrote: there was no run yet for them to go with."""
    with contextlib.suppress(BackendError):  # it is in nobody's way
        for pod in kube.listed("Pod", labelSelector=f"{marks.OURS},{marks.RUN}", fieldSelector=_ENDED):
            late = kube.now() - seconds(pod["metadata"].get("creationTimestamp")) > _LIMIT_S  # nobody waits for it now
            if late and not pod["metadata"].get("ownerReferences"):
                with contextlib.suppress(NotFound):
                    kube.delete("Pod", name_of(pod))


def _is_there(kube: Kube, name: str, path: str) -> bool:
    """Wait until the pod answers, and return whether it has the file."""
    deadline = time.monotonic() + _LIMIT_S
    while True:
        try:
            kube.send("GET", path)
        except BackendError as error:
            # The server refuses what it cannot pass on: a pod that is not placed has no address.
            pod = kube.get("Pod", name)
            phase = pod["status"].get("phase")
            if phase == "Running" and not isinstance(error, Unreachable):  # the pod's own 404
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
        text = kube.pod_log(name, container=_CONTAINER)
    if not well:
        raise BackendError(f"{verb} {path} failed in the storage", why=text.strip()[-1000:])
    return text


def _state(pod: Object) -> Mapping[str, Any]:
    """Return the state of the pod's own container: others, that a cluster puts beside it, may go on for ever."""
    for each in status_of(pod).get("containerStatuses") or ():
        if each["name"] == _CONTAINER:
            return dict(each.get("state") or {})
    return {}


def _ended_well(pod: Object) -> bool | None:
    """Return whether the pod has done its work; None while it is at it."""
    if ended := _state(pod).get("terminated"):
        return bool(ended["exitCode"] == 0)
    return {"Succeeded": True, "Failed": False}.get(pod["status"].get("phase", ""))


def _never_starts(pod: Object) -> bool:
    return (_state(pod).get("waiting") or {}).get("reason") in _HOPELESS


def _late(pod: Object, what: str) -> BackendError:
    cause = cause_of(Pod(pod))
    why = f"{cause.reason}: {cause.message}" if cause else _unmet(pod)
    step = "look whether its volumes can be mounted: kubectl get pvc"
    # What else a cause says to do is about pods that stay, and that ask for what the manifest says.
    if cause and (_never_starts(pod) or (cause.reason == "Unschedulable" and "Insufficient" not in cause.message)):
        step = cause.next_step
    return BackendError(f"the storage could not be reached ({what})", why=why, next_step=step)


def _unmet(pod: Object) -> str:
    """Return what the pod says of itself: its conditions that come with words, else its message or phase."""
    status = status_of(pod)
    told = [f"{each.get('reason')}: {each['message']}" for each in conditions(pod).values() if each.get("message")]
    return "; ".join(told) or str(status.get("message") or status.get("phase"))


@contextlib.contextmanager
def _pod(kube: Kube, job: Mapping[str, Any], *words: str) -> Iterator[str]:
    """Have a pod that does this for as long as the block runs; give its name."""
    name = _created(kube, _body(kube, job, *words))
    try:
        yield name
    finally:
        with contextlib.suppress(NotFound):
            kube.delete("Pod", name, gracePeriodSeconds=0)


def _created(kube: Kube, pod: Mapping[str, Any]) -> str:
    try:
        return str(kube.create(pod)["metadata"]["name"])
    except ManifestError as error:  # a policy of the cluster, or the manifest's own mistake: no fault of who asks
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
    """Return the pod template of the head that runs a job, or would, as far as a pod needs it that reads the storage.

    Raises:
        NotFound: the cluster that it ran on is gone, and nobody has noted what its head saw.
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
