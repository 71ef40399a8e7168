"""Whether a cluster can ever fit what a job's driver reserves, and can be queued by Kueue. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from raykube import manifests, marks
from raykube.bodies import ray_cluster
from raykube.cluster import Cluster, scaled_group
from raykube.errors import Problem
from raykube.specs import Job

_RESERVED = {"entrypoint_num_cpus": ("CPU", manifests.cpus), "entrypoint_num_gpus": ("GPU", manifests.gpus)}


def problems(job: Job, cluster: Cluster) -> Iterator[Problem]:
    """Yield what the driver reserves and no pod can fit (Ray would wait for ever), and what Kueue does not queue."""
    for field, (what, of_pod) in _RESERVED.items():
        most = max(of_pod(group) for group, _ in _groups(cluster))
        wanted = getattr(job, field) or 0
        if wanted > most:
            yield Problem(field, f"is {wanted:g}, and the largest pod has {most} {what}s", "ask for less")
    yield from _queue_problems(job, cluster)


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
    each = {"entrypoint_num_cpus": scale.cpus, "entrypoint_num_gpus": scale.gpus}
    for field, (what, of_pod) in _RESERVED.items():
        driver = getattr(job, field) or 0
        there = sum(of_pod(group) * pods for group, pods in _groups(cluster))
        if workers * each[field] + driver > there:
            need = f"{workers} workers x {each[field]:g} {what}" + (f" and the driver's {driver:g}" if driver else "")
            yield f"{field}: {need} are more than the cluster's {there}: a training would wait for ever"
    group, scales = scaled_group(cluster.manifest["spec"]), cluster.manifest["spec"].get("enableInTreeAutoscaling")
    if scales and "groupName" in group and manifests.max_replicas(group) == manifests.UNBOUNDED:
        yield f"group {group['groupName']} has no maxReplicas: a training gets {workers} and does not grow"


def _groups(cluster: Cluster) -> Iterator[tuple[Mapping[str, Any], int]]:
    """Yield each group with the number of pods that it may have."""
    spec = cluster.manifest["spec"] if cluster.selected else ray_cluster(cluster, "")
    grown = {"replicas": manifests.UNBOUNDED} if spec.get("enableInTreeAutoscaling") else {}
    for group in manifests.groups(spec):
        yield group, manifests.pods(group | grown)
