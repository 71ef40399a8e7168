"""What a service's replicas log and print, on all nodes, and what Serve logs of loading their code."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Collection, Iterator, Sequence
from typing import IO

from raykube.backends import replicalogs, serveapps, sources
from raykube.backends.kuberay import objects
from raykube.backends.kuberay.logs.logfiles import Following, LogFile
from raykube.backends.kuberay.serve import servelook, servestates
from raykube.backends.kubernetes.fields import name_of, spec_of
from raykube.backends.kubernetes.kubeapi import Kube, Object
from raykube.backends.rayapi import RayApi
from raykube.errors import BackendError, NotFound, Unreachable

#: A file that was rotated because it was full; the higher the number, the older the file.
_FULL = re.compile(r"(.*\.(?:log|out|err))\.(\d+)")
_WORKER = re.compile(r"worker-[^/]*-(\d+)\.(?:out|err)(?:\.\d+)?")


def lines(kube: Kube, name: str, *, follow: bool) -> Iterator[str]:
    """Yield the lines of a service's replicas, oldest first; with `follow` new ones too, until it is taken down."""
    service = objects.found(kube, "RayService", name)
    if follow:
        yield from Following(kube, lambda: _files_now(kube, name), replicalogs.ReplicaLines).lines()
        return
    yield from _merged(_files(kube, service))


def _merged(files: Sequence[LogFile]) -> Iterator[str]:
    """Yield the lines of files in order. A file that cannot be read ends with the error that is raised at the end.

    Files may hold gigabytes, and a merge reads all at once: they are copied to disk first, one after another.
    """
    with contextlib.ExitStack() as stack:
        copies = [stack.enter_context(tempfile.TemporaryFile()) for _ in files]
        failed = [error for file, copy in zip(files, copies, strict=True) if (error := _copied(file, copy))]
        logs = [sources.lines_in(copy, replicalogs.ReplicaLines()) for copy in copies]
        yield from replicalogs.in_order(zip([file.path for file in files], logs, strict=True))
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
    """Return the files of a service, each once, the oldest first: an app's name may be the beginning of another's.

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
    apps, nodes, environment = servestates.apps_of(service), head.api.nodes(), _environment(service)
    patterns = [f"serve/controller_build_{app}_*" for app in apps]
    patterns += [f"serve/replica_{name}_*" for name, app in apps.items() if serveapps.logs_apart(app, environment)]
    found = [(node, path) for pattern in patterns for node in nodes for path in _listed(head.api, node, pattern)]
    outputs = {node: _listed(head.api, node, "worker-*") for node in nodes}
    for _, pid, node in sorted(_processes(head.api, apps)):
        found += [(node, path) for path in outputs.get(node, ()) if _pid(path) == pid]
    return [LogFile(head.cluster, node, path, head.api) for node, path in dict.fromkeys(found)]


def _environment(service: Object) -> dict[str, str]:
    """Return the variables that the pods of a service's cluster are given as plain values."""
    spec = spec_of(service).get("rayClusterConfig") or {}
    groups = [spec.get("headGroupSpec") or {}, *(spec.get("workerGroupSpecs") or [])]
    containers = [each for group in groups for each in spec_of(group.get("template") or {}).get("containers") or []]
    return {each["name"]: str(each.get("value") or "") for own in containers for each in own.get("env") or []}


def _processes(api: RayApi, apps: Collection[str]) -> Iterator[tuple[bool, int, str]]:
    """Yield of each replica that has begun whether it is still there, its process and its node."""
    classes = replicalogs.classes(apps)
    for each in api.actors("serve"):
        if each["pid"] and each["class_name"].startswith(classes):
            yield each["state"] != "DEAD", each["pid"], each["node_id"]


def _listed(api: RayApi, node: str, pattern: str) -> list[str]:
    """Return the files of a node whose names fit, the oldest part of each first."""
    try:
        return sorted(api.log_files(node, pattern), key=_age)
    except NotFound:  # the node has gone since it was listed
        return []


def _pid(path: str) -> int | None:
    """Return the process that wrote a worker's file; None for other files."""
    return int(found[1]) if (found := _WORKER.fullmatch(path)) else None
