"""The code of a service in its ConfigMap, which all its pods mount: new code is put next to the old."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

from raykube import marks
from raykube.backends.kuberay import objects
from raykube.backends.kuberay.serve import servestates
from raykube.backends.kubernetes.fields import name_of, spec_of
from raykube.backends.kubernetes.kubeapi import Kube, Object
from raykube.bodies import CONFIG_MAP_LIMIT
from raykube.errors import Forbidden, ManifestError, NotFound

#: Seconds until a kubelet notices a changed ConfigMap by itself: its sync period, and the delay of its caches.
SYNCED_S = 100.0

_log = logging.getLogger("raykube")


def file_of(part: Mapping[str, Any]) -> str:
    """Return the name of the code file in a plan's ConfigMap."""
    return str(next(iter(part["binaryData"])))


def carry(kube: Kube, part: Mapping[str, Any] | None, service: Object, wanted: Mapping[str, Any] | None = None) -> None:
    """Put a plan's code, if any, into the ConfigMap that the service's pods mount, next to the code in use if both fit.

    If they do not fit, a dry run first checks that the server accepts the service that is `wanted` next: if that were
    refused afterwards, the service would go on with its code gone.

    Raises:
        Conflict: the name of the ConfigMap belongs to something else.
        ManifestError: the server refuses the wanted service; the code is unchanged.
    """
    if part is None:
        return
    file = file_of(part)
    known = objects.claim(kube, part, service)
    if file not in (there := known.get("binaryData") or {}):
        change = kept(known, part, service)
        if wanted and any(change.get(each, "") is None for each in _in_use(there, service)):
            kube.patch("RayService", name_of(service), objects.difference(service, wanted), dry_run=True)
        kube.patch("ConfigMap", name_of(part), {"binaryData": change})
        hasten(kube, service, file)


def kept(known: Object, part: Mapping[str, Any], service: Object) -> dict[str, str | None]:
    """Return the patch of a ConfigMap's files that adds new code, and drops what is not in use or does not fit."""
    there: dict[str, str] = known.get("binaryData") or {}
    choices = (_in_use(there, service), _named(there, service))
    room = CONFIG_MAP_LIMIT - _size(part["binaryData"].values())
    # Pods that already run the code that does not fit have unpacked it, but a pod that starts cannot load it: neither
    # before the service names the new code, nor on the cluster that serves until a new one does.
    stays = next((files for files in choices if _size(there[file] for file in files) <= room), [])
    return {**{file: None for file in there if file not in stays}, **part["binaryData"]}


def _in_use(there: Iterable[str], service: Object) -> list[str]:
    """Return the files that pods may have to load."""
    # While a new cluster is to come, the one that serves runs what an earlier version of the service said.
    return _named(there, service) if servestates.has_one_cluster(service) else [*there]


def _named(there: Iterable[str], service: Object) -> list[str]:
    config = spec_of(service).get("serveConfigV2") or ""
    return [file for file in there if file in config]


def _size(texts: Iterable[str]) -> int:
    return sum(map(len, texts)) * 3 // 4


def hasten(kube: Kube, service: Object, file: str) -> None:
    """Change the service's pods, so that the kubelets update a changed ConfigMap in them at once."""
    change = {"metadata": {"annotations": {marks.CODE: f"{file} {time.time():.3f}"}}}
    clusters = ",".join(filter(None, servestates.clusters_of(service)))
    pods = kube.listed("Pod", labelSelector=f"{marks.CLUSTER} in ({clusters})") if clusters else ()
    try:
        for pod in pods:
            with contextlib.suppress(NotFound):
                kube.patch("Pod", name_of(pod), change)
    except (Forbidden, ManifestError) as error:  # or a policy of the cluster refuses it
        _log.warning("new code takes up to %g s to reach the pods: %s", SYNCED_S, error.why or error)
