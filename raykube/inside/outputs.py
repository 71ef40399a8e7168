"""Keeps in the storage what a run's driver and its training workers print: Ray's own files go with their nodes.

It imports only the standard library, because the driver's side runs before anything else does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from raykube import wire
from raykube.inside import storage

log = logging.getLogger("raykube")
_COPY_S = 5.0
_REMOTE_S = 30.0
_REPLAY_MAX = 16 * 2**20
_COPY_AT_ONCE = 2**20
#: Bytes per second that go to a bucket on average: a log that has grown is written again as a whole.
_REMOTE_RATE = 4 * 2**20
_MOST = 16 * 2**20
_RAYS = (b":job_id:", b":actor_name:", b":task_name:")  # Ray's lines that say whose output follows
_FULL = b"raykube: more than 16 MiB was printed, the rest is not kept\n"


def say(text: str, stream: TextIO = sys.stdout) -> None:
    """Print a line of our own; a failure, as on a full disk below Ray's log folder, ends nothing."""
    with contextlib.suppress(OSError):
        os.write(stream.fileno(), f"raykube: {text}\n".encode())  # not buffered: what cannot be written is dropped


class Driver:
    """The driver's log file, which is our own standard output, and its copy in the storage."""

    def __init__(self, run: str) -> None:
        self._source = _own_output()
        self._target = storage.join(run, wire.LOG_FILE)
        self._offset = 0
        self._uploaded = -1
        self._due = 0.0
        self.replayed = 0
        self.starts_at = self._source.stat().st_size if self._source else 0

    @property
    def folder(self) -> Path | None:
        """Ray's log folder on this node."""
        return self._source.parent if self._source else None

    def replay(self) -> None:
        """Print what earlier attempts printed, the last 16 MiB of it, so that one log tells the whole run."""
        earlier = storage.read_from(self._target, max(0, storage.size(self._target) - _REPLAY_MAX))
        sys.stdout.buffer.write(earlier)
        sys.stdout.buffer.flush()
        self.replayed = len(earlier)
        self._offset = self.starts_at + self.replayed

    def keep(self, *, last: bool = False) -> None:
        """Copy what was printed since the last copy; a bucket gets long logs less often, except the `last` time."""
        if self._source is None:
            return
        if storage.is_uri(self._target):
            if last or time.monotonic() >= self._due:
                self._keep_remote(self._source)
            return
        with self._source.open("rb") as source, Path(self._target).open("ab", buffering=0) as target:
            source.seek(self._offset)
            while text := source.read(_COPY_AT_ONCE):
                self._offset += target.write(text)  # a volume that fills up takes only a part; the rest stays due
                source.seek(self._offset)

    def _keep_remote(self, source: Path) -> None:
        """Write the whole log, if it has grown: an object store cannot append."""
        size = source.stat().st_size - self.starts_at
        if size != self._uploaded:
            self._due = time.monotonic() + size / _REMOTE_RATE
            storage.upload(self._target, _parts(source, self.starts_at, size))
            self._uploaded = size


def _parts(path: Path, start: int, size: int) -> Iterator[bytes]:
    """Yield `size` bytes of a file from `start` on, in parts: a log may be too long for the head's memory."""
    with path.open("rb") as file:
        file.seek(start)
        while size > 0 and (part := file.read(min(size, _COPY_AT_ONCE))):
            size -= len(part)
            yield part


def _own_output() -> Path | None:
    """Return the file that is our standard output; None if that is a pipe or a terminal."""
    try:
        path = Path("/proc/self/fd/1").readlink()
    except OSError:
        return None
    return path if path.is_file() else None


class Printed:
    """Appends what is new in some files to one file, whole lines at a time.

    Args:
        sources: the files.
        target: path or URI; what an earlier start wrote there stays.
    """

    def __init__(self, sources: Sequence[Path], target: str) -> None:
        self._offsets = {str(path): 0 for path in sources}
        self._target = target
        self._file = storage.Growing(target)
        self._room = _MOST

    def copy(self, *, last: bool = False) -> None:
        """Copy the new lines; the `last` time, also one without an end."""
        fresh = {path: self._fresh(path, last=last) for path in self._offsets} if self._room else {}
        lines = (line for text in fresh.values() for line in text.splitlines(keepends=True))
        self._take(b"".join(line for line in lines if not line.startswith(_RAYS)))
        for path, text in fresh.items():
            self._offsets[path] += len(text)
        # A worker that printed nothing has a file at the end, which tells it from one whose output is lost.
        if self._file.due or (last and not storage.exists(self._target)):
            self._file.write()

    def _take(self, data: bytes) -> None:
        room = self._room - len(data)
        self._file.due += data if room > 0 or not data else data[: self._room].rpartition(b"\n")[0] + b"\n" + _FULL
        self._room = max(0, room)

    def _fresh(self, path: str, *, last: bool) -> bytes:
        text = storage.read_from(path, self._offsets[path])
        return text if last else text[: text.rfind(b"\n") + 1]


@contextmanager
def kept(target: str) -> Iterator[None]:
    """Copy what this worker prints to `target` while the block runs, in a thread of its own."""
    printed, ended = Printed(_worker_files(), target), threading.Event()
    thread = threading.Thread(target=_copy, args=(printed, ended, target), daemon=True, name="raykube-output")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=_REMOTE_S)


def _copy(printed: Printed, ended: threading.Event, target: str) -> None:
    failing = False
    while not ended.wait(_REMOTE_S if storage.is_uri(target) else _COPY_S):
        failing = _try_copy(printed, target, failing=failing)
    _try_copy(printed, target, last=True, failing=failing)


def _try_copy(printed: Printed, target: str, *, failing: bool, last: bool = False) -> bool:
    """Copy, and return whether that failed; if so, the rest is copied the next time."""
    try:
        printed.copy(last=last)
    except OSError as error:
        if not failing:
            log.warning("what is printed here is not kept in %s now: %s", target, error)
        return True
    return False


def _worker_files() -> list[Path]:
    """Return the files in which Ray keeps this worker's output, standard output first."""
    import ray

    try:
        from ray._private.worker import _global_node

        folder = Path(_global_node.get_logs_dir_path())
    except (ImportError, AttributeError):  # internals of Ray, which may move; then only the copy is missing
        return []
    return sorted(folder.glob(f"worker-{ray.get_runtime_context().get_worker_id()}-*"), reverse=True)
