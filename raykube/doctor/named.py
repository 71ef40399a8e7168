"""Whether what a manifest names is there: claims, ConfigMaps, Secrets, storage, and room in the quota."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from raykube import manifests, marks, notes
from raykube.backends.kuberay import dryrun, quotas
from raykube.backends.kubernetes.kubeapi import Kube, Object
from raykube.cluster import Cluster
from raykube.doctor.check import Check, looked
from raykube.errors import Forbidden, NotFound

#: If something that a manifest names is not there: whether that is wrong, and what becomes of the pods.
_WAITS = (False, "pods would wait for it")
_PULLS = (None, "nodes pull images without it, which is enough for public ones")
_WORDS = {"PersistentVolumeClaim": "claim", "ConfigMap": "configmap", "Secret": "secret"}
#: Where a pod names other objects: the key on the way to the name, the name's own key in volumes, and the kind.
_IN_VOLUMES = (
    ("persistentVolumeClaim", "claimName", "PersistentVolumeClaim"),
    ("configMap", "name", "ConfigMap"),
    ("secret", "secretName", "Secret"),
)
_IN_CONTAINERS = (
    ("configMapRef", "ConfigMap"),
    ("secretRef", "Secret"),
    ("configMapKeyRef", "ConfigMap"),
    ("secretKeyRef", "Secret"),
)


def checks(kube: Kube, cluster: Cluster) -> Iterator[Check]:
    """Look for everything that a cluster's manifest names."""
    spec = cluster.manifest["spec"]
    yield storage(cluster)
    yield from images(spec)
    for kind, name in sorted(needed := references(spec)):
        yield from looked(f"{_WORDS[kind]} {name}", functools.partial(_existence, kube, kind, name, _WAITS))
    for name in sorted(pull_secrets(spec) - {name for kind, name in needed if kind == "Secret"}):
        yield from looked(f"secret {name}", functools.partial(_existence, kube, "Secret", name, _PULLS))
    yield from looked("quota", lambda: quota(kube, cluster))


def storage(cluster: Cluster) -> Check:
    """Look where runs keep what must outlive their cluster."""
    if bare := "".join(notes.of_storage(cluster.manifest)):
        return Check("storage", None, bare, "add a volume to each template, and its volumeMount to the first container")
    if cluster.storage:
        return Check("storage", True, cluster.storage)
    found = "none: checkpoints, logs and results are lost with the cluster, and a retry starts anew"
    annotation = f"annotation {marks.STORAGE} of {cluster.name}"
    step = f"name a folder of a volume that all pods mount, or a bucket: {annotation}"
    return Check("storage", None, found, step)


def images(spec: Mapping[str, Any]) -> Iterator[Check]:
    """Look where no image is named, and what each one costs at the start of a pod; no registry is asked."""
    first = [container for pod in _pods(spec) for container in pod["containers"][:1]]
    for name in (container.get("name") for container in first if not container.get("image")):
        yield Check("image", False, f"container {name!r} has none: its pod would be refused", "give it one with Ray")
    for container in {each["image"]: each for each in first if each.get("image")}.values():
        image, policy = container["image"], container.get("imagePullPolicy", "")
        moves = image.rpartition("/")[2].partition(":")[2] in ("", "latest")
        if policy == "Always" or (moves and not policy):
            found = f"{image} is asked for at the registry at each start of a pod"
            yield Check("image", None, found, "name a fixed tag, and imagePullPolicy: IfNotPresent")
        elif policy == "Never":
            yield Check(
                "image", None, f"{image} must be on every node: its imagePullPolicy is Never", "use IfNotPresent"
            )
        else:
            yield Check("image", True, f"{image} is named; the first pod shows whether nodes can pull it")


def references(spec: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Return what the pods of a cluster cannot start without, as kind and name."""
    return {found for pod in _pods(spec) for found in _references(pod) if found[1]}


def pull_secrets(spec: Mapping[str, Any]) -> set[str]:
    """Return the Secrets with which nodes pull the images of a cluster; a node also tries without them."""
    named = [each.get("name") for pod in _pods(spec) for each in pod.get("imagePullSecrets") or []]
    return {name for name in named if name}


def _references(pod: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    volumes = pod.get("volumes") or []
    projected = [source for each in volumes for source in (each.get("projected") or {}).get("sources") or []]
    for source, (key, name, kind) in itertools.product([*volumes, *projected], _IN_VOLUMES):
        inner = source.get(key) or {}
        if not inner.get("optional"):
            yield kind, inner.get(name) or (inner.get("name") if source in projected else "") or ""
    containers = [*(pod.get("initContainers") or []), *pod["containers"]]
    env = [each.get("valueFrom") or {} for one in containers for each in one.get("env") or []]
    whole = [each for one in containers for each in one.get("envFrom") or []]
    for source, (key, kind) in itertools.product([*env, *whole], _IN_CONTAINERS):
        inner = source.get(key) or {}
        if not inner.get("optional"):
            yield kind, inner.get("name", "")


def _existence(kube: Kube, kind: str, name: str, otherwise: tuple[bool | None, str]) -> Iterator[Check]:
    title = f"{_WORDS[kind]} {name}"
    look = f"kubectl -n {kube.namespace} get {kind.lower()}s"
    try:
        yield bound(title, kube.get(kind, name), kube.namespace)
    except NotFound:
        ok, then = otherwise
        found = f"is not in {kube.namespace}: {then}"
        yield Check(title, ok, found, f"create it, or correct its name in the manifest: {look}")
    except Forbidden:
        # A job that waits for it will say so itself.
        yield Check(title, None, "you may not see whether it is there", f"an administrator sees it: {look}")


def bound(title: str, thing: Object, namespace: str) -> Check:
    """Look whether a claim has a volume that pods on many nodes can write to; any other object need only exist."""
    phase, modes = (thing.get("status") or {}).get("phase"), (thing.get("spec") or {}).get("accessModes") or []
    if thing["kind"] != "PersistentVolumeClaim":
        return Check(title, True, "is there")
    if phase != "Bound":
        step = f"see why no volume is bound: kubectl -n {namespace} describe pvc {thing['metadata']['name']}"
        # If its class waits for a first pod, the first job gets it bound.
        return Check(title, False if phase == "Lost" else None, f"is {phase}", step)
    if "ReadWriteMany" not in modes:
        step = "make a claim with accessModes: [ReadWriteMany]"
        return Check(title, None, f"{', '.join(modes)}: pods on different nodes cannot all write to it", step)
    return Check(title, True, f"is bound, {', '.join(modes)}")


def quota(kube: Kube, cluster: Cluster) -> Iterator[Check]:
    """Look whether the quotas that count all pods have room for a cluster, and whether one refuses its pods."""
    if not (found := kube.listed("ResourceQuota")):
        return
    spec = cluster.manifest["spec"]
    work = {"kind": "RayCluster", "metadata": {"name": cluster.name}, "spec": spec}
    refused = filter(None, (quotas.unset(problem.what) for problem in dryrun.refused_pods(kube, work)))
    unset = {name: Check(f"quota {name}", False, words, step) for name, words, step in refused}
    yield from unset.values()
    for name, short in quotas.compared(found, quotas.asked(spec)):
        step = "ask for less in the manifest, or for more quota; clusters of ended jobs: raykube cluster list"
        if short or name not in unset:
            yield Check(f"quota {name}", not short, "; ".join(short) or "has room for this cluster", step)


def _pods(spec: Mapping[str, Any]) -> Iterable[Any]:
    return [group["template"]["spec"] for group in manifests.groups(spec)]
