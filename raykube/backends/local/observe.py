"""One local run on its head: sending and stopping it, its state, logs and end. For its keeper and all who ask."""

from __future__ import annotations

import contextlib
import copy
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from raykube import wire
from raykube.backends import Status, endings
from raykube.backends.local import disk, lifecycle, records
from raykube.backends.local.head import Head
from raykube.backends.local.records import Record
from raykube.backends.rayapi import RayApi
from raykube.errors import BackendError, Conflict, Failure, NotFound, Unreachable

#: Enough bytes for the lines of a log that an error shows, of ordinary length; longer ones are cut at the front.
_TAIL_BYTES = 32_768


def status(record: Record, head: Head, api: RayApi) -> tuple[Status, bool]:
    """Return the status of the run's current attempt, and whether the head has a job for it."""
    attempt = records.attempt(record.name)
    job: Mapping[str, Any] | None = None
    with contextlib.suppress(NotFound):
        job = api.job(record.submission_id(attempt))
    failed = job if job and job["status"] == "FAILED" else None
    last_words = tail(record, attempt, head) if failed else []
    found = lifecycle.status_of(
        record, attempt, job, last_words, _noted_failure(record, attempt, failed) if failed else None
    )
    # Read after Ray's answer: if Ray has stopped it, the reason was noted before.
    return lifecycle.judged(found, records.ending(record.name), time.time()), job is not None


def is_current(record: Record) -> bool:
    """Whether a record that was read is still the one of its name, not deleted or sent again since."""
    with contextlib.suppress(NotFound):
        now = records.load(record.name)
        return (now.nonce, now.submitted) == (record.nonce, record.submitted)
    return False


def settle(record: Record, ended: Status, head: Head) -> Status:
    """Copy the logs of a run that has ended for good, and then note its last status."""
    for attempt in range(1, ended.attempt + 1):
        _keep_log(record, attempt, head)
    return _note(record, replace(ended, progress=last_report(record).get("metrics", {})))


def _note(record: Record, ended: Status) -> Status:
    """Note the end of a run, unless its name is another run's by now."""
    return records.set_final(ended) if is_current(record) else ended


def settle_lost(record: Record, head: Head | None) -> Status:
    """Note that a run's head is gone; `head` is that head, if its files may still hold logs."""
    ended = lost(record, head)
    return settle(record, ended, head) if head else _note(record, ended)


def lost(record: Record, left: Head | None) -> Status:
    """Return the end of a run whose head is gone; `left` is that head, if its files may still hold logs."""
    attempt, now = records.attempt(record.name), time.time()
    ended = lifecycle.lost(record, attempt, tail(record, attempt, left), now)
    if (ending := records.ending(record.name)) and ending.since:  # Ray was stopping it
        ended = lifecycle.cut_short(ended, ending.failure, now)
    return ended


def _keep_log(record: Record, attempt: int, head: Head) -> None:
    """Copy a driver's log to the record's folder, once."""
    kept = _kept_log(record, attempt)
    source = head.driver_log(record.submission_id(attempt))
    if source.exists() and not kept.exists() and is_current(record):
        # FileNotFoundError: somebody else who saw the end has removed the head's files meanwhile.
        with disk.errors(), contextlib.suppress(FileNotFoundError), source.open("rb") as log, disk.whole(kept) as file:
            shutil.copyfileobj(log, file)


def _kept_log(record: Record, attempt: int) -> Path:
    return records.folder(record.name) / f"driver-{attempt}.log"


def log_path(record: Record, attempt: int, head: Head | None) -> Path:
    """Return the file that holds an attempt's output: the copy with the record, else the one that Ray writes."""
    kept = _kept_log(record, attempt)
    if kept.exists() or head is None:
        return kept
    return head.driver_log(record.submission_id(attempt))


def tail(record: Record, attempt: int, head: Head | None) -> list[str]:
    """Return the last lines of an attempt's output; bytes that are not UTF-8 show as U+FFFD."""
    path = log_path(record, attempt, head)
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read().decode("utf-8", "replace").splitlines()[-endings.TAIL_LINES :]


def send(record: Record, attempt: int, head: Head, api: RayApi) -> None:
    """Send one attempt of a run. Two senders at once start it once: the submission id names the attempt.

    Raises:
        Unreachable: the head does not take it now; try again.
        BackendError: the head refused it; the run has then failed.
    """
    try:
        api.submit(body_of(record, attempt))
    except Unreachable:
        raise
    except Conflict:
        pass
    except BackendError as error:
        settle(record, lifecycle.refused(record, attempt, error.why, time.time()), head)
        raise
    except ValueError as error:  # text that cannot be sent, which an earlier version of raykube accepted
        settle(record, lifecycle.refused(record, attempt, str(error), time.time()), head)
        raise BackendError(f"{record.name} cannot be sent", why=str(error), next_step="correct its text") from error
    if not is_current(record) or records.final(record.name):  # it was ended while this was being sent
        stop(record, attempt, api)


def stop(record: Record, attempt: int, api: RayApi) -> None:
    """Stop an attempt; fine when it never reached the head."""
    with contextlib.suppress(NotFound):
        api.stop(record.submission_id(attempt))


def is_running(record: Record, api: RayApi) -> bool:
    """Whether Ray says that the current attempt runs; False if Ray does not answer."""
    with contextlib.suppress(BackendError):
        return bool(api.job(record.submission_id(records.attempt(record.name)))["status"] == "RUNNING")
    return False


def body_of(record: Record, attempt: int) -> dict[str, Any]:
    """Return the POST body of one attempt: only submission id and ``RAYKUBE_ATTEMPT`` are its own."""
    body: dict[str, Any] = copy.deepcopy(record.body)
    body["submission_id"] = record.submission_id(attempt)
    body["runtime_env"].setdefault("env_vars", {})[wire.ATTEMPT] = str(attempt)
    return body


def last_report(record: Record) -> Mapping[str, Any]:
    """Return the row that the run reported last; empty if none can be read from here."""
    return wire.last_report(Path(record.storage) / record.name)


def quiet_s(report: Mapping[str, Any], started: float | None, now: float) -> float:
    """Return the seconds since an attempt's last report or start, in whole minutes; 0 before a first report."""
    reported = report.get("time")
    return wire.quiet_s(now - max(reported, started or 0.0)) if isinstance(reported, (int, float)) else 0.0


def trouble(record: Record, attempt: int) -> str:
    """Return what an attempt lost last, or waits for; empty if nothing."""
    return wire.trouble(_text(record, wire.TROUBLE_FILE), attempt)


def _noted_failure(record: Record, attempt: int, job: Mapping[str, Any]) -> Failure | None:
    """Return why an attempt failed, as its script noted it; `job` is Ray's."""
    return wire.failure(_text(record, wire.FAILURE_FILE), attempt, (job.get("start_time") or 0) / 1000)


def _text(record: Record, name: str) -> str:
    with contextlib.suppress(OSError):  # there is none, or it cannot be read just now
        return (Path(record.storage) / record.name / name).read_text(encoding="utf-8", errors="replace")
    return ""
