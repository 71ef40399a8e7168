"""Reading values from a RayCluster manifest.

All functions take plain manifests, valid ones unless they say otherwise, and change nothing.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from raykube.shapes import entries, mapping

MIN_RAY_FOR_HEALTH = (2, 53)
#: The default of `maxReplicas` in KubeRay's definition.
UNBOUNDED = 2**31 - 1
#: The head's ports that clients use, by name, with Ray's default numbers; a manifest may set other numbers.
PORTS: Mapping[str, int] = {"dashboard": 8265, "serve": 8000}
_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
#: The Ray version in the tag of one of Ray's own images, in any registry; other images use tags for their own versions.
_TAG = re.compile(r"(?:^|/)(?:rayproject/[\w.-]+|ray|ray-ml|ray-llm):(\d+\.\d+\.\d+)")
_RAYS_TAG = re.compile(r"(?:^|/)rayproject/[\w.-]+:(\d+\.\d+\.\d+)")
_PYTHON = re.compile(r":[\w.-]*-py(\d)(\d+)\b")
#: The suffixes of a quantity: _PARTS divide the number, _UNITS multiply it.
_PARTS = {"m": 1e3, "u": 1e6, "n": 1e9}
_UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("KMGTPE", 1)}
#: An ``E`` begins an exponent if a number follows it; else it is the unit.
_NUMBER = r"[-+]?(?:[0-9]+[.]?[0-9]*|[.][0-9]+)(?:[eE][-+]?[0-9]+)?"
_QUANTITY = re.compile(rf"({_NUMBER})({'|'.join([*_PARTS, *_UNITS])})")

Manifest = Mapping[str, Any]


def title(thing: Any) -> str:
    """Return a Kubernetes object's kind and name."""
    metadata = mapping(mapping(thing).get("metadata"))
    return f"{mapping(thing).get('kind')} {metadata.get('name') or metadata.get('generateName')}"


def with_version(manifest: Any) -> Any:
    """Return a manifest with ``rayVersion`` taken from the head's image, if unset and the image is one of Ray's own."""
    spec = mapping(mapping(manifest).get("spec"))
    found = _TAG.search(image(spec.get("headGroupSpec")))
    return {**manifest, "spec": {**spec, "rayVersion": found[1]}} if found and not spec.get("rayVersion") else manifest


def version_of(image: str) -> str:
    """Return the Ray version that the tag of a rayproject image tells; "" for any other image."""
    found = _RAYS_TAG.search(image)
    return found[1] if found else ""


def python(spec: Manifest) -> tuple[int, ...]:
    """Return the Python version that the tag of the head's image tells, as ``-py311`` does; else ()."""
    found = _PYTHON.search(image(spec.get("headGroupSpec")))
    return tuple(map(int, found.groups())) if found else ()


def image(group: Any) -> str:
    """Return the image that runs Ray in a group of any manifest, valid or not; "" when none is named."""
    return str(first_container(group).get("image") or "")


def groups(spec: Manifest) -> Iterator[dict[str, Any]]:
    """Yield a cluster's groups, the head group first."""
    yield spec["headGroupSpec"]
    yield from spec.get("workerGroupSpecs") or []


def pods(group: Manifest) -> int:
    """Return how many pods KubeRay makes for a group, by its replica counts; one for the head group."""
    if "groupName" not in group:
        return 1
    low = int(group.get("minReplicas") or 0)
    replicas = low if group.get("replicas") is None else int(group["replicas"])
    return 0 if group.get("suspend") else min(max(replicas, low), max_replicas(group)) * hosts(group)


def hosts(group: Manifest) -> int:
    """Return how many pods one replica of a group has."""
    return int(group.get("numOfHosts") or 1)


def max_replicas(group: Manifest) -> int:
    """Return how many replicas a group may have; where it does not say, the server fills in `UNBOUNDED`."""
    most = group.get("maxReplicas")
    return UNBOUNDED if most is None else int(most)


def knows_health_check(spec: Manifest) -> bool:
    """Whether the agent of this Ray version answers ``/api/healthz``; older versions are probed by a command."""
    return (version(str(spec.get("rayVersion") or "")) or ()) >= MIN_RAY_FOR_HEALTH


def version(text: str) -> tuple[int, ...] | None:
    """Return the first two parts of a version; None if the text is no version."""
    try:
        return tuple(int(part) for part in text.split(".")[:2])
    except ValueError:
        return None


def metadata(manifest: Manifest) -> dict[str, Any]:
    """Return a valid manifest's namespace, labels and annotations, without the annotation that kubectl apply adds."""
    said = {key: manifest["metadata"].get(key) for key in ("namespace", "labels", "annotations")}
    kept = copy.deepcopy({key: value for key, value in said.items() if value})
    kept.get("annotations", {}).pop(_APPLIED, None)
    return kept


def container(group: Manifest) -> dict[str, Any]:
    """Return the container of a group that runs Ray: the first one, by KubeRay's rule."""
    found: dict[str, Any] = group["template"]["spec"]["containers"][0]
    return found


def first_container(group: Any) -> Mapping[str, Any]:
    """Return the first container of a group in any manifest, valid or not; an empty mapping if there is none."""
    pod = mapping(mapping(mapping(group).get("template")).get("spec"))
    return mapping(next(iter(entries(pod.get("containers"))), None))


def mounts(group: Any, path: PurePosixPath) -> list[Mapping[str, Any]]:
    """Return the mounts of a group's first container that are at `path` or above it."""
    known = [mapping(each) for each in entries(first_container(group).get("volumeMounts"))]
    return [each for each in known if each.get("mountPath") and path.is_relative_to(str(each["mountPath"]))]


def storage_path(storage: str) -> PurePosixPath:
    """Return the path of a storage; it is absolute only if the storage is a folder in the pods, and no URI."""
    return PurePosixPath(storage.removeprefix("file://"))


def port(container: Manifest, name: str) -> int:
    """Return the number of the port that a Ray container gives this name, or Ray's default number."""
    named = (int(each["containerPort"]) for each in container.get("ports") or [] if each.get("name") == name)
    return next(named, PORTS[name])


def _limits(group: Manifest) -> dict[str, Any]:
    resources = mapping(container(group).get("resources"))
    return {**mapping(resources.get("requests")), **mapping(resources.get("limits"))}


def cpus(group: Manifest) -> int:
    """Return the logical CPUs of one pod that KubeRay gives Ray: declared, else limit, else request, rounded up."""
    said = mapping(group.get("rayStartParams")).get("num-cpus", mapping(group.get("resources")).get("CPU"))
    return math.ceil(quantity(said if said is not None else _limits(group).get("cpu", 1)))


def gpus(group: Manifest) -> int:
    """Return the GPUs of one pod: declared, else the amount of a resource that ends in gpu, or of a MIG slice."""
    said = mapping(group.get("rayStartParams")).get("num-gpus", mapping(group.get("resources")).get("GPU"))
    if said is not None:
        return int(quantity(said))
    found = [
        amount for key, amount in _limits(group).items() if key.endswith("gpu") or key.startswith("nvidia.com/mig-")
    ]
    return int(quantity(found[0])) if found else 0


def accelerator(group: Manifest) -> str:
    """Return the accelerator type that a group declares to Ray as ``accelerator_type:NAME``, else "".

    A node label or product name is not enough: with zero replicas, the autoscaler would not know that the group has
    this type, and a worker that asks for it would wait for ever.
    """
    params = mapping(group.get("rayStartParams"))
    declared = dict(mapping(group.get("resources"))) | _custom(params.get("resources", ""))
    return next((key.partition(":")[2] for key in declared if key.startswith("accelerator_type:")), "")


def _custom(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text.strip("\"'").replace("\\", ""))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def quantity(value: Any) -> float:
    """Read a Kubernetes quantity: ``2``, ``"1.5"``, ``"500m"`` or ``"2k"``.

    Raises:
        ValueError: `value` is no quantity.
    """
    if not (found := _QUANTITY.fullmatch(str(value))):
        raise ValueError(f"{str(value)!r} is no quantity")
    number, unit = float(found[1]), found[2]
    return number / _PARTS[unit] if unit in _PARTS else number * _UNITS[unit]
