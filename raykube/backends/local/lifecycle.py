"""What a local run's state is, and what its keeper should do next. Pure functions.

The keeper is to a local run what the KubeRay operator is to a RayJob: it retries, and ends what
exceeds its deadline. Reasons have KubeRay's names where it has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from raykube.backends import State, Status, endings
from raykube.backends.local.records import Ending, Record
from raykube.errors import Failure

#: How long an attempt may lack a job on the head, as it may be on its way there. After that its sender must have died:
#: the keeper sends it, or ends the run if it is to end.
ORPHAN_AFTER_S = 5.0
#: How long Ray may take to stop a job before its end is noted all the same; Ray kills it 3 s after asking it to end.
STOPS_WITHIN_S = 20.0
#: The same for a pending job: Ray stops no job before it has begun.
_CANCELLED_WITHIN_S = 2.0

_SAME_VERSIONS = (
    "have the job's runtime_env use the head's Ray and Python, or end the head: raykube cluster delete local"
)
_NEXT_STEPS = endings.NEXT_STEPS | {
    "OutOfMemory": "load less at a time, or run fewer tasks or workers at once by giving each more CPUs",
    "WorkerDied": "load less at a time if the kernel killed it for want of memory (dmesg); else look for a crash of "
    "native code: raykube job logs {name}",
    "HeadDied": "submit it again under the same name: it resumes, if its script loads its checkpoint",
    "RayVersionMismatch": _SAME_VERSIONS,
    "PythonVersionMismatch": _SAME_VERSIONS,
    "Refused": "correct what the head says and submit again",
    "DeadlineExceeded": "give it a longer --timeout-s, or a smaller job",
    "PreRunningDeadlineExceeded": "ask for less (--workers, --entrypoint-num-cpus), or a longer --pending-timeout-s",
}


@dataclass(frozen=True)
class Action:
    """What the keeper should do: send an attempt, have Ray stop it, or end the run, with `failure` or as stopped."""

    do: Literal["wait", "send", "stop", "end"]
    attempt: int = 1
    failure: Failure | None = None


def status_of(
    record: Record,
    attempt: int,
    job: Mapping[str, Any] | None,
    tail: Sequence[str] = (),
    told: Failure | None = None,
) -> Status:
    """Return a run's status.

    Args:
        record: what was sent.
        attempt: the current one.
        job: Ray's JobDetails; None while the head does not know the job yet.
        tail: the last lines of its log.
        told: the failure that ended its script, as the script itself noted it.
    """
    status = replace(_begun(record, attempt), detail="not on the head yet")
    if job is None:
        return status
    state: State = job["status"]
    words = job.get("message") or ""
    failure = failure_of(record.name, job, tail, told) if state == "FAILED" else None
    return replace(
        status,
        state=state,
        detail=failure.message if failure else endings.opening(words),
        failure=failure,
        started=_seconds(job.get("start_time")),
        ended=_seconds(job.get("end_time")) if state in ("FAILED", "STOPPED", "SUCCEEDED") else None,
    )


def failure_of(name: str, job: Mapping[str, Any], tail: Sequence[str], told: Failure | None = None) -> Failure:
    """Return why Ray's job failed: as its script told, or from its log, error type, exit code and message."""
    found = endings.ending(job.get("message") or "", job.get("error_type") or "", job.get("driver_exit_code"))
    if told and found.exit_code == told.exit_code:
        step = told.next_step or next_step(told.reason, name)
        return replace(endings.completed(told, found.exit_code, tail), next_step=step)
    reason, message = endings.last_words(tail) or (found.reason or "JobFailed", found.message)
    return Failure(reason, message, found.exit_code, tuple(tail), next_step(reason, name))


def lost(record: Record, attempt: int, tail: Sequence[str], now: float) -> Status:
    """Return the last status of a run whose head is gone."""
    return _failed(record, attempt, "HeadDied", "the Ray head that ran it ended before the run did", tail, now)


def refused(record: Record, attempt: int, words: str, now: float) -> Status:
    """Return the last status of a run that its head has refused."""
    return _failed(record, attempt, "Refused", words, (), now)


def _failed(record: Record, attempt: int, reason: str, words: str, tail: Sequence[str], now: float) -> Status:
    failure = Failure(reason, words, None, tuple(tail), next_step(reason, record.name))
    return replace(_begun(record, attempt), state="FAILED", detail=words, failure=failure, ended=now)


def _begun(record: Record, attempt: int) -> Status:
    """Return the status of an attempt as far as the record alone tells."""
    return Status(
        record.name,
        record.kind,
        "PENDING",
        submitted=record.submitted,
        attempt=attempt,
        workers=record.workers,
        storage=f"{record.storage}/{record.name}",
    )


def cut_short(status: Status, failure: Failure | None, now: float) -> Status:
    """Return the last status of a run that was ended early: for a deadline, or because somebody asked."""
    state: State = "FAILED" if failure else "STOPPED"
    return replace(status, state=state, failure=failure, detail=failure.message if failure else "", ended=now)


def judged(status: Status, ending: Ending | None, now: float) -> Status:
    """Return the status as failed if the attempt was stopped for a deadline: Ray itself calls it stopped."""
    if ending is None or ending.failure is None or status.state not in ("FAILED", "STOPPED"):
        return status
    return cut_short(status, ending.failure, status.ended or now)


def next_step(reason: str, name: str) -> str:
    """Return the one thing to do about a reason."""
    return _NEXT_STEPS.get(reason, _NEXT_STEPS["EntrypointFailed"]).format(name=name)


def has_retry(record: Record, status: Status, ending: Ending | None) -> bool:
    """Whether another attempt is to follow this one, which has ended."""
    is_last = status.attempt >= record.first + record.max_retries
    return status.state == "FAILED" and not ending and not is_last


def action_of(
    record: Record, status: Status, *, known: bool, ending: Ending | None, noted: float, now: float
) -> Action:
    """Return what the keeper should do about a run that has not ended for good.

    Args:
        record: what was sent.
        status: of the current attempt.
        known: whether the head has a job for this attempt.
        ending: why the run is to end early, if it is.
        noted: Unix time in seconds when the current attempt was noted.
        now: Unix time in seconds.
    """
    if not status.is_terminal:
        overrun = _overrun(record, status, noted, now)
        if why := ending or (Ending(overrun) if overrun else None):
            done = _has_had_its_time(status, why, now) if known else _is_unsent(noted, now)
            return Action("end" if done else "stop", status.attempt, why.failure)
    if not known and now - record.submitted > ORPHAN_AFTER_S:
        return Action("send", status.attempt)
    if has_retry(record, status, ending):
        return Action("send", status.attempt + 1)
    return Action("wait")


def _is_unsent(noted: float, now: float) -> bool:
    """Whether an attempt that the head does not know was noted too long ago to be still on its way."""
    return now - noted > ORPHAN_AFTER_S


def _has_had_its_time(status: Status, ending: Ending, now: float) -> bool:
    """Whether Ray was asked to stop a job so long ago that waiting is over."""
    limit = _CANCELLED_WITHIN_S if status.state == "PENDING" else STOPS_WITHIN_S
    return ending.since is not None and now - ending.since > limit


def _overrun(record: Record, status: Status, noted: float, now: float) -> Failure | None:
    """Return the deadline that a live run has exceeded, if any.

    All attempts share the run's time. Each may be pending as long as the first, whether Ray knows it yet or not.
    """
    bounds = [(record.timeout_s, record.submitted, "DeadlineExceeded", "did not end within")]
    if status.state == "PENDING":
        since = status.started or noted
        bounds.insert(0, (record.pending_timeout_s, since, "PreRunningDeadlineExceeded", "PENDING for more than"))
    for limit, since, reason, words in bounds:
        if limit is not None and now - since > limit:
            return Failure(reason, f"{words} {limit:g} s", None, (), next_step(reason, record.name))
    return None


def _seconds(milliseconds: float | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None
