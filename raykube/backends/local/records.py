"""The local backend's memory: one folder per run or service, readable after the head is gone.

::

    HOME/records/NAME/record.json    what was sent: plan, kind, time, retries and deadlines
    HOME/records/NAME/attempt        the current attempt; written by a client that submits or the keeper that retries
    HOME/records/NAME/stop           present when the run is to end early: why, and since when Ray is stopping it
    HOME/records/NAME/deleting       present when somebody has begun to delete it, which stops it first
    HOME/records/NAME/final.json     the last status; written once per attempt, by whoever sees its end first
    HOME/records/NAME/driver-N.log   the driver's log of attempt N, copied when it ended
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from raykube import wire
from raykube.backends import Kind, Status
from raykube.backends.local import disk
from raykube.errors import BackendError, ConfigError, Failure, NotFound
from raykube.names import asked_for, is_object_name

#: Bytes that must be free before anything is started, for records, a token and a run's first logs.
_ROOM = 1 << 20
#: Changes further apart than this have different times, even on a disk that counts in whole seconds.
_MOMENT_S = 3.0
_Kind = TypeVar("_Kind")
_log = logging.getLogger("raykube")


class Unreadable(BackendError):
    """A file of a record may not be read, is torn (as by a full disk), or is of another version of raykube."""


@dataclass(frozen=True)
class Record:
    """What was sent under one name.

    Attributes:
        name, kind: of the run or service.
        plan_hash: content hash of the plan; equal hashes mean the same run.
        plan_yaml: the plan as text, to show the difference when another plan wants the name.
        body: what the head got, the job's POST body or the list of Serve applications.
        storage: where the run keeps its results.
        submitted, deployed: Unix times in seconds; the second one of a service's latest deployment.
        nonce: tells a run from a deleted one of the same name.
        head: id of the head that it was sent to; "" for a service that was taken down.
        first: the first attempt of this submission, from which its retries are counted.
        max_retries, timeout_s, pending_timeout_s: from the Job.
    """

    name: str
    kind: Kind
    plan_hash: str
    plan_yaml: str
    body: Any
    storage: str
    submitted: float
    nonce: str = field(default_factory=lambda: secrets.token_hex(2))
    head: str = ""
    deployed: float = 0.0
    first: int = 1
    max_retries: int = 0
    timeout_s: float | None = None
    pending_timeout_s: float | None = None

    @property
    def workers(self) -> str:
        """How many training workers it may have, as its environment says; "" for a service."""
        env_vars = {} if self.kind == "service" else self.body.get("runtime_env", {}).get("env_vars", {})
        return str(env_vars.get(wire.WORKERS, ""))

    def submission_id(self, attempt: int) -> str:
        """Return the Ray submission id of one attempt."""
        return f"{self.name}-{self.nonce}-{attempt}"


def ensure_home() -> Path:
    """Return raykube's own folder, made if need be, with room for what a run will write there.

    Raises:
        ConfigError: it is another user's, cannot be written to, or its disk is full.
    """
    home = wire.home()
    try:
        disk.own_home()
        with tempfile.TemporaryFile(dir=home) as probe:
            probe.write(bytes(_ROOM))
    except OSError as error:
        raise ConfigError(
            f"raykube cannot keep its state in {home}",
            why=error.strerror or str(error),
            next_step=disk.remedy(error, "set RAYKUBE_HOME to a folder that you can write to"),
        ) from error
    return home


def folder(name: str) -> Path:
    """Return the folder of one record; it need not exist.

    Raises:
        ConfigError: the name is not allowed. "" or ".." would be the folder of all records, or the one above.
    """
    return wire.home() / "records" / asked_for(name)


def save(record: Record) -> None:
    """Write a record."""
    folder(record.name).mkdir(parents=True, exist_ok=True, mode=0o700)
    disk.write(folder(record.name) / "record.json", json.dumps(asdict(record)))


def load(name: str) -> Record:
    """Read a record.

    Raises:
        NotFound: there is none of that name.
        Unreadable: its file cannot be read, or does not hold a record.
    """
    path = folder(name) / "record.json"
    try:
        with _reading(path):
            return _value_of(Record, json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        step = "raykube job list; raykube service list; what is in Kubernetes has --on or -n there, or RAYKUBE_ON"
        raise NotFound(f"nothing is called {name!r} on this machine", next_step=step) from error


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise Unreadable if a file may not be read or has the wrong content; a missing one stays FileNotFoundError."""
    try:
        with disk.reading(path):
            yield
    except BackendError as error:
        raise Unreadable(error.what, why=error.why, next_step=error.next_step) from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        why = f"it is torn, or of another version of raykube ({error})"
        step = f"raykube job delete {path.parent.name} removes it, with the logs beside it"
        raise Unreadable(f"cannot read {path}", why=why, next_step=step) from error


def _value_of(kind: type[_Kind], said: Mapping[str, Any]) -> _Kind:
    """Make a value of what was written, without fields that only a later version knows."""
    known = kind.__dataclass_fields__  # type: ignore[attr-defined]
    return kind(**{key: value for key, value in said.items() if key in known})


def texts() -> Iterator[str]:
    """Yield the text of each record, even of one that cannot be parsed."""
    for path in _files():
        with contextlib.suppress(FileNotFoundError), disk.reading(path):  # deleted since it was listed
            yield path.read_text(encoding="utf-8", errors="replace")


def every(kind: Kind | None = None) -> list[Record]:
    """Return all records, oldest first, without those that cannot be read."""
    records = [record for record in _present(ended=True) if kind in (None, record.kind)]
    return sorted(records, key=lambda record: record.submitted)


def unfinished(head: str) -> list[Record]:
    """Return the records on that head that have not ended. Ended ones, maybe thousands, are not read again."""
    return [record for record in _present(ended=False) if record.head == head]


def check_all() -> None:
    """Raise Unreadable if any record cannot be read."""
    for path in _files():
        with contextlib.suppress(NotFound):
            load(path.parent.name)


def _files() -> list[Path]:
    return [Path(entry.path, "record.json") for entry in _folders()]


def _folders() -> list[os.DirEntry[str]]:
    path = wire.home() / "records"
    with contextlib.suppress(FileNotFoundError), disk.reading(path), os.scandir(path) as entries:
        return [entry for entry in entries if is_object_name(entry.name) and entry.is_dir()]
    return []


def _has_ended(entry: os.DirEntry[str]) -> bool:
    """Whether a record's folder has the last status of its current attempt, not just one of an earlier attempt.

    The answer is cached until the folder's time changes, as it does whenever a file is replaced. It is not cached for
    a folder that changed just now, which may change again without a new time.
    """
    found = entry.stat()
    if time.time() - found.st_mtime < _MOMENT_S:
        return final(entry.name) is not None
    return _had_ended(entry.path, found.st_ino, found.st_mtime_ns)


@functools.lru_cache(maxsize=1 << 16)
def _had_ended(path: str, *_: int) -> bool:
    return final(Path(path).name) is not None


def _present(*, ended: bool) -> Iterator[Record]:
    """Load records, without those that are deleted meanwhile or cannot be read; ended ones only if `ended`."""
    found = (_found(entry, ended=ended) for entry in _folders())
    yield from (record for record in found if record)


def _found(entry: os.DirEntry[str], *, ended: bool) -> Record | None:
    name = entry.name
    try:
        if _has_ended(entry):
            return load(name) if ended else None
        attempt(name), ending(name)  # unreadable ones would fail whoever looks after the run
        return load(name)
    except (NotFound, FileNotFoundError):
        return None
    except Unreadable as error:
        _warn(f"{name} is left out: {error.what}: {error.why}; {error.next_step}")
        return None


@functools.cache
def _warn(words: str) -> None:
    """Warn once, as a keeper looks every second."""
    _log.warning(words)


def attempt(name: str) -> int:
    """Return which attempt of the run is the current one, from 1."""
    path = folder(name) / "attempt"
    try:
        with _reading(path):
            return int(path.read_text())
    except FileNotFoundError:
        return 1


def set_attempt(name: str, number: int) -> None:
    """Note that attempt `number` begins."""
    disk.write(folder(name) / "attempt", str(number))


def noted(record: Record) -> float:
    """Return when the current attempt was noted, which is just before it is sent to a head that answers."""
    with contextlib.suppress(FileNotFoundError):
        return (folder(record.name) / "attempt").stat().st_mtime
    return record.submitted


@dataclass(frozen=True)
class Ending:
    """Why a run is to end early. It is then not retried.

    Attributes:
        failure: the deadline that it has exceeded; None when somebody asked to stop it.
        since: Unix time in seconds when its keeper first asked Ray to stop a job that Ray knew; None before that.
    """

    failure: Failure | None = None
    since: float | None = None


def ending(name: str) -> Ending | None:
    """Return why the run is to end early; None if it is not."""
    path = folder(name) / "stop"
    try:
        with _reading(path):
            fields = json.loads(path.read_text(encoding="utf-8") or "{}")
            failure = fields.get("failure")
            why = _value_of(Failure, failure | {"tail": tuple(failure["tail"])}) if failure else None
            return Ending(why, fields.get("since"))
    except FileNotFoundError:
        return None


def set_ending(name: str, why: Ending) -> None:
    """Note why the run is to end."""
    disk.write(folder(name) / "stop", json.dumps(asdict(why)))


def request_stop(name: str) -> None:
    """Note that somebody asked to stop the run, unless it is about to end already."""
    if ending(name) is None:
        set_ending(name, Ending())


def final(name: str) -> Status | None:
    """Return the run's last status; None while it has not ended."""
    ended = _last_status(folder(name) / "final.json")
    return ended if ended and ended.attempt >= attempt(name) else None


def _last_status(path: Path) -> Status | None:
    """Read a last status, of whatever attempt; None if there is none."""
    try:
        with _reading(path):
            fields = json.loads(path.read_text(encoding="utf-8"))
            failure = fields["failure"]
            failure = _value_of(Failure, failure | {"tail": tuple(failure["tail"])}) if failure else None
            return _value_of(Status, fields | {"earlier": tuple(fields["earlier"]), "failure": failure})
    except FileNotFoundError:
        return None


def reopen(name: str, number: int) -> None:
    """Let attempt `number` of an ended run begin."""
    # In this order: an old stop must not reach the new attempt, and an earlier end no longer counts once that is
    # noted.
    (folder(name) / "stop").unlink(missing_ok=True)
    set_attempt(name, number)
    (folder(name) / "final.json").unlink(missing_ok=True)


def set_final(status: Status) -> Status:
    """Record the end of a run, and return it as recorded: the first to record the end of an attempt wins."""
    path = folder(status.name) / "final.json"
    temporary = disk.beside(path)
    disk.write(temporary, json.dumps(asdict(status)))
    _remove_earlier(path, status.attempt)
    disk.link(temporary, path)
    return final(status.name) or status


def _remove_earlier(path: Path, number: int) -> None:
    """Remove the last status of an attempt before `number`, left by a slow writer or a killed `reopen`."""
    known = _last_status(path)
    if known is None or known.attempt >= number:
        return
    aside = disk.beside(path)
    with contextlib.suppress(FileNotFoundError):  # removed by somebody else
        path.replace(aside)
        if (moved := _last_status(aside)) and moved.attempt >= number:  # written since we looked
            disk.link(aside, path)
        aside.unlink(missing_ok=True)


def remove(name: str) -> None:
    """Forget a run or service."""
    disk.remove_tree(folder(name))
