"""Services on the local head: Ray Serve applications of several services side by side on one Serve."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from raykube.backends import Status, endings, replicalogs, serveapps
from raykube.backends.local import following, head, records, replicafiles, starting
from raykube.backends.local.head import Head
from raykube.backends.local.records import Record
from raykube.errors import BackendError, Conflict, Failure, NotFound, Unreachable
from raykube.plans import Plan

_log = logging.getLogger("raykube")

#: How often to ask Serve whether a followed service goes on.
_ASK_S = 0.2


def deploy(plan: Plan) -> None:
    """Make the service what the plan says, next to the others. The caller holds the head's lock.

    Applications that have failed are tried again, even if the plan is the same.

    Raises:
        Conflict: a job has that name, or another service has one of its application names or routes.
        BackendError: Serve refused it; what was deployed before stays.
    """
    former, now = _former(plan), time.time()
    running = starting.ensure()
    others = [record for record in _on(running) if record.name != plan.name]
    _check_free(plan, others)
    record = Record(
        name=plan.name,
        kind="service",
        plan_hash=plan.hash,
        plan_yaml=plan.yaml(),
        body=serveapps.retried(plan.body, former.body if former else [], _undone(former, running)),
        storage="",
        submitted=former.submitted if former else now,
        deployed=now,
        head=running.id,
    )
    # Saved first: the next deploy would silently remove applications that no record knows.
    records.save(record)
    if former and (changes := ", ".join(serveapps.resized(former.body, record.body))):
        _log.info(serveapps.CHANGES, plan.name, changes)
    try:
        _apply([*others, record], running)
    except Unreachable:  # Serve may have taken it
        raise
    except BackendError:
        # Serve is sent all services at once: with this record it would refuse every other service too.
        _put_back(plan.name, former)
        raise


def _former(plan: Plan) -> Record | None:
    """Return the record of the service that a plan is to change, if there is one. Raises Conflict."""
    with contextlib.suppress(NotFound):
        former = records.load(plan.name)
        if former.kind == "job":
            raise Conflict(f"the name {plan.name!r} is taken by a job", next_step="choose another name")
        return former
    return None


def _undone(former: Record | None, running: Head) -> list[str]:
    """Return the names of a service's applications that have failed on this head."""
    if former is None or former.head != running.id:
        return []
    return [name for name, app in _applications(former, running).items() if serveapps.is_undone(app)]


def _applications(record: Record, running: Head) -> dict[str, Mapping[str, Any]]:
    """Return the states of a service's applications; NOT_STARTED until Serve has the configuration that was sent."""
    seen = head.api(running).serve_status()["applications"]
    none = {"status": "NOT_STARTED", "message": ""}
    found = {config["name"]: (seen.get(config["name"], none), config) for config in record.body}
    return {name: app if serveapps.is_of(app, config) else none for name, (app, config) in found.items()}


def _put_back(name: str, former: Record | None) -> None:
    if former:
        records.save(former)
    else:
        records.remove(name)


def take_down(record: Record) -> None:
    """Remove the service's applications from the head; no error when they are gone already."""
    if running := head.of(record.head):
        _apply([other for other in _on(running) if other.name != record.name], running)
    records.save(replace(record, head=""))


def status(record: Record) -> Status:
    """Return the service's state: the worst of its applications."""
    running = head.of(record.head)
    unknown = Status(
        record.name,
        "service",
        "STOPPED",
        "not deployed",
        submitted=record.submitted,
        started=record.deployed or None,
        plan=record.plan_hash,
        deployed=serveapps.described(record.body),
    )
    if not record.head:
        return unknown
    if running is None:
        why = Failure(
            "HeadDied", "the Ray head that served it has ended", next_step="deploy it again with the same command"
        )
        return replace(unknown, state="FAILED", detail=why.message, failure=why)
    apps = _applications(record, running)
    failed = {name: app for name, app in apps.items() if serveapps.is_undone(app)}
    goes_on = bool(failed) and all(_serves(*each, record, running) for each in failed.items())
    return replace(_combined_status(unknown, apps, goes_on=goes_on), url=_url(record, running))


def _combined_status(base: Status, apps: serveapps.Apps, *, goes_on: bool) -> Status:
    """Combine the states of a service's applications into one."""
    detail, why = serveapps.line(apps), serveapps.failure(base.name, apps, goes_on=goes_on)
    if any(map(serveapps.is_undone, apps.values())):
        detail = f"the update failed; {serveapps.GOES_ON}: {detail}" if goes_on else detail
        return replace(base, state="FAILED", detail=detail, failure=why)
    ready = all(app["status"] == "RUNNING" for app in apps.values())
    detail = f"{detail}; {why.reason}: {endings.summary(why.message)}" if why else detail
    return replace(base, state="RUNNING" if ready else "PENDING", detail=detail, failure=why)


def _serves(name: str, app: Mapping[str, Any], record: Record, running: Head) -> bool:
    """Whether replicas of an application that failed to deploy still serve what was deployed before."""
    if app.get("deployments") or app["status"] != "DEPLOY_FAILED":
        return serveapps.runs_of_before(app, record.deployed)
    # If the code cannot be loaded, Serve starts nothing and no longer lists its replicas; their processes tell.
    return any(title.startswith(f"ray::ServeReplica:{name}:") for title in _titles(running))


def _titles(running: Head) -> Iterator[str]:
    """Yield the titles of a head's processes; Ray sets those of its workers."""
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == running.ray_pid:
                yield " ".join(process.cmdline())


def _url(record: Record, running: Head) -> str:
    """Return the address of the service's first application."""
    return f"http://127.0.0.1:{running.serve_port}{record.body[0]['route_prefix']}"


def logs(record: Record, *, follow: bool) -> Iterator[str]:
    """Yield what the replicas log and print, the oldest first; with `follow` new lines until it is taken down."""
    running = head.of(record.head)
    if not running:
        return
    name, files = record.name, replicafiles.Files(running, {app["name"] for app in record.body})
    if follow:
        going = following.goes_on(lambda: status(records.load(name)), _may_serve, follow=True, every_s=_ASK_S)
        yield from following.lines(files.growing, is_open=going, made=replicalogs.ReplicaLines)
    else:  # Ray's processes write these files themselves, so Serve need not be asked
        yield from replicalogs.in_order((path.name, _whole(path)) for path in files.now())


def _whole(path: Path) -> Iterator[str]:
    return following.lines(lambda: [path], is_open=iter((False,)), made=replicalogs.ReplicaLines)


def _may_serve(found: Status) -> bool:
    """Whether anything serves, or may yet: an application that is unhealthy or did not start may recover."""
    return found.state != "STOPPED" and (found.failure is None or found.failure.reason != "HeadDied")


def _services(running: Head) -> list[Record]:
    return [record for record in records.unfinished(running.id) if record.kind == "service"]


def _on(running: Head) -> list[Record]:
    """Return the services on a head.

    Raises:
        Unreadable: a record cannot be read. It may be a service's, which Serve would then be told to take down.
    """
    records.check_all()
    return _services(running)


def _check_free(plan: Plan, others: list[Record]) -> None:
    """Refuse application names and routes that another service has."""
    for key in ("name", "route_prefix"):
        taken = {app[key]: other.name for other in others for app in other.body}
        for app in plan.body:
            if app[key] in taken:
                raise Conflict(
                    f"{key} {app[key]!r} of service {plan.name!r} is taken by service {taken[app[key]]!r}",
                    next_step=f"choose another {key}, or: raykube service delete {taken[app[key]]}",
                )


def _apply(wanted: list[Record], running: Head) -> None:
    """Make the head serve exactly the applications of `wanted`."""
    api = head.api(running)
    head.touch()
    applications = [app for record in wanted for app in record.body]
    if applications:
        api.serve_deploy(applications, {"host": "127.0.0.1", "port": running.serve_port})
    else:
        api.serve_shutdown()
