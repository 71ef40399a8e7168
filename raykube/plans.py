"""Plans: exactly what would be sent for a job, service or cluster; printable, comparable, made without a network.

The builders add to the cluster's manifest what KubeRay leaves out and every run needs; fields that they do not know
stay as they are. Code of up to 1000 KiB is part of the plan, in a ConfigMap.
"""

from __future__ import annotations

import base64
import copy
import json
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raykube import bodies, fits, manifests, marks, rules, sameness, shapes, wire
from raykube.bodies import RUN_KEY, CodePlace, Limits, code_place, ray_cluster
from raykube.cluster import Cluster
from raykube.errors import ConfigError, Problem
from raykube.names import name_problem, nearest
from raykube.notes import of_beside, of_code, of_open_dashboard, of_storage, of_submitter
from raykube.package import Package, zipped
from raykube.runtime_env import text_problem
from raykube.sameness import LIMITS_KEY
from raykube.settings import LOCAL
from raykube.specs import Job, Service
from raykube.yamltext import as_yaml

__all__ = ["Plan", "raycluster", "rayjob", "rayservice", "written_rayjob"]

_MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
#: The kinds of objects in a RayJob's file that are sent; others are only named in a note.
_BESIDE = ("RayJob", "ConfigMap", "Secret", "Service")
_TRY_ZIP = 16 * 2**20
_UPLOAD_LIMIT = 100 * 2**20
_TOO_LARGE = "annotate the cluster with raykube.io/storage, or exclude files from the code"


@dataclass(frozen=True)
class Plan:
    """What would be sent, and the code that goes with it.

    Attributes:
        name: of the run or service.
        backend: ``"local"`` or ``"kuberay"``.
        body: Kubernetes objects; for ``"local"`` one body of Ray's Job API, or the Serve applications.
        package: the code.
        notes: what the reader should know before sending it.
        context: of the kubeconfig; "" for its current one.
        code: where a cluster on Kubernetes gets the code from; None when no code is sent, and on this machine.
    """

    name: str
    backend: str
    body: tuple[dict[str, Any], ...] = field(repr=False)  # it holds variables, in which people put passwords
    package: Package | None = None
    notes: tuple[str, ...] = ()
    context: str = ""
    code: CodePlace | None = None

    @property
    def namespace(self) -> str:
        """The namespace of the plan's objects; "" for the context's namespace, and on this machine."""
        return str(self.body[-1].get("metadata", {}).get("namespace", ""))

    @property
    def hash(self) -> str:
        """16 hexadecimal digits over the body; equal hashes mean that nothing would change."""
        return sameness.plan(self.body)

    @property
    def is_service(self) -> bool:
        """Whether the plan is of a service."""
        return any("import_path" in part or part.get("kind") == "RayService" for part in self.body)

    @property
    def limits(self) -> Limits:
        """The job's limits, as written in the body."""
        texts = [part["metadata"][LIMITS_KEY] for part in self.body if LIMITS_KEY in part.get("metadata", {})]
        return Limits(**json.loads(texts[0])) if texts else Limits()

    def yaml(self) -> str:
        """Return the body as YAML documents; the same body always gives the same text."""
        return "---\n".join(as_yaml(part) for part in self.body)


def rayjob(job: Job, cluster: Cluster, package: Package) -> Plan:
    """Plan a RayJob, with its code in a ConfigMap when the code is small.

    Raises:
        ConfigError: the job cannot be a RayJob on this cluster; lists every problem at once.
    """
    code = None if cluster.selected else _code_object(job.name, cluster, package)
    place = code_place(cluster, job.name, package, in_config_map=code is not None)
    upload = place.way == "upload"
    # KubeRay has accepted an existing cluster already, and by other rules than for a cluster that it makes for a job.
    in_place = rules.amount_problems if cluster.selected else rules.problems_of
    problems = [*in_place(cluster.manifest), *_missing_in_rayjob(job)]
    problems = problems or [*fits.problems(job, cluster)]
    problems += [*_retry_problems(job, package)] if upload else []
    problems += [*_size_problems(cluster, package)] if upload or cluster.selected else []
    if problems:
        raise ConfigError.of(f"{job.name} cannot be a RayJob on {cluster.name}", problems)
    environ = bodies.environ(job.name, cluster, package, job.timeout_s)
    env = bodies.runtime_env(job, environ, job.env_vars, "" if upload else place.uri)
    work_key = sameness.of_command(job.entrypoint, package.own_hash)
    spec = bodies.ray_job_spec(job)
    spec |= {
        "submissionMode": "InteractiveMode" if upload else "HTTPMode",
        "runtimeEnvYAML": as_yaml(env, sort_keys=True),
        "metadata": {**job.metadata, RUN_KEY: job.name, sameness.CODE_KEY: package.hash, wire.WORK_KEY: work_key},
    }
    spec |= _cluster_of(job, cluster, bodies.CODE_NAME.format(job.name) if code else "")
    metadata = _metadata(job.name, cluster, {marks.QUEUE: job.queue} if job.queue else {})
    if upload:
        spec["jobId"] = f"{job.name}-1"
    if cluster.selected and cluster.storage:
        template = bodies.storage_template(cluster.manifest["spec"]["headGroupSpec"]["template"])
        metadata.setdefault("annotations", {})[marks.STORAGE_POD] = json.dumps(template, sort_keys=True)
    work = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec}
    notes = (*_notes(cluster, place), *fits.notes(job, cluster))
    return _plan(cluster, (*([code] if code else []), work), notes, package, place)


def _cluster_of(job: Job, cluster: Cluster, config_map: str) -> dict[str, Any]:
    """Return the fields that say which cluster a RayJob runs on: one of its own, or an existing one."""
    if cluster.selected:
        return {"clusterSelector": {marks.CLUSTER: cluster.name}, "shutdownAfterJobFinishes": False}
    ttl = {"shutdownAfterJobFinishes": True, "ttlSecondsAfterFinished": math.ceil(job.keep_cluster_s)}
    return ttl | {"rayClusterSpec": ray_cluster(cluster, config_map, probed=True)}


def written_rayjob(documents: Sequence[Mapping[str, Any]], on: Cluster, name: str = "") -> Plan:
    """Plan a RayJob as it was written; raykube adds its labels and, to a ``generateName``, a suffix.

    Raises:
        ConfigError: Kubernetes would refuse the name, there is no spec, the objects are of different namespaces, the
            submission mode is unknown, or values have the wrong type.
    """
    problems = [*shapes.problems_of_objects(documents)]
    if problems := problems or [*text_problem((documents[-1].get("spec") or {}).get("runtimeEnvYAML"))]:
        raise ConfigError.of("the manifest cannot be submitted", problems)
    body = tuple(copy.deepcopy({**part, "metadata": part.get("metadata") or {}}) for part in documents)
    metadata = body[-1]["metadata"]
    prefix = metadata.pop("generateName", "")
    metadata["name"] = name or metadata.get("name") or f"{prefix}{secrets.token_hex(3)}"
    problem = name_problem(metadata["name"]) or ("" if (body[-1].get("spec")) else "there is no spec")
    if problem:
        raise ConfigError("the manifest cannot be submitted", why=problem, next_step="correct it, or give --name")
    left_out = [manifests.title(part) for part in body if part.get("kind") not in _BESIDE]
    body = tuple(part for part in body if part.get("kind") in _BESIDE)
    if not on.namespace and (problems := [*_namespace_problems(body)]):
        raise ConfigError.of("the manifest cannot be submitted", problems)
    for part in body:
        if on.namespace:
            part["metadata"]["namespace"] = on.namespace
        part["metadata"]["labels"] = {**(part["metadata"].get("labels") or {}), **marks.MANAGED_BY}
    spec = body[-1]["spec"]
    if (mode := spec.get("submissionMode") or _MODES[0]) not in _MODES:
        what = f"spec.submissionMode {mode!r} is not known, and KubeRay would wait for ever"
        raise ConfigError(what, next_step=nearest(str(mode), _MODES))
    notes = (*of_beside(left_out), *of_submitter(spec), *of_open_dashboard(spec))
    return _plan(on, body, notes)


def _namespace_problems(body: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
    """Yield the objects of another namespace than the RayJob; if it names none, only the server can tell."""
    *beside, ours = (str(part["metadata"].get("namespace") or "") for part in body)
    for part, theirs in zip(body, beside, strict=False):
        if ours and theirs and theirs != ours:
            what = f"is of namespace {theirs}, and the RayJob of {ours}"
            yield Problem(manifests.title(part), what, "write one namespace in both, or give -n NAMESPACE")


def _missing_in_rayjob(job: Job) -> list[Problem]:
    known = {"entrypoint_memory": job.entrypoint_memory, "entrypoint_label_selector": job.entrypoint_label_selector}
    what = "has no place in a RayJob"
    return [Problem(key, what, "use entrypoint_resources, or leave it out") for key, value in known.items() if value]


def _retry_problems(job: Job, package: Package) -> Iterator[Problem]:
    if job.max_retries:
        what = f"the code ({package.size:,} bytes) is too large for a ConfigMap and is uploaded by hand, once"
        yield Problem("max_retries", f"must be 0: {what}", _TOO_LARGE)


def _size_problems(cluster: Cluster, package: Package) -> Iterator[Problem]:
    if package.size > _UPLOAD_LIMIT:
        # The head of an existing cluster gets all code by upload, whatever storage the cluster has.
        step = "exclude files from the code" if cluster.selected else _TOO_LARGE
        yield Problem("working_dir", f"{package.size:,} bytes; an upload takes {_UPLOAD_LIMIT:,}", step)


def rayservice(service: Service, cluster: Cluster, package: Package) -> Plan:
    """Plan a RayService, with its code in a ConfigMap when the code is small.

    Raises:
        ConfigError: the manifest cannot work, no pod can fit a replica, or the code is too large for a ConfigMap and
            the cluster names no storage.
    """
    if problems := list(rules.problems_of(cluster.manifest)) or list(fits.of_replicas(service, cluster)):
        raise ConfigError.of(f"{service.name} cannot be a RayService on {cluster.name}", problems)
    code = _code_object(service.name, cluster, package)
    # A service gets a cluster of its own, even when `cluster` exists: only the manifest of that is used.
    place = code_place(replace(cluster, selected=False), service.name, package, in_config_map=code is not None)
    if place.way not in ("plan", "storage"):
        raise ConfigError(
            f"the code of {service.name} ({package.size:,} bytes) is too large for a ConfigMap",
            next_step=_TOO_LARGE,
        )
    spec = ray_cluster(cluster, bodies.CODE_NAME.format(service.name) if code else "")
    serve = {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": bodies.serve_port(spec)},  # noqa: S104 - inside a pod
        "applications": bodies.localservice(service, cluster, place.uri),
    }
    metadata = _metadata(service.name, cluster, {})
    # Without a timeout, a service that cannot start would keep its GPUs for ever.
    metadata["annotations"] = {marks.INITIALIZING_TIMEOUT: "30m", **metadata.get("annotations", {})}
    if code is None:
        metadata["annotations"][marks.CODE_IN_STORAGE] = "true"
    body = {"serveConfigV2": as_yaml(serve, sort_keys=True), "rayClusterConfig": spec}
    work = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata, "spec": body}
    return _plan(cluster, (*([code] if code else []), work), _notes(cluster, place, keeps=False), package, place)


def raycluster(cluster: Cluster, name: str) -> Plan:
    """Plan a long-lived RayCluster.

    Raises:
        ConfigError: `cluster` is this machine or has no manifest, or the name is reserved, or refused by Kubernetes.
    """
    if cluster.is_local:
        raise ConfigError(
            "there is no cluster to create on this machine: its Ray head starts with the first job",
            next_step="name a preset of cluster-configs/ or a manifest: --on PRESET|PATH",
        )
    cluster.check_manifest()
    taken = "means this machine wherever a cluster is named: choose another name" if name == LOCAL else ""
    if problem := name_problem(name, rules.MAX_CLUSTER_NAME) or taken:
        raise ConfigError.of(f"no cluster can be called {name!r}", [Problem("name", problem)])
    metadata, spec = _metadata(name, cluster, {}), ray_cluster(cluster, "", probed=True)
    body = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata, "spec": spec}
    return _plan(cluster, (body,), tuple(of_beside(cluster.beside)))


def _code_object(name: str, cluster: Cluster, package: Package) -> dict[str, Any] | None:
    """Return the ConfigMap that carries the code; None when the code is too large for one."""
    data = zipped(package) if package.size <= _TRY_ZIP else b""
    if not data or len(data) > bodies.CONFIG_MAP_LIMIT:
        return None
    metadata = _metadata(bodies.CODE_NAME.format(name), cluster, {})
    metadata.pop("annotations", None)
    content = {f"{package.hash}.zip": base64.b64encode(data).decode()}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "binaryData": content}


def _metadata(name: str, cluster: Cluster, labels: dict[str, str]) -> dict[str, Any]:
    """Return an object's metadata: that of the manifest, with this name and raykube's labels."""
    kept = manifests.metadata(cluster.manifest)
    return kept | {"name": name, "labels": kept.get("labels", {}) | marks.MANAGED_BY | labels}


def _plan(
    cluster: Cluster,
    body: tuple[dict[str, Any], ...],
    notes: tuple[str, ...],
    package: Package | None = None,
    code: CodePlace | None = None,
) -> Plan:
    digest, work = sameness.plan(body), sameness.work(body)
    for part in body:
        part["metadata"]["labels"][marks.PLAN] = digest
    if body[-1]["kind"] == "RayJob":
        body[-1]["metadata"]["labels"][marks.WORK] = work
    return Plan(body[-1]["metadata"]["name"], "kuberay", body, package, notes, cluster.context, code)


def _notes(cluster: Cluster, code: CodePlace, *, keeps: bool = True) -> tuple[str, ...]:
    """Return the notes for a plan's reader; `keeps`: whether the work has anything to keep in a storage."""
    notes = [*of_beside(cluster.beside), *of_storage(cluster.manifest)]
    if keeps and not cluster.storage:
        notes.append(
            f"{cluster.source} has no annotation raykube.io/storage: checkpoints and results are lost with the cluster"
        )
    return (*notes, *of_code(code))
