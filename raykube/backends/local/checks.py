"""Checks of plans: what this machine can never run is refused at once, instead of waited for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from raykube import wire
from raykube.backends.local import head
from raykube.cluster import Cluster
from raykube.errors import ConfigError, Problem
from raykube.rules import has_password
from raykube.specs import Job, Service


def refuse_impossible(work: Job | Service, on: Cluster) -> None:
    """Refuse what cannot run here.

    Raises:
        ConfigError: it needs a queue, too many CPUs, a storage that is no folder, or a missing model; names them all.
    """
    problems = []
    if "://" in on.storage:
        said = "what RAYKUBE_STORAGE names, with a password," if has_password(on.storage) else repr(on.storage)
        what = f"{said} is not a folder of this machine"
        problems.append(Problem("storage", what, "set RAYKUBE_STORAGE to a path"))
    if isinstance(work, Job) and work.queue:
        step = "leave it out, or name a place in Kubernetes: --on NAME|PATH"
        problems.append(Problem("queue", "is of Kueue, which this machine does not have", step))
    if isinstance(work, Job):
        problems += _too_many_cpus(work, on)
    else:
        problems += [
            Problem(f"apps[{number}].model", *missing)
            for number, app in enumerate(work.apps)
            if (missing := _missing_model(app.model or "", Path(on.storage)))
        ]
    if problems:
        raise ConfigError.of(f"{work.name} cannot run on this machine", problems)


def _too_many_cpus(job: Job, on: Cluster) -> Iterator[Problem]:
    scale, cpus = on.scale, head.cpu_count()
    driver = job.entrypoint_num_cpus or 0
    workers = scale.workers if isinstance(scale.workers, int) else scale.workers[0]
    if driver > cpus:
        what = f"the driver needs {driver:g} CPUs; this machine has {cpus}"
        yield Problem("entrypoint_num_cpus", what, "ask for fewer CPUs")
    elif workers * scale.cpus + driver > cpus:
        fits = int((cpus - driver) // scale.cpus)
        need = f"{workers} workers x {scale.cpus:g} CPU need {workers * scale.cpus:g} CPUs"
        need += f" and the driver {driver:g}" if driver else ""
        step = f"--workers {fits} fits" if fits > 0 else "ask for fewer CPUs"
        yield Problem("workers", f"{need}; this machine has {cpus}", step)


def with_absolute_models(service: Service) -> Service:
    """Return the service with absolute paths of models, as its replicas run in a folder of their own."""
    return service.model_copy(
        update={"apps": tuple(app.model_copy(update={"model": _absolute(app.model)}) for app in service.apps)}
    )


def _absolute(reference: str | None) -> str | None:
    return str(Path(reference).absolute()) if reference and _is_path(reference) else reference


def _is_path(reference: str) -> bool:
    """Whether a model reference is a path of this machine, not a run, a URI or a name in MLflow's registry."""
    return "://" not in reference and not reference.startswith(("models:/", "run:"))


def _missing_model(reference: str, storage: Path) -> tuple[str, str] | None:
    """Return what is wrong with a model reference, and what to do; None if this machine's folders show no fault."""
    is_run = reference.startswith("run:")
    if not reference or not (is_run or _is_path(reference)):
        return None
    name = reference.removeprefix("run:")
    has_result = (storage / name / wire.RESULT_FILE).exists()
    if is_run:
        return None if has_result else (f"run {name!r} has no result in {storage}", "see: raykube job list")
    if Path(reference).exists():
        return None
    return f"there is no checkpoint {reference!r}", f"did you mean run:{name}?" if has_result else "write run:NAME"
