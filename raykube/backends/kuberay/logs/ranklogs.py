"""The output of one training worker of a run on KubeRay: two files on its node, read through the head.

Once the node or the cluster is gone, the copy in the run's storage is read.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from raykube import wire
from raykube.backends import sources
from raykube.backends.kuberay import storage
from raykube.backends.kuberay.logs.followed import Followed
from raykube.backends.kuberay.logs.logfiles import Following, LogFile
from raykube.backends.kuberay.rayhead import RayHead
from raykube.backends.kuberay.runs.look import Look
from raykube.errors import BackendError, Forbidden, Unreachable


def lines(look: Look, rank: int, *, follow: bool) -> Iterator[str]:
    """Yield the lines of a rank: standard output, then standard error; with `follow` both as they come."""
    found = _followed(look, rank) if follow else _whole(look, rank)
    yield from sources.printed(found)


def _whole(look: Look, rank: int) -> Iterator[str]:
    head = look.head()
    details = head.details() if head else {}
    if not details and look.status().is_terminal:
        yield from _stored_lines(
            look, rank, sources.output_lost(look.name, rank, "its cluster", "Ray keeps it on the worker's node")
        )
        return
    try:
        files = _files(head, look.name, details, rank)
    except sources.OutputLost as error:
        yield from _stored_lines(look, rank, error)
        return
    for file in files:
        yield from file.lines()


def _stored_lines(look: Look, rank: int, gone: sources.OutputLost) -> list[str]:
    """Return a rank's lines from the run's storage; empty for a rank that printed nothing.

    Raises:
        OutputLost: the error `gone`; the storage has nothing of this rank.
        ConfigError: the run had no such rank.
    """
    text = storage.read_newest(look.kube, look.job, wire.rank_log(rank))
    if text is not None:
        return sources.lines_of(text)
    if ranks := storage.read(look.kube, look.job, wire.RANKS_FILE):
        sources.place_of([tuple(each) for each in json.loads(ranks)], rank, look.name)
    raise gone


def _files(head: RayHead | None, name: str, details: Mapping[str, Any], rank: int) -> list[LogFile]:
    """Return the files of a rank, standard output first. Raises NotFound, ConfigError, OutputLost."""
    driver = details.get("driver_node_id")
    node, worker = sources.place_of(head.ranks(name, driver) if head and driver else [], rank, name)
    assert head
    try:
        found = sorted(head.api.log_files(node, sources.pattern_of(worker)), reverse=True)
    except (Unreachable, Forbidden):
        raise
    except BackendError as error:  # a 500 without words if the node is gone
        why = f"Ray keeps it there, and says of the node that it knew: {error.why}"
        raise sources.output_lost(name, rank, "its node", why) from error
    return [LogFile(head.cluster, node, path, head.api) for path in found]


def _followed(look: Look, rank: int) -> Iterator[str]:
    known: list[LogFile] = []
    with contextlib.closing(Followed(look)) as run:

        def find() -> tuple[list[LogFile], bool]:
            ended = run.ended.is_set()  # asked before the files, so that those of the last moment are found
            try:
                known[:] = _files(run.head, look.name, run.details, rank)
            except BackendError:  # no rank is known yet, or its node is gone and the driver may have moved
                run.refresh()
            return known, ended

        yield from Following(look.kube, find).lines()
        run.check()
        if not known:  # it raises the reason
            yield from _whole(Look(look.kube, look.name), rank)
