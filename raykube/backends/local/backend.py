"""The local backend: the jobs and services of this machine, on one Ray head that raykube owns.

A client writes a record, sends the job and may then die: the record, the head's keeper and Ray go on.
Another process can ask for everything by name, even after the head is gone.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from raykube import bodies, package, wire
from raykube.backends import Kind, Status, endings, sources
from raykube.backends.local import (
    checks,
    disk,
    following,
    head,
    jobs,
    observe,
    ranklogs,
    records,
    services,
    starting,
    zips,
)
from raykube.backends.local.records import Record
from raykube.cluster import Cluster
from raykube.entrypoints import check_code
from raykube.errors import BackendError, ConfigError, NotFound
from raykube.plans import Plan
from raykube.specs import Job, Service
from raykube.wire import Result

_log = logging.getLogger("raykube")
_POLL_S = 0.1
_LOOK_S = 0.2
_STOP_TIMEOUT_S = 30.0  # more than its keeper waits for Ray
#: Sources of logs that only Kubernetes has: what to say, why, and what to do instead.
_NOT_HERE = {
    sources.AUTOSCALER: (
        "there is no autoscaler on this machine",
        "its Ray head has the CPUs of this machine, no more and no fewer",
        "submit it to Kubernetes with a range of workers: --on NAME --workers 1..4",
    ),
    sources.EVENTS: (
        "there are no events on this machine",
        "they are what Kubernetes notes about the objects of a run",
        "raykube job why {name} says why the run is where it is",
    ),
}


@dataclass(frozen=True)
class Local:
    """Runs plans on this machine. See :class:`raykube.backends.Backend` for the methods."""

    def plan(self, work: Job | Service, on: Cluster) -> Plan:
        """Return the body that Ray's Job API or Serve API will get."""
        checks.refuse_impossible(work, on)
        code = package.collect(work.working_dir, work.excludes)
        uri = zips.path_of(code).as_uri()
        check_code(work, code, here=True)
        if isinstance(work, Service):
            applications = bodies.localservice(checks.with_absolute_models(work), on, uri)
            return Plan(work.name, "local", tuple(applications), code)
        return Plan(work.name, "local", (bodies.localjob(work, on, uri, code),), code)

    def check(self, plan: Plan) -> None:
        """Refuse: there is no server to ask, and a local plan was fully checked when it was made."""
        raise ConfigError(f"there is no server to ask about {plan.name}", next_step="write --dry-run=client")

    def start(self, plan: Plan) -> str:
        """Send the plan to the head, starting it if need be."""
        records.ensure_home()
        with disk.errors(), head.lock():
            if plan.package:
                zips.keep(plan.package)
            if plan.is_service:
                services.deploy(plan)
            else:
                jobs.submit(plan)
        return plan.name

    def kind_of(self, name: str, kind: Kind | None = None) -> Kind:
        """Return whether the record of this name is of a job or a service."""
        return _load(name, kind).kind

    def status(self, name: str, kind: Kind | None = None) -> Status:
        """Return the state now; for a run that has ended, the state in which it ended."""
        record = _load(name, kind)
        if record.kind == "service":
            return services.status(record)
        if (status := records.final(name)) is None:
            starting.keep_watched()
            # Read the record again: a run that was sent again meanwhile, to another head, has no end any more.
            status = jobs.live_status(_load(name, "job"))
        if status.state != "STOPPED":
            return status
        if jobs.is_being_deleted(name):
            return replace(status, detail=endings.BEING_DELETED)
        _load(name, "job")  # raises NotFound if it is deleted by now
        return status

    def changes(self, name: str, kind: Kind | None = None) -> Iterator[Status]:
        """Yield the status again and again; while the head does not answer, repeat the last one for a while."""
        last = Status(name, kind or "job", "WAITING", "its head on this machine does not answer")
        for status in following.answers(lambda: self.status(name, kind)):
            last = status or last
            yield last
            time.sleep(_LOOK_S)

    def logs(
        self, name: str, kind: Kind | None = None, *, follow: bool, source: str = sources.DRIVER
    ) -> Generator[str, None, None]:
        """Yield the output of the driver (of all attempts in turn), a training worker, or a service's replicas."""
        rank, record = sources.rank_of(source), _load(name, kind)
        if source in _NOT_HERE:
            what, why, step = _NOT_HERE[source]
            raise ConfigError(what, why=why, next_step=step.format(name=name))
        if record.kind == "service":
            yield from services.logs(record, follow=follow)
        elif rank is not None:
            is_open = following.goes_on(lambda: self.status(name), lambda found: not found.is_terminal, follow=follow)
            yield from ranklogs.lines(record, rank, follow=follow, is_open=is_open)
        else:
            yield from self._driver(record, follow=follow)

    def _driver(self, record: Record, *, follow: bool) -> Iterator[str]:
        attempt = 1

        def is_open(found: Status) -> bool:
            return found.attempt == attempt and not found.is_terminal

        while attempt <= records.attempt(record.name):
            paths = [observe.log_path(record, attempt, head.seen())]
            going = following.goes_on(lambda: self.status(record.name), is_open, follow=follow)
            yield from following.lines(paths.copy, is_open=going)
            attempt += 1

    def result(self, name: str) -> Result | None:
        """Read the result that the run left in its storage."""
        record = _load(name, "job")
        path = Path(record.storage) / name / wire.RESULT_FILE
        with contextlib.suppress(FileNotFoundError), disk.reading(path, disk.CHECK_STORAGE):
            return Result.from_json(path.read_text(encoding="utf-8"))
        return None

    def stop(self, name: str, kind: Kind | None = None) -> None:
        """Stop a job and wait until it has stopped; take a service down."""
        record = _load(name, kind)
        if record.kind == "service":
            with head.lock():
                services.take_down(record)
            return
        if records.final(name):
            return
        starting.keep_watched()
        records.request_stop(name)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        # A run that was sent under this name since has not been asked to stop.
        while observe.is_current(record) and not (status := self.status(name)).is_terminal:
            if time.monotonic() > deadline:
                raise BackendError(
                    f"run {name} has not stopped within {_STOP_TIMEOUT_S:g} s",
                    why=f"it is {status.state}",
                    next_step=f"look again: raykube job status {name}; or end all: raykube cluster delete local",
                )
            if running := head.current():
                observe.stop(record, status.attempt, head.api(running))
            time.sleep(_POLL_S)

    def delete(self, name: str, kind: Kind | None = None) -> None:
        """Stop it; remove its record and logs, code that nothing else uses and, for a job, its stored files."""
        record = None
        try:
            record = self._stop_and_wait(name, kind)
        except records.Unreadable as error:
            _log.warning("%s: %s; what it may have left on the head or in its storage stays", error.what, error.why)
        with head.lock():  # nothing is sent under this name meanwhile
            if record:
                _remove_storage(record)
            records.remove(name)
            zips.remove_unused()

    def _stop_and_wait(self, name: str, kind: Kind | None) -> Record:
        """Stop it, wait for a while until Ray says so too, and return its record."""
        record = _load(name, kind)
        if record.kind == "job":
            jobs.announce_deletion(name)
        self.stop(name)
        if record.kind == "job":
            jobs.wait_for_ray(record, _STOP_TIMEOUT_S)
        return record

    def names(self, kind: Kind) -> list[str]:
        """Return the names of all jobs or services, oldest first."""
        return [record.name for record in records.every(kind)]


def _load(name: str, kind: Kind | None) -> Record:
    """Read a record, of this kind if one is given. Raises NotFound, Unreadable."""
    record = records.load(name)
    if kind in (None, record.kind):
        return record
    raise NotFound(
        f"there is no {kind} {name} here",
        why=f"a {record.kind} has that name",
        next_step=f"raykube {record.kind} status {name}",
    )


def _remove_storage(record: Record) -> None:
    """Remove a job's stored files. The caller holds the lock. Raises NotFound if its name is another's by now."""
    if not observe.is_current(record):
        raise NotFound(
            f"{record.kind} {record.name} was deleted or sent again meanwhile; what has that name now is left alone",
            next_step=f"see: raykube {record.kind} status {record.name}",
        )
    if record.kind == "job":
        disk.remove_tree(Path(record.storage) / record.name)
