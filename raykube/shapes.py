"""The types of the values in a manifest, as far as raykube reads them.

A shape looks like what it describes: a dict stands for a mapping, of which these keys matter; a list stands for a list
whose entries all have the shape of its one entry; 0 stands for a whole number, "" for text. The API server checks the
rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raykube.errors import Problem

_CONTAINER: Mapping[str, Any] = {
    "image": "",
    "env": [{"valueFrom": {"secretKeyRef": {}, "configMapKeyRef": {}}}],
    "envFrom": [{"secretRef": {}, "configMapRef": {}}],
    "ports": [{"name": "", "containerPort": 0}],
    "resources": {"limits": {}, "requests": {}},
    "volumeMounts": [{"mountPath": ""}],
}
_VOLUME: Mapping[str, Any] = {
    "persistentVolumeClaim": {},
    "configMap": {},
    "secret": {},
    "projected": {"sources": [{"configMap": {}, "secret": {}}]},
}
_TEMPLATE = {
    "metadata": {"labels": {}, "annotations": {}},
    "spec": {
        "containers": [_CONTAINER],
        "initContainers": [_CONTAINER],
        "imagePullSecrets": [{}],
        "volumes": [_VOLUME],
    },
}
_GROUP = {"rayStartParams": {}, "resources": {}, "numOfHosts": 0, "template": _TEMPLATE}
_CLUSTER_SPEC = {
    "headGroupSpec": _GROUP,
    "workerGroupSpecs": [{"groupName": "", **_GROUP}],
    "autoscalerOptions": {"resources": {"limits": {}, "requests": {}}},
    "authOptions": {},
}
_METADATA = {"name": "", "generateName": "", "namespace": "", "labels": {}, "annotations": {}}
RAY_CLUSTER: Mapping[str, Any] = {"metadata": _METADATA, "spec": _CLUSTER_SPEC}
RAY_JOB: Mapping[str, Any] = {
    "metadata": _METADATA,
    "spec": {"submitterPodTemplate": _TEMPLATE, "rayClusterSpec": _CLUSTER_SPEC},
}
_OTHER = {"metadata": _METADATA}

#: For each type of shape: the types of its values, its name in messages, and how to write such a value.
_KINDS: Mapping[type, tuple[Any, str, str]] = {
    dict: (Mapping, "a mapping", "write lines such as KEY: VALUE"),
    list: ((list, tuple), "a list", 'write entries that begin with "- "'),
    int: (int, "a whole number", "write digits alone"),
    str: (str, "text", "write it in quotes"),
}


def problems_of(value: Any, shape: Any, path: str = "") -> Iterator[Problem]:
    """Yield where a value does not have its shape; YAML's ``null`` has every shape, except as an entry of a list."""
    if value is None:
        return
    is_kind, wanted, step = _KINDS[type(shape)]
    if not isinstance(value, is_kind):
        yield Problem(path, f"is {_word(value)}, not {wanted}", step)
    elif isinstance(shape, dict):
        for key, inner in shape.items():
            yield from problems_of(value.get(key), inner, f"{path}.{key}".lstrip("."))
    elif isinstance(shape, list):
        for index, entry in enumerate(value):
            # The value itself is not shown: in an environment it may be a secret.
            yield from problems_of("" if entry is None else entry, shape[0], f"{path}[{index}]")


def _word(value: Any) -> str:
    return next((word for kind, word, _ in _KINDS.values() if isinstance(value, kind)), type(value).__name__)


def problems_of_objects(documents: Sequence[Any]) -> Iterator[Problem]:
    """Yield where the objects of a file do not have their shapes; the last object is a RayJob."""
    for index, document in enumerate(documents):
        is_last = index == len(documents) - 1
        yield from problems_of(document, RAY_JOB if is_last else _OTHER, "" if is_last else f"document {index + 1}")


def mapping(value: Any) -> Mapping[str, Any]:
    """Return `value`, or an empty mapping if it is no mapping, which :func:`problems_of` reports."""
    return value if isinstance(value, Mapping) else {}


def entries(value: Any) -> list[Any]:
    """Return the entries of a list, or no entries if it is no list, which :func:`problems_of` reports."""
    return list(value) if isinstance(value, (list, tuple)) else []
