"""What a RayCluster manifest says, and what is wrong with it that a cluster would answer with a hang.

The API server checks the schema; here stand only the rules that no server checks, or that surface as an event on an
object nobody looks at. All functions take plain manifests and change nothing.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from raykube import shapes, tokens
from raykube.errors import Problem
from raykube.names import name_problem
from raykube.shapes import entries, mapping

MAX_CLUSTER_NAME = 53
MIN_RAY_FOR_HEALTH = (2, 53)
#: What KubeRay's definition has for a `maxReplicas` that is not given.
UNBOUNDED = 2**31 - 1
STORAGE_ANNOTATION = "raykube.io/storage"
DASHBOARD_PORT = 8265
_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.+")
#: A colon that ends no host, for no port follows. The key of a bucket may hold a slash, which would end its address.
_PASSWORD = re.compile(r"[^/]*://[^/@:\[]*:(?!\d*([/?]|$))")
_SIZES = ("num-cpus", "num-gpus", "memory", "resources")
#: The tag of an image of Ray's own, in whatever registry; that of any other is its owner's version.
_TAG = re.compile(r"(?:^|/)(?:rayproject/[\w.-]+|ray|ray-ml|ray-llm):(\d+\.\d+\.\d+)")
_RAYS_TAG = re.compile(r"(?:^|/)rayproject/[\w.-]+:(\d+\.\d+\.\d+)")
_PYTHON = re.compile(r":[\w.-]*-py(\d)(\d+)\b")
#: The units of a quantity: of which one has so many, or that are so many.
_PARTS = {"m": 1e3, "u": 1e6, "n": 1e9}
_UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("KMGTPE", 1)}
#: An ``E`` is an exponent where a number follows it, else the unit.
_NUMBER = r"[-+]?(?:[0-9]+[.]?[0-9]*|[.][0-9]+)(?:[eE][-+]?[0-9]+)?"
_QUANTITY = re.compile(rf"({_NUMBER})({'|'.join([*_PARTS, *_UNITS])})")
_V2_ENV = "RAY_enable_autoscaler_v2"

Manifest = Mapping[str, Any]


def title(thing: Any) -> str:
    """Return a Kubernetes object's kind and name."""
    metadata = mapping(mapping(thing).get("metadata"))
    return f"{mapping(thing).get('kind')} {metadata.get('name') or metadata.get('generateName')}"


def with_version(manifest: Any) -> Any:
    """Return a manifest with the ``rayVersion`` of its head's image, if it says none and that is Ray's own."""
    spec = mapping(mapping(manifest).get("spec"))
    found = _TAG.search(_image(spec))
    return {**manifest, "spec": {**spec, "rayVersion": found[1]}} if found and not spec.get("rayVersion") else manifest


def version_of(image: str) -> str:
    """Return the version of Ray in an image of rayproject's, as its tag tells it; "" of any other."""
    found = _RAYS_TAG.search(image)
    return found[1] if found else ""


def python(spec: Manifest) -> tuple[int, ...]:
    """Return the Python of a cluster's head where the tag of its image tells, as ``-py311`` does; else ()."""
    found = _PYTHON.search(_image(spec))
    return tuple(map(int, found.groups())) if found else ()


def _image(spec: Manifest) -> str:
    try:
        return str(container(spec["headGroupSpec"])["image"])
    except (KeyError, IndexError, TypeError):  # not a sound manifest, which is told elsewhere
        return ""


def problems_of(manifest: Any) -> Iterator[Problem]:
    """Yield every problem of a RayCluster manifest that can be seen without a cluster."""
    if not isinstance(manifest, Mapping):
        yield Problem("", "is not a mapping", "write a RayCluster")
        return
    yield from shapes.problems_of(manifest, shapes.RAY_CLUSTER)
    yield from _header_problems(manifest)
    spec = mapping(manifest.get("spec"))
    if spec.get("headGroupSpec") is None and (spec or not manifest.get("spec")):
        yield Problem("spec.headGroupSpec", "is required", "a RayCluster has one head")
    yield from _version_problems(spec)
    if (version := mapping(spec.get("autoscalerOptions")).get("version") or "v2") != "v2":
        what = f"is {version!r}, and raykube counts on Ray's autoscaler v2"
        yield Problem("spec.autoscalerOptions.version", what, "write v2, or remove it")
    if "upgradeStrategy" in spec:
        what = "is refused, with an event only, in the cluster of a RayJob or RayService: the run would hang"
        yield Problem("spec.upgradeStrategy", what, "remove it")
    if isinstance(spec.get("headGroupSpec"), Mapping):
        yield from _group_problems(spec["headGroupSpec"], "spec.headGroupSpec", spec)
        yield from _dashboard_problems(spec["headGroupSpec"])
    yield from _worker_problems(spec)


def _header_problems(manifest: Manifest) -> Iterator[Problem]:
    for key, wanted in (("apiVersion", "ray.io/v1"), ("kind", "RayCluster")):
        if manifest.get(key) != wanted:
            yield Problem(key, f"is {manifest.get(key)!r}, not {wanted!r}")
    metadata = mapping(manifest.get("metadata"))
    yield from _name_problems(metadata.get("name"), "metadata.name", MAX_CLUSTER_NAME)
    yield from _storage_problems(mapping(metadata.get("annotations")).get(STORAGE_ANNOTATION))


def _storage_problems(storage: Any) -> Iterator[Problem]:
    where, said = f"metadata.annotations[{STORAGE_ANNOTATION}]", str(storage or "")
    if has_password(said):
        step = "keep it in a Secret, and have the Ray containers' env name that (valueFrom: {secretKeyRef: …})"
        yield Problem(where, "has a password before its @: it would stand in errors, in logs and in MLflow", step)
    elif said and not (said.startswith("/") or _URI.fullmatch(said)):
        what = f"{storage!r} is neither an absolute path nor a URI: each process would take it from its own folder"
        yield Problem(where, what, "write /FOLDER or SCHEME://…")
    elif "?" in said:
        step = "set it in the environment of the Ray containers, as in AWS_ENDPOINT_URL and AWS_DEFAULT_REGION"
        yield Problem(where, f"{storage!r} has options after a ?, and names of runs and files are to follow it", step)


def has_password(uri: str) -> bool:
    """Whether a URI holds a password. A user alone is none: Azure's container stands there (``abfs://BOX@ACCOUNT…``)."""
    return bool(_PASSWORD.match(uri))


def _name_problems(name: Any, path: str, limit: int) -> Iterator[Problem]:
    if name is None:
        yield Problem(path, "is required")
    elif problem := name_problem(name, limit) if isinstance(name, str) else "":  # its shape is told already
        yield Problem(path, problem)


def _version_problems(spec: Manifest) -> Iterator[Problem]:
    version = spec.get("rayVersion") or ""
    if not isinstance(version, str):
        yield Problem("spec.rayVersion", f"{version!r} must be text", "write it in quotes, with all its parts")
    elif not version:
        what = "is required: KubeRay chooses probes and authentication by it"
        yield Problem("spec.rayVersion", what, "write the version of Ray in its image")
    elif (parsed := _version(version)) is None:
        yield Problem("spec.rayVersion", f"{version!r} is not a version such as '2.60.0'")
    elif others := {image: has for image, has in _told_versions(spec) if not f"{has}.".startswith(f"{version}.")}:
        has = ", ".join(f"{image} has {has}" for image, has in others.items())
        yield Problem("spec.rayVersion", f"is {version}, and {has}", "take one image for all groups, and its version")
    elif tokens.mode(spec) == "token" and parsed < tokens.MIN_RAY:
        yield Problem(
            "spec.rayVersion",
            f"{version} knows no tokens; Ray 2.52 does",
            "take a newer image and rayVersion, or write authOptions: {mode: disabled}",
        )
    if tokens.auth(spec).get("enableK8sTokenAuth"):
        yield Problem(
            "spec.authOptions.enableK8sTokenAuth", "KubeRay refuses it for a RayJob or RayService", "remove it"
        )


def _told_versions(spec: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the images of a cluster's groups whose tags tell the version of Ray in them, with that."""
    for group in (spec.get("headGroupSpec"), *entries(spec.get("workerGroupSpecs"))):
        image = _image({"headGroupSpec": group})
        if has := version_of(image):
            yield image, has


def max_replicas(group: Manifest) -> int:
    """Return how many pods a group may have; the server fills in `UNBOUNDED` where it does not say."""
    most = group.get("maxReplicas")
    return UNBOUNDED if most is None else int(most)


def knows_health_check(spec: Manifest) -> bool:
    """Whether the agent of this Ray answers ``/api/healthz``; others are asked by a command."""
    return (_version(str(spec.get("rayVersion") or "")) or ()) >= MIN_RAY_FOR_HEALTH


def _version(text: str) -> tuple[int, ...] | None:
    try:
        return tuple(int(part) for part in text.split(".")[:2])
    except ValueError:
        return None


def _worker_problems(spec: Manifest) -> Iterator[Problem]:
    names: dict[str, int] = {}
    for index, group in enumerate(entries(spec.get("workerGroupSpecs"))):
        if not isinstance(group, Mapping):
            continue
        path, name = f"spec.workerGroupSpecs[{index}]", group.get("groupName")
        yield from _name_problems(name, f"{path}.groupName", 63)
        if name is not None and (first := names.setdefault(str(name), index)) != index:
            yield Problem(
                f"{path}.groupName", f"{name!r} is the name of workerGroupSpecs[{first}] too: the run would hang"
            )
        yield from _replica_problems(group, path)
        yield from _group_problems(group, path, spec)


def _replica_problems(group: Manifest, path: str) -> Iterator[Problem]:
    counts = {key: group[key] for key in ("minReplicas", "replicas", "maxReplicas") if group.get(key) is not None}
    if wrong := [key for key, value in counts.items() if not isinstance(value, int) or value < 0]:
        yield from (Problem(f"{path}.{key}", f"{counts[key]!r} is not a whole number of 0 or more") for key in wrong)
    elif list(counts.values()) != sorted(counts.values()):
        what = " <= ".join(f"{key} {value}" for key, value in counts.items())
        yield Problem(path, f"{what} does not hold; KubeRay would cut it down in silence")


def _group_problems(group: Manifest, path: str, spec: Manifest) -> Iterator[Problem]:
    params = mapping(group.get("rayStartParams"))
    for key, value in params.items():
        if not isinstance(value, str):
            yield Problem(f"{path}.rayStartParams.{key}", f"{value!r} must be text", f'write "{value}"')
    if group.get("resources") and (both := [key for key in _SIZES if key in params]):
        yield Problem(f"{path}.resources", f"and rayStartParams {both} exclude each other", "keep one of them")
    if "labels" in params:
        yield Problem(f"{path}.rayStartParams.labels", "is refused by KubeRay", f"write {path}.labels")
    yield from _pod_problems(group, f"{path}.template.spec", spec)


def _pod_problems(group: Manifest, path: str, spec: Manifest) -> Iterator[Problem]:
    pod = mapping(mapping(group.get("template")).get("spec"))
    containers = pod.get("containers") or []
    if not containers:
        yield Problem(f"{path}.containers", "needs at least the container that runs Ray")
    if not entries(containers) or not all(isinstance(container, Mapping) for container in containers):
        return
    at = next((i for i, one in enumerate(containers) if str(one.get("name", "")).startswith("ray-")), 0)
    if at:
        yield Problem(f"{path}.containers[{at}]", "KubeRay starts Ray in the first container", "move it to the top")
    if spec.get("enableInTreeAutoscaling") and pod.get("restartPolicy", "Never") != "Never":
        yield Problem(f"{path}.restartPolicy", "autoscaler v2 takes 'Never' only", "remove it")
    variables = entries(containers[0].get("env"))
    if any(mapping(variable).get("name") == _V2_ENV for variable in variables):
        yield Problem(f"{path}.containers[0].env", f"{_V2_ENV} contradicts autoscalerOptions.version", "remove it")
    yield from tokens.problems(variables, f"{path}.containers[0].env", spec)
    for index, port in enumerate(entries(containers[0].get("ports"))):
        if mapping(port).get("containerPort") is None:
            yield Problem(f"{path}.containers[0].ports[{index}].containerPort", "is required")
    yield from _quantity_problems(group, path)


def _dashboard_problems(head: Manifest) -> Iterator[Problem]:
    """KubeRay looks for the dashboard by the name of its port, and waits without a word where none has it."""
    pods = entries(mapping(mapping(mapping(head).get("template")).get("spec")).get("containers"))
    ports = [mapping(each) for each in entries(mapping(pods[0] if pods else {}).get("ports"))]
    named = {str(each.get("name") or ""): each.get("containerPort") for each in ports}
    for name, port in named.items():
        if port == DASHBOARD_PORT and name and "dashboard" not in named:
            path = "spec.headGroupSpec.template.spec.containers[0].ports"
            yield Problem(
                path, f"the port {port} is called {name!r}, and KubeRay looks for dashboard", "call it dashboard"
            )


def amount_problems(manifest: Manifest) -> Iterator[Problem]:
    """Yield which groups of a cluster have no number of CPUs or GPUs: the scale of a job is read from these."""
    spec = manifest["spec"]
    yield from _quantity_problems(spec["headGroupSpec"], "spec.headGroupSpec.template.spec")
    for index, group in enumerate(entries(spec.get("workerGroupSpecs"))):
        yield from _quantity_problems(group, f"spec.workerGroupSpecs[{index}].template.spec")


def _quantity_problems(group: Manifest, path: str) -> Iterator[Problem]:
    try:
        cpus(group), gpus(group)
    except (ValueError, OverflowError) as error:
        yield Problem(f"{path}.containers[0].resources", f"holds no number of CPUs or GPUs: {error}")


def metadata(manifest: Manifest) -> dict[str, Any]:
    """Return what a sound manifest's metadata says: where one was read from a server, without what that has added."""
    said = {key: manifest["metadata"].get(key) for key in ("namespace", "labels", "annotations")}
    kept = copy.deepcopy({key: value for key, value in said.items() if value})
    kept.get("annotations", {}).pop(_APPLIED, None)
    return kept


def container(group: Manifest) -> dict[str, Any]:
    """Return a group's container that runs Ray: the first, by KubeRay's rule."""
    found: dict[str, Any] = group["template"]["spec"]["containers"][0]
    return found


def _limits(group: Manifest) -> dict[str, Any]:
    resources = mapping(container(group).get("resources"))
    return {**mapping(resources.get("requests")), **mapping(resources.get("limits"))}


def cpus(group: Manifest) -> int:
    """Return the logical CPUs of one pod as KubeRay passes them to Ray: said, else limit, else request, rounded up."""
    said = mapping(group.get("rayStartParams")).get("num-cpus", mapping(group.get("resources")).get("CPU"))
    return math.ceil(quantity(said if said is not None else _limits(group).get("cpu", 1)))


def gpus(group: Manifest) -> int:
    """Return the GPUs of one pod: said, else the limit of the resource whose name ends in gpu, or of a MIG slice."""
    said = mapping(group.get("rayStartParams")).get("num-gpus", mapping(group.get("resources")).get("GPU"))
    if said is not None:
        return int(quantity(said))
    found = [
        amount for key, amount in _limits(group).items() if key.endswith("gpu") or key.startswith("nvidia.com/mig-")
    ]
    return int(quantity(found[0])) if found else 0


def accelerator(group: Manifest) -> str:
    """Return the accelerator type that a group declares to Ray as ``accelerator_type:NAME``, else "".

    A node label or product name is not enough: an autoscaler that is at zero would not know that the group has it,
    and a worker asking for it would wait for ever.
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
        ValueError: it is none.
    """
    if not (found := _QUANTITY.fullmatch(str(value))):
        raise ValueError(f"{str(value)!r} is no quantity")
    number, unit = float(found[1]), found[2]
    return number / _PARTS[unit] if unit in _PARTS else number * _UNITS[unit]
