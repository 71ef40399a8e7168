"""Which plans are equal, and which are the same work with other limits or another cluster. Pure functions."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from raykube import manifests, marks, wire
from raykube.shapes import entries, mapping

PLAN_KEY = "raykube.plan"
LIMITS_KEY = "raykube.limits"
#: In the metadata of a RayJob that raykube planned: the hash of its code, which an upload names nowhere else.
CODE_KEY = "raykube.code"
#: What does not change which plan it is: the plan's own hashes, the commit of the same code, the number of the attempt,
#: and the template of a pod that reads the storage.
_NOT_PLAN = (marks.PLAN, marks.WORK, PLAN_KEY, wire.WORK_KEY, marks.STORAGE_POD, wire.GIT_COMMIT, wire.ATTEMPT)
_LIMITS = (
    *(LIMITS_KEY, wire.TIMEOUT),
    *("preRunningDeadlineSeconds", "activeDeadlineSeconds", "ttlSecondsAfterFinished"),
)
#: Variables that a run gets from its cluster.
_SCALE = (wire.WORKERS, wire.CPUS, wire.GPUS, wire.ACCELERATOR)
_RETRIES = re.compile(r"(python -m raykube\.inside\.attempts) \d+ ")
_YAML_TEXTS = ("runtimeEnvYAML", "serveConfigV2")


def _lines(keys: tuple[str, ...]) -> re.Pattern[str]:
    """Return a pattern for lines of YAML with these keys."""
    return re.compile(rf"\s*({'|'.join(map(re.escape, keys))}):")


NOT_PLAN_LINE = _lines(_NOT_PLAN)
_NOT_WORK = (*_NOT_PLAN, *_LIMITS, *_SCALE)
NOT_WORK_LINE = _lines(_NOT_WORK)


def plan(body: Sequence[Mapping[str, Any]]) -> str:
    """Return 16 hexadecimal digits over the body of a plan; equal hashes mean that nothing would change."""
    return _digest([as_plan(part) for part in body])


def work(body: Sequence[Mapping[str, Any]]) -> str:
    """Return such a hash without limits and cluster: over what is done, not for how long or on what."""
    return _digest([as_work(part) for part in body])


def as_plan(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an object or body that decides whether two plans are equal.

    The namespace is not part of it: the same namespace may be named or be the context's.
    """
    return {**_without_keys(_without_namespace(part), _NOT_PLAN, NOT_PLAN_LINE)}


def as_work(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an object or body that decides whether two plans are the same work."""
    return _on_any_cluster(_without_keys(_without_namespace(part), _NOT_WORK, NOT_WORK_LINE))


def _on_any_cluster(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object without retries and, except for the volumes of its storage, without its own cluster.

    A RayJob that somebody has written keeps its cluster: its code may be the image, and its data a volume.
    """
    spec = {**(part.get("spec") or {})}
    if isinstance(spec.get("entrypoint"), str):
        spec["entrypoint"] = _RETRIES.sub(r"\1 ", spec["entrypoint"], count=1)
    if "rayClusterSpec" in spec and CODE_KEY in mapping(spec.get("metadata")):
        storage = str((part["metadata"].get("annotations") or {}).get(marks.STORAGE) or "")
        spec["rayClusterSpec"] = {"volumes": _volumes(mapping(spec["rayClusterSpec"]).get("headGroupSpec"), storage)}
    return {**part, "spec": spec}


def _volumes(head: Any, storage: str) -> dict[str, Any]:
    """Return the head's volumes that may hold the storage: the same path in another volume has no checkpoints."""
    mounts = {each.get("name"): each for each in manifests.mounts(head, manifests.storage_path(storage))}
    pod = mapping(mapping(mapping(head).get("template")).get("spec"))
    known = [mapping(each) for each in entries(pod.get("volumes"))]
    return {each["name"]: {**mounts[each["name"]], **each} for each in known if each.get("name") in mounts}


def of_command(entrypoint: str, code: str) -> str:
    """Return such a hash over a command and its code only; by it a run recognizes its own folder."""
    return _digest([entrypoint, code])


def _without_namespace(part: Mapping[str, Any]) -> dict[str, Any]:
    if "apiVersion" not in part:
        return dict(part)
    return {**part, "metadata": {key: value for key, value in part["metadata"].items() if key != "namespace"}}


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without_keys(value: Any, keys: tuple[str, ...], line: re.Pattern[str], field: str = "") -> Any:
    if isinstance(value, Mapping):
        return {key: _without_keys(inner, keys, line, key) for key, inner in value.items() if key not in keys}
    if isinstance(value, (list, tuple)):
        return [_without_keys(inner, keys, line) for inner in value]
    if isinstance(value, str) and field in _YAML_TEXTS:
        return "\n".join(each for each in value.split("\n") if not line.match(each))
    return value
