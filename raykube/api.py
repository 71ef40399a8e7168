"""The verbs: plan, submit, deploy, runs, attach."""

from __future__ import annotations

from raykube import package, plans
from raykube.backends import Backend, backend_for
from raykube.cluster import Cluster
from raykube.handles import Endpoint, OnEvent, Run
from raykube.plans import Plan
from raykube.settings import setting
from raykube.specs import Job, Service


def place(on: str | Cluster | None = None) -> Cluster:
    """Return the cluster meant by `on`: one itself, ``"local"``, a preset's name or a manifest's path.

    None takes the setting ``on`` (``RAYKUBE_ON``, or ``[tool.raykube]`` in pyproject.toml), else ``"local"``.
    """
    return on if isinstance(on, Cluster) else Cluster.load(setting("on", on).value)


def plan(work: Job | Service, on: str | Cluster | None = None) -> Plan:
    """Return exactly what would be sent for `work`. Reads the working directory; uses no network.

    Raises:
        ConfigError: what cannot work, every problem at once.
    """
    cluster = place(on)
    if cluster.is_local:
        return backend_for(cluster).plan(work, cluster)
    code = package.collect(work.working_dir, work.excludes)
    if isinstance(work, Job):
        package.check_entrypoint(work.entrypoint, code)
        return plans.rayjob(work, cluster, code)
    return plans.rayservice(work, cluster, code)


def submit(job: Job, on: str | Cluster | None = None) -> Run:
    """Start `job` and return its handle at once.

    The same name with the same plan is the same run: a live or succeeded one is joined, a failed or
    stopped one goes on from its last complete checkpoint.

    Raises:
        ConfigError: what cannot work, found before anything is started.
        Conflict: the name is taken by a run of another plan.
    """
    cluster = place(on)
    backend = backend_for(cluster)
    return Run(backend.start(plan(job, cluster)), backend)


def deploy(
    service: Service, on: str | Cluster | None = None, *, timeout_s: float = 600, on_event: OnEvent | None = None
) -> Endpoint:
    """Make `service` what its spec says, wait until it answers, and return its handle.

    Raises:
        ConfigError: what cannot work, found before anything is started.
        BackendError: it failed to deploy.
        WaitTimeout: it is not ready within `timeout_s` seconds.
    """
    cluster = place(on)
    backend = backend_for(cluster)
    endpoint = Endpoint(backend.start(plan(service, cluster)), backend)
    return endpoint.wait_ready(timeout_s=timeout_s, on_event=on_event)


def runs(on: str | Cluster | None = None) -> list[Run]:
    """Return all runs of a place, oldest first."""
    backend = backend_for(place(on))
    return [Run(name, backend) for name in backend.names("job")]


def endpoints(on: str | Cluster | None = None) -> list[Endpoint]:
    """Return all services of a place, oldest first."""
    backend = backend_for(place(on))
    return [Endpoint(name, backend) for name in backend.names("service")]


def attach(name: str, on: str | Cluster | None = None) -> Run | Endpoint:
    """Return the handle of a run or service that was started before, by any process.

    Raises:
        NotFound: nothing is called `name` there.
    """
    backend: Backend = backend_for(place(on))
    kind = backend.status(name).kind
    return Run(name, backend) if kind == "job" else Endpoint(name, backend)
