"""What the replicas of a service log and print.

Ray keeps it in two files of each replica's worker, with marks of whose it is. Serve's logger writes to standard error.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Iterator

from raykube.backends import sources

_ACTOR, _REPLICA = ":actor_name:", "ServeReplica:"
_OUT = re.compile(r".*\.out(\.\d+)?")


def classes(apps: Collection[str]) -> tuple[str, ...]:
    """Return the beginnings of the names that Ray gives to the classes of these applications' replicas."""
    return tuple(f"{_REPLICA}{app}:" for app in apps)


def marks(apps: Collection[str]) -> tuple[bytes, ...]:
    """Return the beginnings of the lines with which Ray marks the output of these applications' replicas."""
    return tuple(f"{_ACTOR}{each}".encode() for each in classes(apps))


class ReplicaLines(sources.Lines):
    """The lines that a replica wrote to a file of its worker, without Ray's marks and what others wrote before it."""

    def __init__(self) -> None:
        super().__init__()
        self._is_marked = False
        # A file that took the place of a full one has no mark.
        self._is_shown = True

    def take(self, chunk: bytes) -> list[str]:
        """Return the replica's lines that `chunk` completes."""
        return [line for line in super().take(chunk) if self._shows(line)]

    def end(self) -> list[str]:
        """Return the replica's last line, if no newline ended it."""
        return [line for line in super().end() if self._shows(line)]

    def _shows(self, line: str) -> bool:
        if not sources.is_mark(line):
            return self._is_shown
        if not self._is_marked and not line.startswith(":job_id:"):
            self._is_marked = self._is_shown = line.startswith(_ACTOR + _REPLICA)
        return False


def in_order(files: Iterable[tuple[str, Iterable[str]]]) -> Iterator[str]:
    """Yield the lines of files, given by name: all merged by time, then standard output, which has no times."""
    logged, printed = list[Iterable[str]](), list[Iterable[str]]()
    for name, lines in files:
        (printed if _OUT.fullmatch(name) else logged).append(lines)
    yield from sources.by_time(logged)
    yield from itertools.chain.from_iterable(printed)
