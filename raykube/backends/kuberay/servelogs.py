"""What Serve logs of the replicas of a service, on all nodes, and what it says where it loads their code."""

from __future__ import annotations

from collections.abc import Iterator

from raykube.backends.kuberay import servelook, servestates
from raykube.backends.kuberay.logfiles import Following, LogFile
from raykube.backends.kubernetes.kubeapi import Kube, Object
from raykube.errors import NotFound


def lines(kube: Kube, name: str, *, follow: bool) -> Iterator[str]:
    """Yield the log lines of a service's replicas; with `follow` those to come as well, until it is taken down."""
    service = servelook.found(kube, name)
    if follow:
        yield from Following(kube, lambda: _now(kube, name)).lines()
        return
    for file in _files(kube, service):
        yield from file.lines()


def _now(kube: Kube, name: str) -> tuple[list[LogFile], bool]:
    try:
        service = servelook.found(kube, name)
    except NotFound:
        return [], True
    return _files(kube, service), False


def _files(kube: Kube, service: Object) -> list[LogFile]:
    """Return the log files of a service: first those of loading the code, then its replicas'."""
    head = servelook.head_of(kube, service)
    if head is None:
        return []
    kinds = ("controller_build", "replica")
    patterns = [f"serve/{kind}_{app}_*" for kind in kinds for app in servestates.wanted(service)]
    nodes = head.nodes()
    return [
        LogFile(head.cluster, node, path, head.api)
        for pattern in patterns
        for node in nodes
        for path in head.api.log_files(node, pattern)
    ]
