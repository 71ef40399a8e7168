"""Whether a Kubernetes can do what raykube will ask of it. Nothing is created there."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from raykube.backends.kubernetes import shared
from raykube.backends.kubernetes.kubeapi import Kube
from raykube.cluster import Cluster
from raykube.doctor import kuberay, named, rights, server
from raykube.doctor.check import Check, looked, refused
from raykube.errors import ConfigError


def checks(place: Callable[[], Cluster], otherwise: Callable[[], Cluster]) -> Iterator[Check]:
    """Look at everything, beginning with what the rest depends on.

    Args:
        place: gives the cluster to look at.
        otherwise: gives the Kubernetes alone, to look at if the manifest of `place` cannot be read.
    """
    try:
        cluster = place()
    except ConfigError as error:
        yield refused("manifest", error)
        cluster = otherwise()
    try:
        kube = shared.kube(cluster.context, cluster.namespace)
    except ConfigError as error:
        yield refused("kubeconfig", error)
        return
    yield from _through(kube, cluster)


def _through(kube: Kube, cluster: Cluster) -> Iterator[Check]:
    found = list(looked("server", lambda: server.checks(kube)))
    yield from found
    if found[-1].name == "server":  # it did not answer
        return
    yield from looked("rights", lambda: rights.checks(kube))
    yield from kuberay.checks(kube)
    if cluster.has_manifest:
        yield from named.checks(kube, cluster)
