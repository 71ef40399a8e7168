"""Whether a cluster can ever have what a job's driver reserves for itself. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from raykube import manifest as manifests
from raykube.cluster import Cluster
from raykube.errors import Problem
from raykube.specs import Job

_RESERVED = {"entrypoint_num_cpus": ("CPUs", manifests.cpus), "entrypoint_num_gpus": ("GPUs", manifests.gpus)}

_UNBOUNDED = 2**31 - 1


def problems(job: Job, cluster: Cluster) -> Iterator[Problem]:
    """Yield what no pod of a sound manifest has: Ray would look for a place for ever."""
    for field, (what, of_pod) in _RESERVED.items():
        most = max(of_pod(group) for group, _ in _groups(cluster))
        wanted = getattr(job, field) or 0
        if wanted > most:
            yield Problem(field, f"is {wanted:g}, and the largest pod has {most} {what}", "ask for less")


def notes(job: Job, cluster: Cluster) -> Iterator[str]:
    """Say when driver and workers do not fit beside each other: the workers would wait for ever."""
    scale, driver = cluster.scale, job.entrypoint_num_cpus or 0
    workers = scale.workers if isinstance(scale.workers, int) else scale.workers[0]
    there = sum(manifests.cpus(group) * pods for group, pods in _groups(cluster))
    if driver and workers * scale.cpus + driver > there:
        need = f"{workers} workers x {scale.cpus:g} CPU and the driver's {driver:g}"
        yield f"entrypoint_num_cpus: {need} are more than the cluster's {there}: a training would wait for ever"


def _groups(cluster: Cluster) -> Iterator[tuple[Mapping[str, Any], int]]:
    """Yield the groups with how many pods each may have."""
    spec = cluster.manifest["spec"]
    yield spec["headGroupSpec"], 1
    for group in spec.get("workerGroupSpecs") or []:
        yield group, _pods(group, scales=bool(spec.get("enableInTreeAutoscaling"))) * int(group.get("numOfHosts") or 1)


def _pods(group: Mapping[str, Any], *, scales: bool) -> int:
    count = group.get("maxReplicas" if scales else "replicas")
    if count is None:
        return _UNBOUNDED if scales else int(group.get("minReplicas") or 0)
    return int(count)
