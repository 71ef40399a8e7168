"""The output of one training worker of a local run: two files of its head, then a copy in its storage."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raykube import wire
from raykube.backends import sources
from raykube.backends.local import disk, following, head
from raykube.backends.local.records import Record
from raykube.errors import NotFound


def lines(record: Record, rank: int, *, follow: bool, is_open: Iterator[bool]) -> Iterator[str]:
    """Yield the lines of a rank: standard output, then standard error; with `follow` both as they come."""
    if not follow:
        _files(record, rank)
    known: list[Path] = []

    def files() -> list[Path]:
        try:
            known[:] = _files(record, rank)
        except NotFound:
            return []
        return known

    yield from sources.printed(following.lines(files, is_open=is_open))
    if not known:
        _files(record, rank)


def _files(record: Record, rank: int) -> list[Path]:
    """Return the files of a rank, standard output first. Raises NotFound, ConfigError, OutputLost."""
    path = Path(record.storage) / record.name / wire.RANKS_FILE
    ranks: Any = []
    with contextlib.suppress(FileNotFoundError), disk.reading(path, disk.CHECK_STORAGE):
        ranks = json.loads(path.read_text(encoding="utf-8"))
    _, worker = sources.place_of(ranks, rank, record.name)
    running = head.seen()
    if running is None or running.id != record.head:
        if kept := wire.newest(path.parent, wire.rank_log(rank)):
            return [kept]
        raise sources.output_lost(record.name, rank, "the head that ran it", "Ray keeps it with the head's own files")
    return sorted((Path(running.session_dir) / "logs").glob(sources.pattern_of(worker)), reverse=True)
