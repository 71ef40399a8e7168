"""What a run keeps in its cluster's storage, when the cluster is gone: read by a pod of a few seconds.

A storage is a volume that only pods mount, or a bucket that only they have the keys of. The pod is made of the head's
own template, so it sees what the head saw.
"""

from __future__ import annotations

import copy
import secrets
import time
from collections.abc import Mapping
from typing import Any

from raykube.backends.kubeapi import Kube, Object
from raykube.bodies import CODE_MOUNT
from raykube.cluster import STORAGE_ANNOTATION
from raykube.errors import BackendError

_LIMIT_S = 120
_POLL_S = 0.2
_KEPT = ("volumes", "serviceAccountName", "imagePullSecrets", "nodeSelector", "tolerations", "securityContext")
_KEPT_IN_CONTAINER = ("image", "imagePullPolicy", "env", "envFrom", "volumeMounts", "securityContext")


def storage_of(job: Object) -> str:
    """Return the folder or URI below which a run's files lie; "" when its cluster has no storage."""
    base = (job["metadata"].get("annotations") or {}).get(STORAGE_ANNOTATION, "")
    return f"{base.rstrip('/')}/{job['metadata']['name']}" if base else ""


def read(kube: Kube, job: Object, file: str) -> bytes:
    """Return a file of a run; nothing when there is none, or no storage."""
    folder = storage_of(job)
    return _run(kube, job, "cat", f"{folder}/{file}").encode() if folder else b""


def remove(kube: Kube, job: Object) -> None:
    """Remove all that a run keeps."""
    if folder := storage_of(job):
        _run(kube, job, "remove", folder)


def _run(kube: Kube, job: Object, verb: str, path: str) -> str:
    made = kube.create(_pod(job, verb, path))
    name = made["metadata"]["name"]
    try:
        return _output(kube, name, f"{verb} {path}")
    finally:
        kube.delete("Pod", name, gracePeriodSeconds=0)


def _output(kube: Kube, name: str, what: str) -> str:
    deadline = time.monotonic() + _LIMIT_S
    while (pod := kube.get("Pod", name))["status"].get("phase") not in ("Succeeded", "Failed"):
        if time.monotonic() > deadline:
            raise BackendError(
                f"the storage could not be reached within {_LIMIT_S} s ({what})",
                why=str(pod["status"].get("conditions")),
                next_step=f"kubectl describe pod {name}",
            )
        time.sleep(_POLL_S)
    text = kube.pod_log(name)
    if pod["status"]["phase"] == "Failed":
        raise BackendError(f"the storage says no ({what})", why=text.strip()[-1000:])
    return text


def _pod(job: Object, verb: str, path: str) -> dict[str, Any]:
    metadata = job["metadata"]
    template = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    pod = {key: copy.deepcopy(template[key]) for key in _KEPT if key in template}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{metadata['name']}-storage-{secrets.token_hex(3)}",
            "labels": {"app.kubernetes.io/managed-by": "raykube", "raykube.io/run": metadata["name"]},
            "ownerReferences": [_owner(job)],
        },
        "spec": {
            **pod,
            "restartPolicy": "Never",
            "activeDeadlineSeconds": _LIMIT_S,
            "automountServiceAccountToken": "serviceAccountName" in pod,
            "containers": [_container(template["containers"][0], verb, path)],
        },
    }


def _owner(job: Object) -> dict[str, Any]:
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", **{key: job["metadata"][key] for key in ("name", "uid")}}


def _container(head: Mapping[str, Any], verb: str, path: str) -> dict[str, Any]:
    kept = {key: copy.deepcopy(head[key]) for key in _KEPT_IN_CONTAINER if key in head}
    # The code package holds the module; in it all lies in one folder.
    find = f"import glob, sys; sys.path[:0] = [z + '/raykube-code' for z in glob.glob('{CODE_MOUNT}/*.zip')]"
    command = f"{find}; import runpy; runpy.run_module('raykube.inside.storage', run_name='__main__')"
    return {
        **kept,
        "name": "storage",
        "command": ["python", "-c", command, verb, path],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}},
    }
