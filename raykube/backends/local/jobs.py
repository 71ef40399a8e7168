"""The jobs of this machine: sending them, sending them again, and their status for whoever asks."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from dataclasses import replace
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile

from raykube import differences, package, sameness, wire
from raykube.backends import Status, endings
from raykube.backends.local import disk, head, lifecycle, observe, records, starting, zips
from raykube.backends.local.records import Record
from raykube.errors import BackendError, Conflict, NotFound, Unreachable
from raykube.plans import Plan
from raykube.runtime_env import plain

_log = logging.getLogger("raykube")
_POLL_S = 0.1
_NOT_NOTED = "%s: its end cannot be noted: %s"


def submit(plan: Plan) -> None:
    """Send a job, or join the run that has this name and plan already. The caller holds the lock."""
    try:
        known = records.load(plan.name)
    except NotFound:
        _send(_record(plan), 1)
        return
    starting.adopt_if_orphaned()
    ended = known.kind == "job" and (records.final(plan.name) or live_status(known))
    again = ended and ended.state in ("FAILED", "STOPPED")
    if not ended or not _is_same(known, plan, limits_too=not again):
        goes_on = ended and not ended.is_terminal and _is_same(known, plan, limits_too=False)
        otherwise = endings.other_name(known.kind, plan.name, _with_checkpoints(ended.storage) if ended else "")
        raise Conflict(
            f"the name {plan.name!r} is taken by another {known.kind}",
            why=_difference(known, plan, sameness.NOT_WORK_LINE if again else sameness.NOT_PLAN_LINE),
            next_step=endings.stop_first(plan.name) if goes_on else otherwise,
        )
    if again:
        _send(_record(plan), ended.attempt + 1)
    elif ended.state == "SUCCEEDED":
        _log.info(endings.OVER, plan.name)


def _with_checkpoints(folder: str) -> str:
    """Return the folder of a run if it holds checkpoints, else "". A bucket counts as holding some: nobody looks."""
    return folder if "://" in folder or (folder and any(Path(folder).rglob("checkpoint_*"))) else ""


def _difference(known: Record, plan: Plan, but: re.Pattern[str]) -> str:
    """Return how a plan differs from that of a run or service; for code, in which files."""
    texts = differences.of_texts(known.plan_yaml, plan.yaml(), but)
    texts = texts and f"- is the {known.kind} that there is, + is this one:\n{texts}"
    if known.kind == "service":
        return texts
    uris = [body.get("runtime_env", {}).get("working_dir", "") for body in (known.body, plan.body[0])]
    files = ""
    with contextlib.suppress(OSError, BadZipFile):  # no zip, or it is gone
        files = differences.of_files(*(package.contents(zips.folder() / PurePosixPath(uri).name) for uri in uris))
    return f"{texts}\nin the code: {files}" if files else texts


def _is_same(known: Record, plan: Plan, *, limits_too: bool) -> bool:
    """Whether a plan is that of a run; a run that is sent again may have other limits."""
    return known.plan_hash == plan.hash or (not limits_too and sameness.work((known.body,)) == sameness.work(plan.body))


def _record(plan: Plan) -> Record:
    body = plan.body[0]
    return Record(
        name=plan.name,
        kind="job",
        plan_hash=plan.hash,
        plan_yaml=plan.yaml(),
        body=body,
        storage=plain(body["runtime_env"]["env_vars"][wire.STORAGE]),
        submitted=time.time(),
        **vars(plan.limits),
    )


def _send(record: Record, attempt: int) -> None:
    """Start the first attempt of a submission. Write its record first, so that the keeper sends what we cannot."""
    running = starting.ensure()
    record = replace(record, head=running.id, first=attempt)
    _deleting(record.name).unlink(missing_ok=True)
    records.save(record)
    records.reopen(record.name, attempt)
    try:
        observe.send(record, attempt, running, head.api(running))
    except Unreachable as error:
        _log.info("%s: %s; its keeper goes on trying", error.what, error.why)


def announce_deletion(name: str) -> None:
    """Note that a run is about to be deleted: whoever waits for it would else hear only that it was stopped."""
    with contextlib.suppress(OSError):  # a full disk, on which a deletion is what helps
        disk.write(_deleting(name), "")


def is_being_deleted(name: str) -> bool:
    """Whether somebody has begun to delete a run, and nobody has sent it again since."""
    return _deleting(name).exists()


def _deleting(name: str) -> Path:
    return records.folder(name) / "deleting"


def live_status(record: Record) -> Status:
    """Return the status of a run whose end is not noted yet; note it if it has ended."""
    running = head.of(record.head)
    if running is None:
        return _lost_status(record)
    try:
        status, known = observe.status(record, running, head.api(running))
    except Unreachable:
        if head.current():
            raise
        return _lost_status(record)
    ending, now = records.ending(record.name), time.time()
    due = lifecycle.action_of(record, status, known=known, ending=ending, noted=records.noted(record), now=now)
    if due.do == "end":
        return _note_end(record, lifecycle.cut_short(status, due.failure, now), running)
    if status.is_terminal and due.do == "send":
        return replace(
            status, state="PENDING", failure=None, detail="the attempt failed; the next one is about to start"
        )
    if status.is_terminal:
        return _note_end(record, status, running)
    report = observe.last_report(record)
    if status.state == "RUNNING":
        detail = observe.trouble(record, status.attempt) or status.detail
        status = replace(status, detail=detail, quiet_s=observe.quiet_s(report, status.started, now))
    return replace(status, progress=report.get("metrics", {}), url=running.address)


def _note_end(record: Record, ended: Status, running: head.Head) -> Status:
    """Note the end of a run and return it; it is returned even if it cannot be written."""
    try:
        return observe.settle(record, ended, running)
    except (BackendError, OSError) as error:
        _log.info(_NOT_NOTED, record.name, error)
        return ended


def _lost_status(record: Record) -> Status:
    """Note that a run's head is gone, and clean up what it left; return the end even if it cannot be written."""
    gone = head.read_state()
    left = gone if gone and gone.id == record.head else None
    try:
        if left:
            starting.retire(left)
        return records.final(record.name) or observe.settle_lost(record, None)
    except (BackendError, OSError) as error:
        _log.info(_NOT_NOTED, record.name, error)
        return observe.lost(record, left)


def wait_for_ray(record: Record, patience_s: float) -> None:
    """Wait for a while until Ray too says that a run has ended: it may still write files after its end is noted."""
    deadline = time.monotonic() + patience_s
    while (running := head.seen()) and running.id == record.head and time.monotonic() < deadline:
        if not observe.is_running(record, head.api(running)):
            return
        time.sleep(_POLL_S)
