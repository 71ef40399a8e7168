"""The one stream of metrics: written where they arise, followed by the driver.

The training thread only appends to a buffer in memory. A daemon thread writes the rows, and whoever
wants them (MLflow, Tune, a person) reads the file from the driver, away from training.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raykube import wire
from raykube.inside import storage
from raykube.inside.scalars import fetched

log = logging.getLogger("raykube")
Row = dict[str, Any]

_FLUSH_S = 0.5
_REMOTE_S = 5.0
_UNSENT_MAX = 64 * 1024**2


class Recorder:
    """Buffers rows in memory and appends them to a metrics file from a thread of its own.

    A row is in the file at most half a second after it was added (behind a URI, 5 s); :meth:`flush` writes
    it now. What the storage does not take, as when it is full, is kept in memory, up to 64 MiB, and tried again.
    """

    def __init__(self, path: str, attempt: int) -> None:
        self._path = path
        self._attempt = attempt
        self._rows: deque[tuple[float, dict[str, Any], str | None]] = deque()
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._file = storage.Growing(path)
        self._failing = False
        self._unread: set[str] = set()
        self._refused = self._lost = 0
        if not storage.is_uri(path):
            heal(Path(path))
        self._thread = threading.Thread(target=self._run, daemon=True, name="raykube-history")
        self._thread.start()

    def add(self, metrics: dict[str, Any], checkpoint: str | None = None) -> None:
        """Take one row. Costs an append; touches no file."""
        self._rows.append((time.time(), metrics, checkpoint))

    def flush(self) -> None:
        """Write the rows that were added so far."""
        with self._lock:
            self._keep([self._rows.popleft() for _ in range(len(self._rows))])
            if not self._file.due:
                return
            try:
                self._file.write()
                self._failing = False
            except OSError as error:
                if not self._failing:
                    log.warning("metrics wait, %s cannot be written now: %s", self._path, error)
                self._failing = True

    def close(self) -> None:
        """Write what is left and end the thread; log what is missing."""
        self._end.set()
        self._thread.join(timeout=_REMOTE_S)
        self.flush()
        if self._file.due:
            log.warning("the last metrics are missing in %s", self._path)
        if self._lost or self._refused:
            told = "%d rows are missing in %s: %d that it did not take for too long, %d that JSON cannot say"
            log.warning(told, self._lost + self._refused, self._path, self._lost, self._refused)

    def _run(self) -> None:
        while not self._end.wait(_REMOTE_S if storage.is_uri(self._path) else _FLUSH_S):
            self.flush()

    def _keep(self, added: list[tuple[float, dict[str, Any], str | None]]) -> None:
        lines = list(self._lines(added))
        if len(self._file.due) < _UNSENT_MAX:
            self._file.due += "".join(lines).encode()
            return
        if lines and not self._lost:
            log.warning("rows are lost from now on: too many wait for %s, which cannot be written", self._path)
        self._lost += len(lines)

    def _lines(self, added: list[tuple[float, dict[str, Any], str | None]]) -> Iterator[str]:
        read = self._read([metrics for _, metrics, _ in added])
        for (when, _, checkpoint), metrics in zip(added, read, strict=True):
            row = {"time": when, "attempt": self._attempt, "metrics": metrics, "checkpoint": checkpoint}
            try:
                line = json.dumps(row)
            except (TypeError, ValueError) as error:  # only this row's: the others must not be lost with it
                if not self._refused:
                    log.warning("a row is left out, it cannot be written: %s", error)
                self._refused += 1
                continue
            yield line + "\n"

    def _read(self, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        # Metrics that a failed GPU does not give back must not hide what the loop itself raises about that GPU.
        done, unread = fetched(found)
        if fresh := sorted(unread.keys() - self._unread):
            why = str(unread[fresh[0]]).partition("\n")[0]
            log.warning("left out where they cannot be read from their device: %s: %s", ", ".join(fresh), why)
        self._unread |= unread.keys()
        return done


def heal(path: Path) -> None:
    """Cut off a last line that a killed writer left unfinished, so that the next row starts a new one."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data != (whole := _whole(data)):
        os.truncate(path, len(whole))


def rows(path: str) -> list[Row]:
    """Return the rows of a metrics file, oldest first, without lines that are no rows; none if it does not exist."""
    return [row for line in _whole(storage.read_from(path)).splitlines() if (row := wire.row_of(line))]


def _whole(data: bytes) -> bytes:
    """Return the whole lines: the writer of a last one without an end is still at work, or was killed."""
    return data[: data.rfind(b"\n") + 1]


class Follower:
    """Reads rows as they arrive in metrics files and hands them on, in a thread of its own.

    Rows already in the files when it is made are skipped. While the storage cannot be read, it waits.

    Args:
        paths: the files; they may not exist yet.
        sinks: called with each batch of new rows, oldest first.

    Attributes:
        troubles: why rows are missing; empty when they are not.
    """

    def __init__(self, paths: Sequence[str], sinks: Sequence[Callable[[list[Row]], None]]) -> None:
        self._sinks = sinks
        self._offsets = {path: len(_whole(storage.read_from(path))) for path in paths}
        self._failing: OSError | None = None
        self._end = threading.Event()
        self.troubles: tuple[str, ...] = ()
        self._thread: threading.Thread | None = None

    @property
    def is_reading(self) -> bool:
        """Whether it was started, and neither paused nor stopped since."""
        return self._thread is not None

    def start(self) -> None:
        """Begin to read, or go on where it was paused."""
        if self._thread is None:
            self._end.clear()
            self._thread = threading.Thread(target=self._run, daemon=True, name="raykube-follower")
            self._thread.start()

    def pause(self) -> None:
        """Hand on the rows that are there and end the thread; rows that cannot be read now wait for the next start."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def stop(self) -> None:
        """Hand on the rows that are left and end the thread; rows that cannot be read now are missing."""
        self.pause()
        if self._failing and not self.troubles:
            self._miss(self._failing)

    def _run(self) -> None:
        interval = _REMOTE_S if any(map(storage.is_uri, self._offsets)) else _FLUSH_S / 2
        try:
            while not self._end.wait(interval):
                self._look()
            self._look()
        except Exception as error:
            self._miss(error)
            raise

    def _miss(self, error: Exception) -> None:
        paths = " and ".join(self._offsets)
        self.troubles = (f"the rows of {paths} were not followed to their end: {type(error).__name__}: {error}",)
        log.warning("%s", self.troubles[0])

    def _look(self) -> None:
        try:
            self._read()
            self._failing = None
        except OSError as error:
            if not self._failing:
                log.warning("metrics are read later, now they cannot be: %s", error)
            self._failing = error

    def _read(self) -> None:
        fresh = {path: _whole(storage.read_from(path, offset)) for path, offset in self._offsets.items()}
        found = [json.loads(line) for data in fresh.values() for line in data.splitlines()]
        found.sort(key=lambda row: row["time"])  # the rows of two files
        for path, data in fresh.items():
            self._offsets[path] += len(data)
        for sink in self._sinks if found else ():
            sink(found)


@contextmanager
def following(paths: Sequence[str], sinks: Sequence[Callable[[list[Row]], None]]) -> Iterator[Follower]:
    """Hand new rows of `paths` to `sinks` while the block runs, up to the last one."""
    follower = Follower(paths, sinks)
    follower.start()
    try:
        yield follower
    finally:
        follower.stop()


class Narrator:
    """Logs the rows that a person wants to see: every checkpoint, and otherwise one row a second."""

    def __init__(self, label: str = "") -> None:
        self._label = f"{label} " if label else ""
        self._next = 0.0

    def __call__(self, rows: list[Row]) -> None:
        """Log the rows of one batch that are worth a line."""
        for row in rows:
            if row["checkpoint"]:
                log.info("%s", self._label + describe(row))
        if not rows[-1]["checkpoint"] and time.monotonic() >= self._next:
            self._next = time.monotonic() + 1.0
            log.info("%s", self._label + describe(rows[-1]))


def describe(row: Row) -> str:
    """Return a row as words: ``step 120 loss 0.031 accuracy 0.97 (checkpoint)``."""
    words = [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row["metrics"].items()
    ]
    return " ".join(words) + (" (checkpoint)" if row["checkpoint"] else "")
