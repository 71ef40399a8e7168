"""Observes one service on KubeRay: once, or continuously."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from raykube import marks
from raykube.backends import Status
from raykube.backends.kuberay import objects, rayhead
from raykube.backends.kuberay.causes.observed import Observed, events_of, head_service
from raykube.backends.kuberay.polling import Poll, looks, unreachable
from raykube.backends.kuberay.serve import servestates
from raykube.backends.kuberay.serve.serveaddress import Address
from raykube.backends.kuberay.serve.servestates import Apps
from raykube.backends.kubernetes.fields import name_of, spec_of
from raykube.backends.kubernetes.kubeapi import Kube, Object, Stop
from raykube.backends.kubernetes.watching import RefusalCache, Refusals, Watching
from raykube.errors import BackendError, Forbidden, NotFound, Unreachable


class ServeHead:
    """The head of one of a service's clusters, reached through the API server; the cluster must have one by now."""

    def __init__(self, kube: Kube, cluster: Mapping[str, Any]) -> None:
        self.cluster = name_of(cluster)
        self._refusals = Refusals()
        self.api = rayhead.api_of(kube, self.cluster, spec_of(cluster), kube.proxy(head_service(cluster)))

    def applications(self) -> Apps | None:
        """Return the applications as Serve reports them: empty while it does not answer; None if it may not be asked.

        KubeRay's copy is seconds old, and may show an update as done that has only begun.
        """
        try:
            found = dict(self.api.serve_status()["applications"])
        except Forbidden:
            return None if self._refusals.is_final() else {}
        except BackendError:
            return {}
        self._refusals.end()
        return found


_ServePoll = Poll[ServeHead, Apps | None]


def serve_head(kube: Kube, service: Object) -> ServeHead | None:
    """Return the head that serves, or will; None when there is none to ask."""
    with contextlib.suppress(NotFound):
        name = servestates.cluster_of(service)
        if name and head_service(cluster := kube.get("RayCluster", name)):
            return ServeHead(kube, cluster)
    return None


def status(kube: Kube, name: str) -> Status:
    """Return the current status."""
    service = objects.found(kube, "RayService", name)
    things = {kind: objects.visible(kube, kind, **selectors) for kind, selectors in _selectors(service).items()}
    seen = _observed(service, things, kube.now())
    head = _askable(kube, seen.cluster, RefusalCache())
    return servestates.service_status(seen, head.applications() if head else None)


def changes(kube: Kube, name: str) -> Iterator[Status]:
    """Yield the status now, at each change, and every half second; RUNNING once the address answers here, too."""
    watching, stop = Watching(kube), Stop()
    serve: _ServePoll = Poll(ServeHead.applications, lambda head: {} if head else None, watching.touch)
    try:
        watching.watch("RayService", fieldSelector=f"metadata.name={name}")
        threading.Thread(target=serve.run, args=(stop,), daemon=True, name="raykube-serve").start()
        yield from map(Address(kube.server).checked, _Follower(kube, name, watching, serve).follow())
    finally:
        stop.set()
        watching.close()


class _Follower:
    """Follows one service with watches, and its Serve by polling it."""

    def __init__(self, kube: Kube, name: str, watching: Watching, serve: _ServePoll) -> None:
        self._kube = kube
        self._name = name
        self._watching = watching
        self._serve = serve
        self._head: ServeHead | None = None
        self._later = RefusalCache()
        self._last: Status | None = None

    def follow(self) -> Iterator[Status]:
        for service, away in looks(self._watching, "RayService"):
            if away:
                yield self._unseen(away)
            elif service is not None and (seen := self._seen(service)):
                yield self._status_of(seen)

    def _seen(self, found: list[Object]) -> Observed | None:
        """Return what the watches know; None until each has answered: an object not known yet would seem to be gone."""
        if not found:
            raise NotFound(f"service {self._name} was deleted", next_step="see: raykube service list")
        things: dict[str, list[Object]] = {}
        for kind, selectors in _selectors(found[0]).items():
            self._watching.watch(kind, **selectors)
            told = self._watching.of(kind)
            if told is None and not self._watching.error(kind):
                return None
            things[kind] = told or []
        return _observed(found[0], things, self._kube.now())

    def _status_of(self, seen: Observed) -> Status:
        self._serve.ask(self._askable(seen.cluster))
        self._last = servestates.service_status(seen, self._serve.answer()[0])
        return self._last

    def _askable(self, cluster: Mapping[str, Any]) -> ServeHead | None:
        """Return the head of this cluster; the same object each time."""
        if not cluster or not self._head or self._head.cluster != name_of(cluster):
            self._head = _askable(self._kube, cluster, self._later)
        return self._head

    def _unseen(self, error: Unreachable) -> Status:
        last = self._last or Status(self._name, "service", "WAITING")
        # This was true a while ago. Nobody knows now whether the service still runs.
        state = "PENDING" if last.state == "RUNNING" else last.state
        return replace(last, state=state, detail=error.what, failure=unreachable(error))


def _askable(kube: Kube, cluster: Mapping[str, Any], later: RefusalCache) -> ServeHead | None:
    """Return a cluster's head; None if this user may not ask it or nobody answers: the RayService must do then."""
    with contextlib.suppress(BackendError):  # the Secret may not be there yet
        if head_service(cluster):
            return later.asked(name_of(cluster), lambda: ServeHead(kube, cluster))
    return None


def _selectors(service: Object) -> dict[str, dict[str, str]]:
    """Return the other objects to look at for a RayService, as kind: selectors."""
    selectors = {"Event": objects.WARNINGS}
    if cluster := servestates.cluster_of(service):
        selectors["RayCluster"] = {"fieldSelector": f"metadata.name={cluster}"}
        selectors["Pod"] = {"labelSelector": f"{marks.CLUSTER}={cluster}"}
    return selectors


def _observed(service: Object, things: Mapping[str, list[Object]], now: float) -> Observed:
    cluster = next(iter(things.get("RayCluster") or []), {})
    pods = tuple(things.get("Pod") or ())
    events = events_of(things.get("Event") or [], (service, cluster, *pods))
    return Observed(owner=service, cluster=cluster, pods=pods, events=events, now=now)
