"""The problems of a RayCluster manifest that would make a run hang.

The API server checks the schema. The rules here are those that no server checks, or whose violation appears only as an
event on an object that nobody looks at. All functions take plain manifests and change nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from raykube import manifests, marks, shapes, tokens
from raykube.errors import Problem
from raykube.manifests import Manifest
from raykube.names import name_problem, nearest
from raykube.shapes import entries, mapping

MAX_CLUSTER_NAME = 53
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.+")
#: A colon that no port follows, so it does not end a host. The ``@`` is not looked for: a secret key may contain a
#: slash, at which the address would seem to end.
_PASSWORD = re.compile(r"[^/]*://[^/@:\[]*:(?!\d*([/?]|$))")
_SIZES = ("num-cpus", "num-gpus", "memory", "resources")
_V2_ENV = "RAY_enable_autoscaler_v2"
_TOP = ("apiVersion", "kind", "metadata", "spec", "status")
_OF_SPEC = (
    *("headGroupSpec", "workerGroupSpecs", "rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "authOptions"),
    *("gcsFaultToleranceOptions", "headServiceAnnotations", "managedBy", "suspend", "upgradeStrategy"),
)
_AS_IT_IS = "a RayJob is submitted as it is: raykube job submit -f FILE"


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
        if (said := manifest.get(key)) != wanted:
            yield Problem(key, f"is {said!r}, not {wanted!r}", _AS_IT_IS if said == "RayJob" else "")
    for key in map(str, manifest.keys() - {*_TOP}):
        yield Problem(key, "unknown key", "it belongs below spec" if key in _OF_SPEC else nearest(key, _TOP))
    metadata = mapping(manifest.get("metadata"))
    yield from _name_problems(metadata.get("name"), "metadata.name", MAX_CLUSTER_NAME)
    yield from _annotation_problems(mapping(metadata.get("annotations")))


def _annotation_problems(annotations: Manifest) -> Iterator[Problem]:
    yield from _storage_problems(annotations.get(marks.STORAGE))
    known = [each.removeprefix(marks.PREFIX) for each in (marks.STORAGE, marks.TRACKING)]
    for key in map(str, annotations.keys() - {*marks.ANNOTATIONS}):
        if key.startswith(marks.PREFIX):
            step = nearest(key.removeprefix(marks.PREFIX), known)
            yield Problem(f"metadata.annotations[{key}]", "is no annotation of raykube's", step)


def _storage_problems(storage: Any) -> Iterator[Problem]:
    where, said = f"metadata.annotations[{marks.STORAGE}]", str(storage or "")
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
    """Whether a URI has a password. A user alone is none: Azure has containers there (``abfs://BOX@ACCOUNT…``)."""
    return bool(_PASSWORD.match(uri))


def _name_problems(name: Any, path: str, limit: int) -> Iterator[Problem]:
    if name is None:
        yield Problem(path, "is required")
    elif problem := name_problem(name, limit) if isinstance(name, str) else "":  # shapes reports a wrong type
        yield Problem(path, problem)


def _version_problems(spec: Manifest) -> Iterator[Problem]:
    version = spec.get("rayVersion") or ""
    if not isinstance(version, str):
        yield Problem("spec.rayVersion", f"{version!r} must be text", "write it in quotes, with all its parts")
    elif not version:
        what = "is required: KubeRay chooses probes and authentication by it"
        yield Problem("spec.rayVersion", what, "write the version of Ray in its image")
    elif (parsed := manifests.version(version)) is None:
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
    """Yield (image, Ray version) for each group whose image tag tells the version."""
    for group in (spec.get("headGroupSpec"), *entries(spec.get("workerGroupSpecs"))):
        image = manifests.image(group)
        if has := manifests.version_of(image):
            yield image, has


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
    """Yield a misnamed dashboard port: KubeRay finds the dashboard by its port's name, and else waits in silence."""
    ports = [mapping(each) for each in entries(manifests.first_container(head).get("ports"))]
    named = {str(each.get("name") or ""): each.get("containerPort") for each in ports}
    for name, port in named.items():
        if port == manifests.PORTS["dashboard"] and name and "dashboard" not in named:
            path = "spec.headGroupSpec.template.spec.containers[0].ports"
            yield Problem(
                path, f"the port {port} is called {name!r}, and KubeRay looks for dashboard", "call it dashboard"
            )


def amount_problems(manifest: Manifest) -> Iterator[Problem]:
    """Yield the groups whose CPUs or GPUs cannot be read as numbers; a job's scale is computed from these."""
    spec = manifest["spec"]
    yield from _quantity_problems(spec["headGroupSpec"], "spec.headGroupSpec.template.spec")
    for index, group in enumerate(entries(spec.get("workerGroupSpecs"))):
        yield from _quantity_problems(group, f"spec.workerGroupSpecs[{index}].template.spec")


def _quantity_problems(group: Manifest, path: str) -> Iterator[Problem]:
    try:
        manifests.cpus(group), manifests.gpus(group)
    except (ValueError, OverflowError) as error:
        yield Problem(f"{path}.containers[0].resources", f"holds no number of CPUs or GPUs: {error}")
