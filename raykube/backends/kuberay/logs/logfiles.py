"""Growing log files on Ray's nodes, all read at the same time through the head of their cluster.

Each file has its own stream. A broken stream is reopened, and what was already yielded is skipped: no line is lost or
doubled. New files are found as they appear.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from raykube.backends.kuberay.polling import GIVE_UP_S
from raykube.backends.kubernetes.kubeapi import Kube, Stop
from raykube.backends.kubernetes.watching import Refusals
from raykube.backends.rayapi import RayApi, tells_of_none
from raykube.backends.sources import Lines, lines_of
from raykube.errors import BackendError, Forbidden, NotFound, RaykubeError

_LOOK_S = 1.0
_PAUSE_S = 0.3


@dataclass(frozen=True)
class LogFile:
    """A file in the log folder of a cluster's node, and the API that serves it."""

    cluster: str
    node: str
    path: str
    api: RayApi = field(repr=False, compare=False)

    def rest(self, skip: int) -> Iterator[bytes]:
        """Yield what is in the file now, after its first `skip` bytes. Raises NotFound."""
        return _after(self.api.log_parts(self.node, self.path), skip)

    def lines(self) -> list[str]:
        """Return the file's lines; empty when there is no such file."""
        with contextlib.suppress(NotFound):
            return lines_of(self.api.log(self.node, self.path))
        return []


def chunks(kube: Kube, file: LogFile, skip: int, stop: Stop) -> Iterator[bytes]:
    """Yield what is in a file after its first `skip` bytes, and what is appended to it, until `stop`.

    Raises:
        NotFound: the file is gone, and its node may be gone, too.
        Unreachable: there is no answer; Ray does not begin one while the file is empty.
    """
    path, options = file.api.log_path(file.node, file.path)
    try:
        with kube.growing(path, stop, **options) as response:
            # What is written after `stop` is read by another request, from where this one ends.
            yield from _after(itertools.takewhile(lambda _: not stop.is_set(), response.iter_raw()), skip)
    except BackendError as error:
        if tells_of_none(error.why):
            raise NotFound(error.what, why=error.why) from error
        raise


def _after(parts: Iterable[bytes], skip: int) -> Iterator[bytes]:
    for part in parts:
        fresh = part[skip:]
        skip = max(0, skip - len(part))
        if fresh:
            yield fresh


#: Returns the files that exist now, and whether nothing more will be written.
Find = Callable[[], tuple[list[LogFile], bool]]


class Following:
    """Streams files to their ends. One thread looks for files, and each file has a thread that reads it.

    `find` is called every second until it says that nothing more will be written. If it raises ConfigError, the lines
    end; if it raises BackendError, it is called again, for ten minutes. A refusal is final if nothing was allowed
    before, or if it lasts. `made` makes the lines of one file.
    """

    def __init__(self, kube: Kube, find: Find, made: Callable[[], Lines] = Lines) -> None:
        self._kube = kube
        self._find = find
        self._made = made
        self._over = Stop()
        self._closed = False
        self._readers: dict[LogFile, threading.Thread] = {}
        self._away_since: float | None = None
        self._refusals = Refusals()
        # The last item ends the lines: None when all was read, else the error that ended them.
        self._lines: queue.Queue[str | RaykubeError | None] = queue.Queue(maxsize=10_000)

    def lines(self) -> Iterator[str]:
        """Yield the lines of all files as they come.

        Raises:
            ConfigError: `find` raised it.
            Forbidden: this user may not look for files.
            BackendError: there was no answer for ten minutes.
        """
        threading.Thread(target=self._look, daemon=True, name="raykube-logs").start()
        try:
            while isinstance(line := self._lines.get(), str):
                yield line
            if line:
                raise line
        finally:
            self._closed = True
            self._over.set()

    def _look(self) -> None:
        end: RaykubeError | None = None
        try:
            while not self._over.is_set() and not self._found_all():
                self._over.wait(_LOOK_S)
        except RaykubeError as error:
            end = error
        self._over.set()
        for reader in self._readers.values():
            reader.join()
        self._put([end])

    def _put(self, lines: Sequence[str | RaykubeError | None]) -> None:
        """Queue each line once there is room; drop the lines once nobody reads any more."""
        for line in lines:
            while not self._closed:
                with contextlib.suppress(queue.Full):
                    self._lines.put(line, timeout=_LOOK_S)
                    break

    def _found_all(self) -> bool:
        """Start reading new files; return whether there will be no more. Raises the error that ends the lines."""
        try:
            files, last = self._find()
        except BackendError as error:
            self._away_since = self._away_since or time.monotonic()
            refused = isinstance(error, Forbidden) and self._refusals.is_final()
            if refused or time.monotonic() - self._away_since > GIVE_UP_S:
                raise
            return False
        self._away_since = None
        self._refusals.end()
        for file in files:
            if file not in self._readers:
                reader = threading.Thread(target=self._read, args=(file,), daemon=True, name="raykube-log")
                self._readers[file] = reader
                reader.start()
        return last

    def _read(self, file: LogFile) -> None:
        given, made = 0, self._made()
        while not self._over.is_set():
            try:
                for chunk in chunks(self._kube, file, given, self._over):
                    given += len(chunk)
                    self._put(made.take(chunk))
            except NotFound:  # its node or its cluster is gone
                break
            except BackendError:
                pass
            self._over.wait(_PAUSE_S)
        with contextlib.suppress(BackendError):  # what can no longer be read is left out
            if not self._closed:
                for chunk in file.rest(given):
                    self._put(made.take(chunk))
        self._put(made.end())
