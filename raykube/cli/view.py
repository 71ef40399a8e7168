"""What the command line shows, as text: statuses, failures, results and clusters. Pure; the commands print it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from raykube.backends import Status, serveapps
from raykube.backends.lines import age, number, reported
from raykube.errors import Failure, tail_title
from raykube.wire import Result, finite

if TYPE_CHECKING:
    from raykube.backends.kuberay.clusterstates import ClusterStatus

_COLUMNS = ("NAME", "STATE", "ATTEMPT", "WORKERS", "AGE", "PROGRESS")
_CLUSTER_COLUMNS = ("NAME", "STATE", "PODS", "AGE", "ADDRESS")


def status_text(status: Status) -> str:
    """Return a status as lines of ``key: value``."""
    first, latest = ("submitted", "started") if status.kind == "job" else ("created", "updated")
    when = {first: _clock(status.submitted), latest: _clock(status.started), "ended": _clock(status.ended)}
    attempt = status.attempt if status.kind == "job" else 0
    fields = {"name": status.name, "state": status.state, "detail": status.detail, "attempt": attempt}
    scale = {"workers": status.workers, "storage": status.storage}
    is_in_vain = bool(status.deployed) and serveapps.GOES_ON in status.detail
    deployed = f"{status.deployed} (not serving)" if is_in_vain else status.deployed
    rows = fields | {"deployed": deployed} | scale | when | {"progress": reported(status), "url": status.url}
    return _fields(rows, [f"{'':<11}{line}" for line in status.earlier], status.failure)


def cluster_text(status: ClusterStatus, now: float) -> str:
    """Return the state of a cluster as lines of ``key: value``."""
    rows = {"name": status.name, "state": status.state, "detail": status.detail, "owner": status.owner}
    rows |= {"runs": ", ".join(status.runs or ())}
    return _fields(rows | {"age": age(now - status.created), "address": status.address}, [], status.failure)


def _fields(rows: Mapping[str, Any], more: Iterable[str], failure: Failure | None) -> str:
    lines = [f"{key + ':':<11}{value}" for key, value in rows.items() if value]
    return "\n".join([*lines, *more, *(["", failure_text(failure)] if failure else [])])


def cluster_line(status: ClusterStatus) -> str:
    """Return the state of a cluster on one line."""
    cause = f"{status.failure.reason}: {status.failure.message}" if status.failure else ""
    return " · ".join(part for part in (f"{status.name} {status.state}", status.detail, cause) if part)


def cluster_fields(status: ClusterStatus, now: float) -> dict[str, Any]:
    """Return the state of a cluster as ``--json`` prints it."""
    return asdict(status) | {"age_s": now - status.created}


def failure_text(failure: Failure) -> str:
    """Return a cause, its evidence and the next step."""
    lines = [f"{failure.reason}: {failure.message}", *([f"  seen: {failure.where}"] if failure.where else [])]
    if failure.tail:
        lines += [f"  {tail_title(failure.tail)}", *(f"    {line}" for line in failure.tail)]
    return "\n".join([*lines, *([f"  next: {failure.next_step}"] if failure.next_step else [])])


def result_text(result: Result) -> str:
    """Return a result as lines of ``key: value``."""
    rows: dict[str, Any] = {f"metric {key}": number(value) for key, value in result.metrics.items()}
    rows |= {f"param {key}": number(value) for key, value in result.params.items()}
    rows |= {"checkpoint": result.checkpoint, "model": result.model_uri, "folder": result.path}
    if result.trials:
        early = sum(bool(trial.get("stopped_early")) for trial in result.trials)
        rows["trials"] = f"{len(result.trials)}, {early} of them stopped early" if early else len(result.trials)
    lines = [f"{key + ':':<20} {value}" for key, value in rows.items() if value is not None]
    return "\n".join([*lines, *(f"note: {note}" for note in result.notes)])


def text(value: Status | Failure | Result) -> str:
    """Return a value as text for a person."""
    if isinstance(value, Status):
        return status_text(value)
    return failure_text(value) if isinstance(value, Failure) else result_text(value)


def table(statuses: Iterable[Status], now: float) -> str:
    """Return statuses as a table that looks like kubectl's; services have neither attempts nor workers."""
    found = [_row(status, now) for status in statuses]
    hidden = {name for name in ("ATTEMPT", "WORKERS") if not any(row[name] for row in found)}
    if not found:  # an empty list may be one of runs
        hidden.discard("ATTEMPT")
    columns = [name for name in _COLUMNS if name not in hidden]
    return _table([columns, *([row[name] or "-" * (name == "WORKERS") for name in columns] for row in found)])


def cluster_table(statuses: Iterable[ClusterStatus], now: float) -> str:
    """Return the states of clusters as a table."""
    return _table([_CLUSTER_COLUMNS, *(_cluster_row(status, now) for status in statuses)])


def _cluster_row(status: ClusterStatus, now: float) -> Sequence[str]:
    pods = f"{status.ready}/{status.wanted}" if status.wanted else "-"
    return status.name, status.state, pods, age(now - status.created), status.address


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _row(status: Status, now: float) -> dict[str, str]:
    began = status.submitted or now
    note = reported(status) or (status.failure.reason if status.failure else "") or _note(status)
    attempt = str(status.attempt) if status.kind == "job" else ""
    cells = (status.name, status.state, attempt, status.workers, age(now - began), note)
    return dict(zip(_COLUMNS, cells, strict=True))


def kept(status: Status) -> str:
    """Return a line that says what is left of a run that was stopped."""
    if not status.storage:
        return "nothing is kept once its cluster is gone: the cluster's manifest names no raykube.io/storage"
    step = "submitted again under its name it resumes, if its script loads its checkpoint"
    wrote = "what it had written" if status.started else "what it had written, if it had begun"
    return f"kept in {status.storage}: {wrote}; {step}"


def _note(status: Status) -> str:
    return status.detail if status.kind == "service" else ""


def dump(value: Any) -> str:
    """Return JSON text, the same for the same value. A number that JSON does not have, such as NaN, becomes null."""
    return json.dumps(finite(value), indent=2, sort_keys=True, allow_nan=False)


def _clock(moment: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment)) if moment else ""
