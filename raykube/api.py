"""The verbs that Python code calls (plan, submit, deploy, runs, attach), and their steps for the command line."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar, overload

from raykube import package
from raykube.backends import Backend, Kind, backend_for, backend_of
from raykube.cluster import Cluster
from raykube.errors import ConfigError, NotFound
from raykube.handles import Endpoint, OnEvent, Run, check_time, ready
from raykube.here import from_here
from raykube.names import asked_for
from raykube.plans import Plan
from raykube.settings import KUBERNETES, setting
from raykube.specs import Job, Service

_Work = TypeVar("_Work", Job, Service)
_NOUNS: Mapping[Kind, str] = {"job": "run", "service": "service"}


def cluster_of(on: str | Path | Cluster | None = None) -> Cluster:
    """Return the cluster that `on` names; :func:`plan` says how."""
    if isinstance(on, Cluster):
        return on
    return Cluster.load(on if isinstance(on, Path) else setting("on", on).value)


def plan(work: Job | Service, on: str | Path | Cluster | None = None) -> Plan:
    """Return exactly what would be sent for `work`. Reads the working directory; uses no network.

    Args:
        work: the job or service.
        on: the place. ``"local"`` is this machine. Other text is the name of a preset, or the path of a RayCluster
            manifest if it has a ``/`` or ends with ``.yaml`` or ``.yml``; a `Path` is always a path. A :class:`Cluster`
            is taken as it is. None takes the environment variable ``RAYKUBE_ON``, else the key ``on`` of
            ``[tool.raykube]`` in pyproject.toml, else ``"local"``.

    Raises:
        ConfigError: the work cannot run as specified; lists every problem at once.
    """
    if not isinstance(work, (Job, Service)):
        raise _wrong_type("Job or Service", work)
    work = work.model_copy()  # checks it again: the caller may have changed its dicts, and may still do so
    if "working_dir" not in work.model_fields_set:
        package.check_implied(from_here("."))
    cluster = cluster_of(on)
    return backend_for(cluster).plan(work, cluster)


def running(name: str, on: Cluster) -> Cluster:
    """Return a long-lived cluster on Kubernetes that jobs can be submitted to.

    Raises:
        ConfigError: `name` is not a valid name.
        NotFound: there is no cluster of that name.
    """
    from raykube.backends.kuberay.backend import KubeRay

    return KubeRay(context=on.context, namespace=on.namespace).cluster(asked_for(name, "cluster"))


def check(planned: Plan) -> None:
    """Ask the place whether it would accept the plan, without starting anything.

    Raises:
        ManifestError: the place does not know or accept some fields; each is listed with its path.
        ConfigError: the plan is for this machine, which has no such check.
    """
    backend_of(planned).check(planned)


def start(planned: Plan) -> Run:
    """Send the plan of a job, exactly as it was planned."""
    place = backend_of(planned)
    return Run(place.start(planned), place)


def serve(planned: Plan) -> Endpoint:
    """Send the plan of a service, exactly as it was planned."""
    place = backend_of(planned)
    return Endpoint(place.start(planned), place, planned.hash)


def _long_lived(name: str, on: str | Path | Cluster | None) -> Cluster:
    """Return the long-lived cluster `name` at `on`; when `on` is None and the setting is local, look on Kubernetes."""
    place = cluster_of(on)
    if place.is_local and on is not None:
        what = f"this machine has no cluster {name}"
        raise ConfigError(what, next_step=f"name a place in Kubernetes, or leave out on or cluster={name!r}")
    return running(name, Cluster.load(KUBERNETES) if place.is_local else place)


def submit(job: Job, on: str | Path | Cluster | None = None, *, cluster: str = "") -> Run:
    """Start `job` and return its handle at once.

    The same name with the same plan is the same run: if it is live or has succeeded, the handle is of that run; if
    it failed or was stopped, it resumes from its last complete checkpoint, provided its script loads it.

    Args:
        job: what to run.
        on: the place, as for :func:`plan`.
        cluster: the name of a long-lived cluster there to run on; by default the job gets a cluster of its own.

    Raises:
        ConfigError: the job cannot run as specified; found before anything is started.
        NotFound: there is no such `cluster`.
        ManifestError: Kubernetes does not know or accept some fields; each is listed with its path.
        Conflict: the name is taken by a run of another plan, or by a service or cluster.
        Forbidden: this user may not submit there.
        Unreachable: the place does not answer.
        BackendError: the job was refused, or the head cannot start; Conflict, Forbidden and Unreachable are
            subclasses.
    """
    return start(plan(_only(job, Job), _long_lived(cluster, on) if cluster else on))


def deploy(
    service: Service,
    on: str | Path | Cluster | None = None,
    *,
    timeout_s: float | None = 600,
    on_event: OnEvent | None = None,
) -> Endpoint:
    """Create or update `service` as its spec says, wait until it answers, and return its handle.

    Args:
        service: what to serve.
        on: the place, as for :func:`plan`.
        timeout_s: seconds, sending included, after which to give up waiting; the deployment itself goes on. None waits
            without an end.
        on_event: called with every change that the wait sees.

    Raises:
        ConfigError: the service cannot run as specified; found before anything is started.
        BackendError: the service was refused, or failed to deploy; ServiceFailed, Conflict, Forbidden and Unreachable
            are subclasses.
        WaitTimeout: the service is not ready within `timeout_s` seconds.
    """
    check_time(timeout_s)
    planned, begun = plan(_only(service, Service), on), time.monotonic()
    return ready(serve(planned), timeout_s, begun, on_event)


def _only(work: _Work, kind: type[_Work]) -> _Work:
    if not isinstance(work, kind):
        raise _wrong_type(kind.__name__, work)
    return work


def _wrong_type(kind: str, work: object) -> ConfigError:
    """Return the error for a value of the wrong type. Only text is shown in full: a spec could fill the screen."""
    text = work if isinstance(work, str) else ""
    written = f"rk.Job(entrypoint={text or 'python a.py'!r})"
    if kind == "Service":
        written = f"rk.Service(name='a-name', apps=[rk.App(import_path={text or 'a:app'!r})])"
    elif callable(work):
        written += ", where a.py calls it"
    verbs: Mapping[type, str] = {Job: "rk.submit(job)", Service: "rk.deploy(service)"}
    what = f"the text {work!r}" if text else f"a value of type {type(work).__name__}"
    return ConfigError(f"{what} is no {kind}", next_step=f"write {verbs.get(type(work), written)}")


def runs(on: str | Path | Cluster | None = None) -> list[Run]:
    """Return all runs of a place, oldest first; on Kubernetes, those that raykube made in the place's namespace.

    Args:
        on: the place, as for :func:`plan`, or ``"kubernetes"``: Kubernetes, whatever cluster a job would get there.

    Raises:
        ConfigError: there is no such place, or a setting is wrong.
        Forbidden: this user may not list them.
        Unreachable: the place does not answer.
    """
    place = backend_for(cluster_of(on))
    return [Run(name, place) for name in place.names("job")]


def endpoints(on: str | Path | Cluster | None = None) -> list[Endpoint]:
    """Return all services of a place, oldest first.

    Args:
        on: the place, as for :func:`runs`.

    Raises:
        ConfigError, Forbidden, Unreachable: as for :func:`runs`.
    """
    place = backend_for(cluster_of(on))
    return [Endpoint(name, place) for name in place.names("service")]


@overload
def attach(name: str, on: str | Path | Cluster | None = None, *, kind: Literal["job"]) -> Run: ...
@overload
def attach(name: str, on: str | Path | Cluster | None = None, *, kind: Literal["service"]) -> Endpoint: ...
@overload
def attach(name: str, on: str | Path | Cluster | None = None, *, kind: Kind | None = None) -> Run | Endpoint: ...
def attach(name: str, on: str | Path | Cluster | None = None, *, kind: Kind | None = None) -> Run | Endpoint:
    """Return the handle of a run or service that was started before, by any process.

    Args:
        name: of the run or service.
        on: the place where it is, as for :func:`runs`.
        kind: ``"job"`` returns only a run, ``"service"`` only a service. By default, whatever has the name is returned:
            the run, when both a run and a service have it.

    Raises:
        ConfigError: `name` is not a valid name, there is no such place or kind, or a setting is wrong.
        NotFound: nothing is called `name` there, or nothing of that `kind`.
        Forbidden: this user may not look there.
        Unreachable: the place does not answer.
    """
    if kind not in (None, *_NOUNS):
        raise ConfigError(f"there is no kind {kind!r}", next_step="give kind='job' or kind='service', or leave it out")
    place = backend_for(cluster_of(on))
    found = _kind_of(place, asked_for(name), kind)
    if kind and kind != found:
        what = f"{name} is a {_NOUNS[found]}, not a {_NOUNS[kind]}"
        raise NotFound(what, next_step=f"raykube {found} status {name}; in Python, attach with kind={found!r}")
    return Run(name, place) if found == "job" else Endpoint(name, place)


def _kind_of(place: Backend, name: str, kind: Kind | None) -> Kind:
    """Return what has a name: what is asked for, if that has it, else the other."""
    try:
        return place.kind_of(name, kind)
    except NotFound:
        if kind is None:
            raise
        with contextlib.suppress(NotFound):  # if neither exists, the first error names the kind that was asked for
            return place.kind_of(name)
        raise
