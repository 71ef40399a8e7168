"""What the replicas of a service print, on all nodes, and what Serve says where it loads their code.

Each file is a stream of its own through the head. One that breaks is opened again, and what was given already is
skipped: a line is neither lost nor doubled. Files that are new, of an added replica, are found while it goes on.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator

from raykube.backends import servelook, servestates
from raykube.backends.kubeapi import Kube, Object, Stop
from raykube.backends.servelook import ServeHead
from raykube.errors import BackendError, NotFound

_LOOK_S = 1.0
_PAUSE_S = 0.3

_File = tuple[str, str]  # the node, and the path in its log folder


def lines(kube: Kube, name: str, *, follow: bool) -> Iterator[str]:
    """Yield the log lines of a service's replicas; with `follow` those to come as well, until it is taken down."""
    if follow:
        yield from _Following(kube, name).lines()
        return
    service = servelook.found(kube, name)
    if head := servelook.head_of(kube, service):
        for node, file in _files(head, service):
            with contextlib.suppress(NotFound):
                yield from head.api.log(node, file).decode("utf-8", "replace").splitlines()


def _files(head: ServeHead, service: Object) -> list[_File]:
    """Return the log files of a service: first those of loading the code, then its replicas'."""
    kinds = ("controller_build", "replica")
    patterns = [f"serve/{kind}_{app}_*" for kind in kinds for app in servestates.wanted(service)]
    nodes = head.nodes()
    return [(node, file) for pattern in patterns for node in nodes for file in head.log_files(node, pattern)]


class _Following:
    """Streams all files of a service at once. One thread looks for files, each file has one that reads it."""

    def __init__(self, kube: Kube, name: str) -> None:
        self._kube = kube
        self._name = name
        self._stop = Stop()
        self._known: set[tuple[str, _File]] = set()
        # What ends the lines: None when the service is gone, else the error that did.
        self._lines: queue.Queue[str | BackendError | None] = queue.Queue(maxsize=10_000)

    def lines(self) -> Iterator[str]:
        servelook.found(self._kube, self._name)
        threading.Thread(target=self._look, daemon=True, name="raykube-logs").start()
        try:
            while isinstance(line := self._lines.get(), str):
                yield line
            if line:
                raise line
        finally:
            self._stop.set()

    def _look(self) -> None:
        """Find files until the service is gone; a head or API server that is away is waited for."""
        while not self._stop.is_set():
            try:
                self._find()
            except NotFound:
                if self._is_gone():
                    break
            except BackendError:
                pass
            self._stop.wait(_LOOK_S)
        self._lines.put(None)

    def _is_gone(self) -> bool:
        with contextlib.suppress(BackendError):
            return self._kube.find("RayService", self._name) is None
        return False

    def _find(self) -> None:
        service = servelook.found(self._kube, self._name)
        head = servelook.head_of(self._kube, service)
        for file in _files(head, service) if head else ():
            if head and (head.cluster, file) not in self._known:
                self._known.add((head.cluster, file))
                threading.Thread(target=self._read, args=(head, file), daemon=True, name="raykube-log").start()

    def _read(self, head: ServeHead, file: _File) -> None:
        given, rest = 0, b""
        while not self._stop.is_set():
            try:
                for chunk in self._chunks(head, file, given):
                    given += len(chunk)
                    *whole, rest = (rest + chunk).split(b"\n")
                    for line in whole:
                        self._lines.put(line.decode("utf-8", "replace"))
            except NotFound:  # its node has gone
                return
            except BackendError:
                pass
            self._stop.wait(_PAUSE_S)

    def _chunks(self, head: ServeHead, file: _File, skip: int) -> Iterator[bytes]:
        path, options = head.api.log_path(*file)
        with self._kube.stream(path, self._stop, timeout=None, **options) as response:
            for chunk in response.iter_raw():
                fresh = chunk[skip:]
                skip = max(0, skip - len(chunk))
                if fresh:
                    yield fresh
