"""Following a run or service: asking for its state again and again, and reading files while they grow."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from raykube.backends import Status, sources
from raykube.errors import NotFound, Unreachable

_Answer = TypeVar("_Answer")

#: How long a head may give no answer before that is an error.
PATIENCE_S = 30.0
_CHUNK_BYTES = 1 << 20


def answers(ask: Callable[[], _Answer]) -> Iterator[_Answer | None]:
    """Ask again and again; yield each answer, or None for no answer: the head may soon turn out to be dead.

    Raises:
        Unreachable: there was no answer for over ``PATIENCE_S``.
    """
    silent_since: float | None = None
    while True:
        asked = time.monotonic()
        try:
            found = ask()
        except Unreachable:
            silent_since = silent_since or asked
            if time.monotonic() - silent_since > PATIENCE_S:
                raise
            yield None
        else:
            silent_since = None
            yield found


def goes_on(
    ask: Callable[[], Status], is_open: Callable[[Status], bool], *, follow: bool, every_s: float = 0.1
) -> Iterator[bool]:
    """Yield, after a short wait each time, whether more lines may come; without an answer they may.

    Even without `follow`, ask once: the first status request after a head dies is what saves its logs.
    """
    pause = every_s if follow else 0
    time.sleep(pause)
    with contextlib.suppress(NotFound):  # deleted while its log is being read
        for found in answers(ask):
            yield follow and (found is None or is_open(found))
            time.sleep(pause)
    yield False


def lines(
    paths: Callable[[], Iterable[Path]], *, is_open: Iterator[bool], made: Callable[[], sources.Lines] = sources.Lines
) -> Iterator[str]:
    """Yield the lines of growing files until `is_open` says that nobody writes to them any more.

    `is_open` is asked after each look that found nothing new; after its False, there is one last look. `paths` is
    called before each look; a file that it named once is read to its end. `made` makes the lines of one file.
    """
    files: dict[Path, _Growing] = {}
    going = True
    while True:
        for path in paths():
            files.setdefault(path, _Growing(path, made))
        found = False
        for file in files.values():
            for chunk in file.chunks():
                found = True
                yield from file.lines.take(chunk)
        if not going:
            break
        if not found:
            going = next(is_open)
    yield from (line for file in files.values() for line in file.lines.end())


class _Growing:
    """A file that is read while it grows."""

    def __init__(self, path: Path, made: Callable[[], sources.Lines]) -> None:
        self._path = path
        self._made = made
        self._offset = 0
        self.lines = made()

    def chunks(self) -> Iterator[bytes]:
        """Yield what is new in it, in parts; from its start if it is shorter now, so another file took its place."""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < self._offset:
                self._offset, self.lines = 0, self._made()
            file.seek(self._offset)
            while chunk := file.read(min(_CHUNK_BYTES, size - self._offset)):
                self._offset += len(chunk)
                yield chunk
