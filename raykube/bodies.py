"""The parts of a RayJob and RayService: the cluster with what every run needs added, and the job's own fields."""

from __future__ import annotations

import copy
import json
import math
import shlex
from collections.abc import Mapping
from typing import Any

from raykube import manifests
from raykube.cluster import Cluster
from raykube.package import Package
from raykube.specs import Job

CODE_MOUNT = "/etc/raykube/code"
CODE_VOLUME = "raykube-code"
CODE_FOLDER = ".code"
#: Bytes of code that a ConfigMap holds. The API server counts the bytes themselves, not their base64, up to 1 MiB. So
#: they lie in etcd, too, which takes 1.5 MiB with the metadata; a request, where they are base64, may have 3 MiB.
CONFIG_MAP_LIMIT = 1000 * 1024
#: The label of a cluster's pods and, in a clusterSelector, what names the cluster of a job.
CLUSTER_LABEL = "ray.io/cluster"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
#: What the URI begins with of code that a head holds itself.
HELD = "gcs://"
#: Of a RayService that has, or once had, code in its storage.
STORED_ANNOTATION = "raykube.io/code-in-storage"
#: Of a pod, and of its container: where it may stand, and what it can reach there.
_STANDS = (
    *("volumes", "serviceAccountName", "imagePullSecrets", "nodeSelector", "tolerations", "securityContext"),
    *("affinity", "priorityClassName", "runtimeClassName", "schedulerName", "hostAliases", "dnsPolicy", "dnsConfig"),
)
_SEES = ("image", "imagePullPolicy", "env", "envFrom", "volumeMounts", "securityContext")
_AGENT_PORT = 52365  # unless rayStartParams name another
_HEAD_PORTS = {
    "gcs-server": 6379,
    "dashboard": manifests.PORTS["dashboard"],
    "client": 10001,
    "serve": manifests.PORTS["serve"],
    "metrics": 8080,
}


def serve_port(cluster_spec: Mapping[str, Any]) -> int:
    """Return the port that a cluster's proxies listen on: the one that its head names ``serve``."""
    return manifests.port(manifests.first_container(cluster_spec.get("headGroupSpec")), "serve")


def code_uri(storage: str, name: str, package: Package, *, in_config_map: bool) -> str:
    """Return where a cluster reads the zip of a run's or service's code: the mounted ConfigMap, or its storage.

    There each has its own copy, ``STORAGE/NAME/.code/HASH.zip``: a storage may be shared by namespaces that cannot see
    each other, so nobody could tell when the last one that uses it is gone.
    """
    folder = CODE_MOUNT if in_config_map else f"{storage.rstrip('/')}/{name}/{CODE_FOLDER}"
    return f"{'' if '://' in folder else 'file://'}{folder}/{package.hash}.zip"


def storage_template(template: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a pod has of the head's template that sees the same storage."""
    said, pod = template.get("metadata") or {}, template["spec"]
    # By KubeRay's own labels it would be taken for one of the cluster's; others may be what has a volume put in.
    labels = {key: value for key, value in (said.get("labels") or {}).items() if not key.startswith("ray.io/")}
    container = {key: copy.deepcopy(pod["containers"][0][key]) for key in _SEES if key in pod["containers"][0]}
    container["volumeMounts"] = [each for each in container.get("volumeMounts") or [] if each["name"] != CODE_VOLUME]
    kept = {key: copy.deepcopy(pod[key]) for key in _STANDS if key in pod}
    # Without the code: that is not there yet, or not any more.
    kept["volumes"] = [each for each in pod.get("volumes") or [] if each["name"] != CODE_VOLUME]
    metadata = {"labels": labels, "annotations": dict(said.get("annotations") or {})}
    return {"metadata": metadata, "spec": {**kept, "containers": [container]}}


def held_uri(package: Package) -> str:
    """Return the URI of a package that a head holds itself, by Ray's own form of name."""
    return f"{HELD}_ray_pkg_{package.hash}.zip"


def ray_job_spec(job: Job) -> dict[str, Any]:
    """Return the fields of a RayJob that follow from the job alone."""
    spec: dict[str, Any] = {
        "entrypoint": f"python -m raykube.inside.attempts {job.max_retries} {shlex.quote(job.entrypoint)}",
        # Attempts are made on the one cluster, by the module above: a new cluster for each costs a minute.
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
    probes that begin at once: KubeRay's own wait for ten seconds, and what serves needs more than they ask.
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
    """Have Ray's agent asked whether it is well, from the first second on, unless the manifest has probes."""
    container = manifests.container(group)
    port = str((group.get("rayStartParams") or {}).get("dashboard-agent-listen-port", _AGENT_PORT))
    # A port that only the pod's shell knows cannot be asked.
    if {"readinessProbe", "livenessProbe", "startupProbe"} & container.keys() or not port.isdecimal():
        return
    health = {"httpGet": {"path": "/api/healthz", "port": int(port)}, "timeoutSeconds": 2}
    container["readinessProbe"] = {**health, "initialDelaySeconds": 1, "periodSeconds": 1, "failureThreshold": 120}
    container["livenessProbe"] = {**health, "initialDelaySeconds": 30, "periodSeconds": 5, "failureThreshold": 120}


def _complete_head(head: dict[str, Any], *, has_workers: bool) -> None:
    container = manifests.container(head)
    _add_ports(container)
    if has_workers:
        _say(head, "num-cpus", "CPU")
    if not manifests.gpus(head):
        _say(head, "num-gpus", "GPU")
        _add(container, "env", {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"})


def _say(head: dict[str, Any], param: str, resource: str) -> None:
    """Declare none of a resource, unless the manifest says how much; the two places for it exclude each other."""
    if head.get("resources"):
        head["resources"].setdefault(resource, "0")
    else:
        head["rayStartParams"] = {param: "0", **(head.get("rayStartParams") or {})}


def _add_ports(container: dict[str, Any]) -> None:
    known = container.get("ports") or []
    said = {port.get("name") for port in known}
    names = {number: name for name, number in _HEAD_PORTS.items() if name not in said}
    # KubeRay finds them by their names alone.
    known = [{"name": names[p["containerPort"]], **p} if p.get("containerPort") in names else p for p in known]
    taken = {port.get("name") for port in known} | {port.get("containerPort") for port in known}
    missing = [(name, port) for name, port in _HEAD_PORTS.items() if not {name, port} & taken]
    container["ports"] = [*known, *({"name": name, "containerPort": port} for name, port in missing)]


def _mount(group: dict[str, Any], config_map: str) -> None:
    _add(group["template"]["spec"], "volumes", {"name": CODE_VOLUME, "configMap": {"name": config_map}})
    mount = {"name": CODE_VOLUME, "mountPath": CODE_MOUNT, "readOnly": True}
    _add(manifests.container(group), "volumeMounts", mount)


def _add(owner: dict[str, Any], key: str, item: dict[str, Any]) -> None:
    """Append a named item to a list, unless one of that name is there."""
    items = owner.get(key) or []
    if all(known.get("name") != item["name"] for known in items):
        owner[key] = [*items, item]
