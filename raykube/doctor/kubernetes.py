"""Whether a Kubernetes can do what raykube will ask of it. Nothing is made there."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from raykube.backends.kubernetes.kubeapi import Kube
from raykube.cluster import Cluster
from raykube.doctor import kuberay, named, rights, server
from raykube.doctor.check import Check, looked, refused
from raykube.errors import ConfigError


def checks(place: Callable[[], Cluster], otherwise: Callable[[], Cluster]) -> Iterator[Check]:
    """Look at everything, what the rest needs first.

    Args:
        place: the cluster that is meant.
        otherwise: Kubernetes alone, to look at when the manifest of `place` cannot be read.
    """
    try:
        cluster = place()
    except ConfigError as error:
        yield refused("manifest", error)
        cluster = otherwise()
    try:
        kube = Kube(cluster.context, cluster.namespace)
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
