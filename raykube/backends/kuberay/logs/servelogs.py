"""What Serve logs of a service's replicas, on all nodes, and of loading their code."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO

from raykube.backends import sources
from raykube.backends.kuberay import objects
from raykube.backends.kuberay.logs.logfiles import Following, LogFile
from raykube.backends.kuberay.serve import servelook, servestates
from raykube.backends.kubernetes.fields import name_of
from raykube.backends.kubernetes.kubeapi import Kube, Object
from raykube.errors import BackendError, NotFound, Unreachable

#: A log file that Serve rotated because it was full; the higher the number, the older the file.
_FULL = re.compile(r"(.*\.log)\.(\d+)")


def lines(kube: Kube, name: str, *, follow: bool) -> Iterator[str]:
    """Yield the log lines of a service's replicas, oldest first; with `follow` new ones too, until it is taken down."""
    service = objects.found(kube, "RayService", name)
    if follow:
        yield from Following(kube, lambda: _files_now(kube, name)).lines()
        return
    yield from _merged(sorted(_files(kube, service), key=lambda file: _age(file.path)))


def _merged(files: Sequence[LogFile]) -> Iterator[str]:
    """Yield the lines of files by time. A file that cannot be read ends with the error that is raised at the end.

    Files may hold gigabytes, and a merge reads all at once: they are copied to disk first, one after another.
    """
    with contextlib.ExitStack() as stack:
        copies = [stack.enter_context(tempfile.TemporaryFile()) for _ in files]
        failed = [error for file, copy in zip(files, copies, strict=True) if (error := _copied(file, copy))]
        yield from sources.by_time(map(sources.lines_in, copies))
    if failed:
        raise failed[0]


def _copied(file: LogFile, copy: IO[bytes]) -> BackendError | None:
    """Copy what a file has now; return what kept it from being read whole."""
    try:
        copy.writelines(file.rest(0))
    except NotFound:
        return None
    except BackendError as error:
        return error
    finally:
        copy.seek(0)
    return None


def _age(path: str) -> tuple[str, int]:
    """Return a sort key that puts rotated parts (``x.log.2``, then ``x.log.1``) before ``x.log``."""
    full = _FULL.fullmatch(path)
    return (full[1], -int(full[2])) if full else (path, 0)


def _files_now(kube: Kube, name: str) -> tuple[list[LogFile], bool]:
    try:
        service = objects.found(kube, "RayService", name)
    except NotFound:
        return [], True
    return [file for file in _files(kube, service) if not _FULL.fullmatch(file.path)], False


def _files(kube: Kube, service: Object) -> list[LogFile]:
    """Return the log files of a service, each once: an app's name may be the beginning of another's.

    Raises:
        Unreachable: its head does not answer; `service why` tells why its pod does not run.
    """
    head = servelook.serve_head(kube, service)
    if head is None:
        return []
    try:
        return _files_on(head, service)
    except Unreachable as error:
        raise Unreachable(error.what, why=error.why, next_step=f"raykube service why {name_of(service)}") from error


def _files_on(head: servelook.ServeHead, service: Object) -> list[LogFile]:
    kinds = ("controller_build", "replica")
    patterns = [f"serve/{kind}_{app}_*" for kind in kinds for app in servestates.apps_of(service)]
    nodes = head.api.nodes()
    found = {
        LogFile(head.cluster, node, path, head.api): None
        for pattern in patterns
        for node in nodes
        for path in head.api.log_files(node, pattern)
    }
    return list(found)
