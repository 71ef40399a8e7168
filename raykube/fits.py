"""Whether a cluster can ever fit what a driver or a replica reserves, and can be queued by Kueue. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from raykube import manifests, marks
from raykube.bodies import ray_cluster
from raykube.cluster import Cluster, scaled_group
from raykube.errors import Problem
from raykube.specs import Job, Service

_RESERVED = {"num_cpus": ("CPU", manifests.cpus), "num_gpus": ("GPU", manifests.gpus)}


def problems(job: Job, cluster: Cluster) -> Iterator[Problem]:
    """Yield what the driver reserves and no pod can fit (Ray would wait for ever), and what Kueue does not queue."""
    reserved = {key: getattr(job, f"entrypoint_{key}") for key in _RESERVED}
    yield from _too_much("entrypoint_", reserved, cluster)
    yield from _queue_problems(job, cluster)


def of_replicas(service: Service, cluster: Cluster) -> Iterator[Problem]:
    """Yield what a replica reserves and no pod can fit: Serve would wait for ever."""
    for number, app in enumerate(service.apps):
        yield from _too_much(f"apps[{number}].ray_actor_options.", app.ray_actor_options, cluster)


def _too_much(prefix: str, reserved: Mapping[str, Any], cluster: Cluster) -> Iterator[Problem]:
    for key, (what, of_pod) in _RESERVED.items():
        most = max(of_pod(group) for group, _ in _groups(cluster))
        wanted = reserved.get(key) or 0
        if isinstance(wanted, (int, float)) and wanted > most:
            yield Problem(f"{prefix}{key}", f"is {wanted:g}, and the largest pod has {most} {what}s", "ask for less")


def _queue_problems(job: Job, cluster: Cluster) -> Iterator[Problem]:
    """Yield why a queue cannot work on this cluster: Kueue would ignore the queue, or refuse the RayJob."""
    said = manifests.metadata(cluster.manifest)
    if not (job.queue or (said.get("labels") or {}).get(marks.QUEUE)):
        return
    if cluster.selected:
        what = f"Kueue has no job wait for a cluster that is there, as {cluster.name} is"
        yield Problem("queue", what, "leave it out; or have a cluster made for the job, which Kueue admits")
    elastic = str((said.get("annotations") or {}).get(marks.ELASTIC_JOB) or "") == "true"
    if not cluster.selected and cluster.manifest["spec"].get("enableInTreeAutoscaling") and not elastic:
        what = "Kueue refuses a job whose cluster Ray's autoscaler sizes, unless it is an elastic one"
        step = f'ask for a number of workers, not a range; or annotate the manifest with {marks.ELASTIC_JOB}: "true"'
        yield Problem("queue", what, f"{step}, where Kueue has the feature ElasticJobsViaWorkloadSlices")


def notes(job: Job, cluster: Cluster) -> Iterator[str]:
    """Yield a note when driver and workers do not fit together, or when workers can scale but have no maximum."""
    scale = cluster.scale
    workers = scale.workers if isinstance(scale.workers, int) else scale.workers[0]
    each = {"num_cpus": scale.cpus, "num_gpus": scale.gpus}
    for key, (what, of_pod) in _RESERVED.items():
        driver = getattr(job, f"entrypoint_{key}") or 0
        there = sum(of_pod(group) * pods for group, pods in _groups(cluster))
        if workers * each[key] + driver > there:
            need = f"{workers} workers x {each[key]:g} {what}" + (f" and the driver's {driver:g}" if driver else "")
            yield f"entrypoint_{key}: {need} are more than the cluster's {there}: a training would wait for ever"
    group, scales = scaled_group(cluster.manifest["spec"]), cluster.manifest["spec"].get("enableInTreeAutoscaling")
    if scales and "groupName" in group and manifests.max_replicas(group) == manifests.UNBOUNDED:
        yield f"group {group['groupName']} has no maxReplicas: a training gets {workers} and does not grow"


def _groups(cluster: Cluster) -> Iterator[tuple[Mapping[str, Any], int]]:
    """Yield each group with the number of pods that it may have."""
    spec = cluster.manifest["spec"] if cluster.selected else ray_cluster(cluster, "")
    grown = {"replicas": manifests.UNBOUNDED} if spec.get("enableInTreeAutoscaling") else {}
    for group in manifests.groups(spec):
        yield group, manifests.pods(group | grown)
