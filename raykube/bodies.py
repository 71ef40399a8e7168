"""The request bodies for this machine's Ray head, and the parts of the objects that are sent to Kubernetes.

The parts of a RayJob and RayService: the cluster with what every run needs added, the runtime environment, and the
fields that come from the job.
"""

from __future__ import annotations

import copy
import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from raykube import manifests, sameness, wire
from raykube.cluster import Cluster
from raykube.package import Package
from raykube.runtime_env import literal
from raykube.sameness import LIMITS_KEY, PLAN_KEY
from raykube.specs import App, Job, Service

RUN_KEY = "raykube.run"
CODE_MOUNT = "/etc/raykube/code"
CODE_VOLUME = "raykube-code"
CODE_FOLDER = ".code"
#: Format of the name of the ConfigMap with the code of a run or service.
CODE_NAME = "{}-code"
#: Bytes of code that a ConfigMap may hold. The API server allows 1 MiB, counting the bytes and not their base64. etcd
#: stores the bytes as well, and takes 1.5 MiB with the metadata; a request, where they are base64, may have 3 MiB.
CONFIG_MAP_LIMIT = 1000 * 1024
#: The fields of a pod, and of its container, that decide where the pod may run and what it can reach there.
_POD_FIELDS = (
    *("volumes", "serviceAccountName", "imagePullSecrets", "nodeSelector", "tolerations", "securityContext"),
    *("affinity", "priorityClassName", "runtimeClassName", "schedulerName", "hostAliases", "dnsPolicy", "dnsConfig"),
)
_CONTAINER_FIELDS = ("image", "imagePullPolicy", "env", "envFrom", "volumeMounts", "securityContext")
_AGENT_PORT = 52365  # unless rayStartParams name another
_HEAD_PORTS = {
    "gcs-server": 6379,
    "dashboard": manifests.PORTS["dashboard"],
    "client": 10001,
    "serve": manifests.PORTS["serve"],
    "metrics": 8080,
}


@dataclass(frozen=True)
class CodePlace:
    """Where a cluster gets the code of a plan from.

    Attributes:
        way: ``"plan"``: a ConfigMap in the plan itself; ``"storage"``: the storage, where a pod puts it; ``"cluster"``:
            the head of the existing cluster; ``"upload"``: the head of the job's own cluster, uploaded once it answers.
        uri: where it is read from.
    """

    way: Literal["plan", "storage", "cluster", "upload"]
    uri: str


@dataclass(frozen=True)
class Limits:
    """A job's limits, which whatever runs the plan must enforce."""

    max_retries: int = 0
    timeout_s: float | None = None
    pending_timeout_s: float | None = None


def environ(name: str, cluster: Cluster, package: Package | None, limit: float | None = None) -> dict[str, str]:
    """Return the variables that the inside plane reads: run, storage, attempt, tracking, commit, time limit, scale."""
    said = {
        wire.RUN_NAME: name,
        wire.STORAGE: cluster.storage,
        wire.ATTEMPT: "1",
        wire.TRACKING: cluster.tracking,
        wire.GIT_COMMIT: package.git_commit if package else "",
        wire.TIMEOUT: f"{limit:g}" if limit else "",
    }
    return {key: value for key, value in said.items() if value} | cluster.scale.environ()


def runtime_env(work: Job | Service, place: dict[str, str], own: dict[str, str], working_dir: str) -> dict[str, Any]:
    """Return Ray's runtime environment for a job or app; its own variables override those of `place`."""
    env = dict(work.runtime_env) | ({"pip": list(work.pip)} if work.pip else {})
    kept = dict if "image_uri" in env else literal  # podman gets the values as they are, without Ray's expansion
    variables = kept(place) | env.get("env_vars", {}) | kept(own)
    return env | ({"working_dir": working_dir} if working_dir else {}) | {"env_vars": variables}


def localjob(job: Job, cluster: Cluster, working_dir_uri: str, package: Package | None = None) -> dict[str, Any]:
    """Return the body for Ray's ``POST /api/jobs/``.

    The head reads the code's zip from `working_dir_uri`; only the git commit of `package` is used.
    """
    limits = Limits(job.max_retries, job.timeout_s, job.pending_timeout_s)
    said = environ(job.name, cluster, package)
    body: dict[str, Any] = {
        "entrypoint": job.entrypoint,
        "submission_id": f"{job.name}-1",
        "runtime_env": runtime_env(job, said, job.env_vars, working_dir_uri),
        "metadata": {**job.metadata, RUN_KEY: job.name, LIMITS_KEY: json.dumps(vars(limits))},
    }
    for key in ("num_cpus", "num_gpus", "memory", "resources", "label_selector"):
        if value := getattr(job, f"entrypoint_{key}"):
            body[f"entrypoint_{key}"] = value
    body["metadata"][PLAN_KEY] = sameness.plan((body,))
    return body


def localservice(service: Service, cluster: Cluster, working_dir_uri: str) -> list[dict[str, Any]]:
    """Return the applications for ``PUT /api/serve/applications/``."""
    return [_application(service, app, cluster, working_dir_uri) for app in service.apps]


def _application(service: Service, app: App, cluster: Cluster, working_dir: str) -> dict[str, Any]:
    place = {wire.STORAGE: cluster.storage} if cluster.storage else {}
    body: dict[str, Any] = {
        "name": app.name,
        "route_prefix": app.route_prefix,
        "import_path": app.import_path,
        "runtime_env": runtime_env(service, place, app.env_vars, working_dir),
        "args": app.args | ({"model": app.model} if app.model else {}),
    }
    bounds = app.model_dump(include={"num_replicas", "max_ongoing_requests", "max_queued_requests"}, exclude_none=True)
    bounds |= app.model_dump(include={"autoscaling_config"}, exclude_none=True)
    if app.ray_actor_options:
        bounds["ray_actor_options"] = app.ray_actor_options
    return body | ({"deployments": [{"name": app.deployment, **bounds}]} if bounds else {})


def serve_port(cluster_spec: Mapping[str, Any]) -> int:
    """Return the port that a cluster's Serve proxies listen on: the head's port named ``serve``."""
    return manifests.port(manifests.first_container(cluster_spec.get("headGroupSpec")), "serve")


def code_place(cluster: Cluster, name: str, package: Package, *, in_config_map: bool) -> CodePlace:
    """Return where a cluster gets the zip with the code of a run or service.

    In the storage, each run or service has its own copy, ``STORAGE/NAME/.code/HASH.zip``: namespaces that cannot see
    each other may share a storage, so nobody could tell when a shared copy is no longer used.
    """
    if not in_config_map and (cluster.selected or not cluster.storage):
        # The head itself holds the code: the URI has the form of Ray's own names.
        return CodePlace("cluster" if cluster.selected else "upload", f"gcs://_ray_pkg_{package.hash}.zip")
    folder = CODE_MOUNT if in_config_map else f"{cluster.storage.rstrip('/')}/{name}/{CODE_FOLDER}"
    uri = f"{'' if '://' in folder else 'file://'}{folder}/{package.hash}.zip"
    return CodePlace("plan" if in_config_map else "storage", uri)


def storage_template(template: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of the head's template that gives another pod access to the same storage."""
    said, pod = template.get("metadata") or {}, template["spec"]
    # KubeRay's own labels would make it a pod of the cluster; another label may be why something injects a volume.
    labels = {key: value for key, value in (said.get("labels") or {}).items() if not key.startswith("ray.io/")}
    container = {
        key: copy.deepcopy(pod["containers"][0][key]) for key in _CONTAINER_FIELDS if key in pod["containers"][0]
    }
    container["volumeMounts"] = [each for each in container.get("volumeMounts") or [] if each["name"] != CODE_VOLUME]
    kept = {key: copy.deepcopy(pod[key]) for key in _POD_FIELDS if key in pod}
    # Without the code's ConfigMap: it may not exist yet, or no longer.
    kept["volumes"] = [each for each in pod.get("volumes") or [] if each["name"] != CODE_VOLUME]
    metadata = {"labels": labels, "annotations": dict(said.get("annotations") or {})}
    return {"metadata": metadata, "spec": {**kept, "containers": [container]}}


def ray_job_spec(job: Job) -> dict[str, Any]:
    """Return the fields of a RayJob's spec that depend on the job alone."""
    spec: dict[str, Any] = {
        "entrypoint": f"python -m raykube.inside.attempts {job.max_retries} {shlex.quote(job.entrypoint)}",
        # The module above retries on the same cluster: a new cluster for each attempt would cost a minute.
        "backoffLimit": 0,
        "preRunningDeadlineSeconds": _whole(job.pending_timeout_s),
    }
    if job.timeout_s:
        spec["activeDeadlineSeconds"] = _whole(job.timeout_s)
    if job.entrypoint_num_cpus:
        spec["entrypointNumCpus"] = job.entrypoint_num_cpus
    if job.entrypoint_num_gpus:
        spec["entrypointNumGpus"] = job.entrypoint_num_gpus
    if job.entrypoint_resources:
        spec["entrypointResources"] = json.dumps(job.entrypoint_resources, sort_keys=True)
    return spec


def _whole(seconds: float) -> int:
    return math.ceil(seconds)  # Kubernetes counts in whole seconds, and refuses 0


def ray_cluster(cluster: Cluster, config_map: str, *, probed: bool = False) -> dict[str, Any]:
    """Return the manifest's spec with what KubeRay leaves out and every run needs.

    The ConfigMap named `config_map`, if any, holds the code and is mounted in every pod. With `probed` the pods get
    probes that begin after 1 s: KubeRay's own wait for 10 s. A service keeps KubeRay's, because they check more.
    """
    spec: dict[str, Any] = copy.deepcopy(dict(cluster.manifest["spec"]))
    spec["autoscalerOptions"] = {**(spec.get("autoscalerOptions") or {}), "version": "v2"}
    spec["authOptions"] = {"mode": "token", **(spec.get("authOptions") or {})}
    _complete_head(spec["headGroupSpec"], has_workers=bool(spec.get("workerGroupSpecs")))
    for group in manifests.groups(spec):
        if config_map:
            _mount(group, config_map)
        manifests.container(group).setdefault("terminationMessagePolicy", "FallbackToLogsOnError")
        if probed and manifests.knows_health_check(spec):
            _probe(group)
    return spec


def _probe(group: dict[str, Any]) -> None:
    """Add probes of Ray's agent, the readiness probe after 1 s already, unless the manifest has probes."""
    container = manifests.container(group)
    port = str((group.get("rayStartParams") or {}).get("dashboard-agent-listen-port", _AGENT_PORT))
    # The kubelet cannot probe a port that is a variable of the pod's shell.
    if {"readinessProbe", "livenessProbe", "startupProbe"} & container.keys() or not port.isdecimal():
        return
    health = {"httpGet": {"path": "/api/healthz", "port": int(port)}, "timeoutSeconds": 2}
    container["readinessProbe"] = {**health, "initialDelaySeconds": 1, "periodSeconds": 1, "failureThreshold": 120}
    container["livenessProbe"] = {**health, "initialDelaySeconds": 30, "periodSeconds": 5, "failureThreshold": 120}


def _complete_head(head: dict[str, Any], *, has_workers: bool) -> None:
    container = manifests.container(head)
    _add_ports(container)
    if has_workers:
        _declare_none(head, "num-cpus", "CPU")
    if not manifests.gpus(head):
        _declare_none(head, "num-gpus", "GPU")
        _add(container, "env", {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"})


def _declare_none(head: dict[str, Any], param: str, resource: str) -> None:
    """Declare that the head has none of a resource, unless the manifest sets it; its two places exclude each other."""
    if head.get("resources"):
        head["resources"].setdefault(resource, "0")
    else:
        head["rayStartParams"] = {param: "0", **(head.get("rayStartParams") or {})}


def _add_ports(container: dict[str, Any]) -> None:
    known = container.get("ports") or []
    said = {port.get("name") for port in known}
    names = {number: name for name, number in _HEAD_PORTS.items() if name not in said}
    # KubeRay finds ports only by name.
    known = [{"name": names[p["containerPort"]], **p} if p.get("containerPort") in names else p for p in known]
    taken = {port.get("name") for port in known} | {port.get("containerPort") for port in known}
    missing = [(name, port) for name, port in _HEAD_PORTS.items() if not {name, port} & taken]
    container["ports"] = [*known, *({"name": name, "containerPort": port} for name, port in missing)]


def _mount(group: dict[str, Any], config_map: str) -> None:
    _add(group["template"]["spec"], "volumes", {"name": CODE_VOLUME, "configMap": {"name": config_map}})
    mount = {"name": CODE_VOLUME, "mountPath": CODE_MOUNT, "readOnly": True}
    _add(manifests.container(group), "volumeMounts", mount)


def _add(owner: dict[str, Any], key: str, item: dict[str, Any]) -> None:
    """Append a named item to a list, unless the list has an item of that name."""
    items = owner.get(key) or []
    if all(known.get("name") != item["name"] for known in items):
        owner[key] = [*items, item]
