"""Sources of a run's logs: its driver, each of its training workers, the autoscaler, and Kubernetes' events."""

from __future__ import annotations

import heapq
import itertools
import operator
import re
from collections.abc import Iterable, Iterator, Sequence

from raykube.errors import BackendError, ConfigError, NotFound
from raykube.names import nearest

DRIVER, AUTOSCALER, EVENTS = "driver", "autoscaler", "events"
_RANK = re.compile(r"rank-(0|[1-9]\d*)")
_MEANT = re.compile(r"rank\D?0*(\d+)")
#: Of a line that Serve logs, as text or as JSON.
_TIME = re.compile(r'(?:[A-Z]+ |\{.*"asctime": ")(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3})')
_RAYS = (":job_id:", ":actor_name:", ":task_name:")


def rank_of(source: str) -> int | None:
    """Return the rank that a source names; None for any other source.

    Raises:
        ConfigError: there is no such source.
    """
    text = source if isinstance(source, str) else ""
    if found := _RANK.fullmatch(text):
        return int(found.group(1))
    if text in (DRIVER, AUTOSCALER, EVENTS):
        return None
    meant = _MEANT.fullmatch(text)
    known = (DRIVER, f"rank-{meant[1] if meant else 0}", AUTOSCALER, EVENTS)
    raise ConfigError(f"a run has no source {source!r} of logs", next_step=nearest(text, known))


class OutputLost(BackendError):
    """The output of a rank is lost: the node, cluster or head that kept it is gone."""


def output_lost(run: str, rank: int, place: str, why: str) -> OutputLost:
    """Return the error for the output of a rank that was lost with `place`; it says where else to look."""
    step = f"the driver's log has what Ray showed there: raykube job logs {run}"
    return OutputLost(f"the output of rank {rank} of {run} is gone: it was lost with {place}", why=why, next_step=step)


def place_of(ranks: Sequence[tuple[str, str]], rank: int, run: str) -> tuple[str, str]:
    """Return node and worker of a rank, found in the known `ranks`.

    Raises:
        NotFound: none is known.
        ConfigError: there are some, but not this one.
    """
    if not ranks:
        raise NotFound(
            f"run {run} has no training workers that are known",
            why="its script has not come to raykube.train or raykube.sweep, or calls neither",
            next_step=f"see what it does: raykube job logs {run}; -f waits for the workers",
        )
    if rank >= len(ranks):
        raise ConfigError(
            f"run {run} has no rank {rank}",
            why=f"it trains on {len(ranks)} worker{'s' if len(ranks) > 1 else ''}",
            next_step=f"--source rank-{len(ranks) - 1} is the last one",
        )
    return ranks[rank]


def pattern_of(worker: str) -> str:
    """Return the glob pattern for a worker's two log files, its standard output and its standard error."""
    return f"worker-{worker}-*"


def printed(lines: Iterable[str]) -> Iterator[str]:
    """Leave out the lines with which Ray marks whose output a worker's file holds."""
    return itertools.filterfalse(is_mark, lines)


def is_mark(line: str) -> bool:
    """Whether a line of a worker's file is one with which Ray marks whose output it holds."""
    return line.startswith(_RAYS)


def lines_in(log: Iterable[bytes], lines: Lines | None = None) -> Iterator[str]:
    """Yield the lines of a whole log as it is read, those that `lines` makes of it."""
    lines = lines or Lines()
    for chunk in log:
        yield from lines.take(chunk)
    yield from lines.end()


def lines_of(log: bytes) -> list[str]:
    """Return the lines of a whole log, split as when it is followed: a progress bar is one line."""
    return [*lines_in([log])]


def by_time(logs: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield the lines of several logs of Serve's, merged by their times.

    A line without a time follows the one before it in its log; such lines at the beginning of a log come first.
    """
    return map(operator.itemgetter(1), heapq.merge(*map(_timed, logs), key=operator.itemgetter(0)))


def _timed(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    time = ""
    for line in lines:
        if found := _TIME.match(line):
            time = found[1]
        yield time, line


class Lines:
    """Splits the bytes of a log into lines as they arrive; bytes that are not UTF-8 show as U+FFFD."""

    def __init__(self) -> None:
        self._rest = b""

    def take(self, chunk: bytes) -> list[str]:
        """Return the lines that `chunk` completes."""
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        return [line.decode("utf-8", "replace") for line in whole]

    def end(self) -> list[str]:
        """Return the last line, if no newline ended it."""
        return [self._rest.decode("utf-8", "replace")] if self._rest else []
