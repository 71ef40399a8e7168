"""Which plans are the same, and which are the same work within other limits or on another cluster. Pure functions."""

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
#: Of a RayJob that raykube planned: the hash of its code, which an upload names nowhere else.
CODE_KEY = "raykube.code"
#: What does not make a plan another one: a plan's own hashes, which commit the same code is of, which attempt this is.
_NOT_PLAN = (marks.PLAN, marks.WORK, PLAN_KEY, wire.WORK_KEY, marks.STORAGE_POD, wire.GIT_COMMIT, wire.ATTEMPT)
_LIMITS = (
    *(LIMITS_KEY, wire.TIMEOUT),
    *("preRunningDeadlineSeconds", "activeDeadlineSeconds", "ttlSecondsAfterFinished"),
)
#: What a run takes from the cluster that it is on.
_SCALE = (wire.WORKERS, wire.CPUS, wire.GPUS, wire.ACCELERATOR)
_RETRIES = re.compile(r"(python -m raykube\.inside\.attempts) \d+ ")
_YAML_TEXTS = ("runtimeEnvYAML", "serveConfigV2")


def _lines(keys: tuple[str, ...]) -> re.Pattern[str]:
    """Return what matches these keys as lines of YAML."""
    return re.compile(rf"\s*({'|'.join(map(re.escape, keys))}):")


NOT_PLAN_LINE = _lines(_NOT_PLAN)
_NOT_WORK = (*_NOT_PLAN, *_LIMITS, *_SCALE)
NOT_WORK_LINE = _lines(_NOT_WORK)


def plan(body: Sequence[Mapping[str, Any]]) -> str:
    """Return 16 hexadecimal digits over the body of a plan; equal ones mean that nothing would change."""
    return _digest([as_plan(part) for part in body])


def work(body: Sequence[Mapping[str, Any]]) -> str:
    """Return the same without limits and cluster: what is done, not how long, nor on what."""
    return _digest([as_work(part) for part in body])


def as_plan(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return what counts of an object or body for a plan to be the same.

    Where the objects are is no part of it: a namespace may be said, or be the context's own.
    """
    return {**_left(_wherever(part), _NOT_PLAN, NOT_PLAN_LINE)}


def as_work(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return what counts of an object or body for its work to be the same."""
    return _on_any_cluster(_left(_wherever(part), _NOT_WORK, NOT_WORK_LINE))


def _on_any_cluster(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with neither its retries nor its own cluster, but where its checkpoints are.

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
    """Return the volumes that a storage may be in: the same path of another one has no checkpoints of the run."""
    mounts = {each.get("name"): each for each in manifests.mounts(head, manifests.storage_path(storage))}
    pod = mapping(mapping(mapping(head).get("template")).get("spec"))
    known = [mapping(each) for each in entries(pod.get("volumes"))]
    return {each["name"]: {**mounts[each["name"]], **each} for each in known if each.get("name") in mounts}


def of_command(entrypoint: str, code: str) -> str:
    """Return the same of a command and its code, whatever it runs on and with: by this a run knows its folder."""
    return _digest([entrypoint, code])


def _wherever(part: Mapping[str, Any]) -> dict[str, Any]:
    if "apiVersion" not in part:
        return dict(part)
    return {**part, "metadata": {key: value for key, value in part["metadata"].items() if key != "namespace"}}


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _left(value: Any, keys: tuple[str, ...], line: re.Pattern[str], field: str = "") -> Any:
    if isinstance(value, Mapping):
        return {key: _left(inner, keys, line, key) for key, inner in value.items() if key not in keys}
    if isinstance(value, (list, tuple)):
        return [_left(inner, keys, line) for inner in value]
    if isinstance(value, str) and field in _YAML_TEXTS:
        return "\n".join(each for each in value.split("\n") if not line.match(each))
    return value
