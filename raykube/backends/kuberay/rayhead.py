"""The Ray head of a cluster, reached through the API server: its Job API, and the files in its log folder."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Mapping
from typing import Any

from raykube import wire
from raykube.backends.kuberay.runs.rayjobs import cluster_name, selected, service_of
from raykube.backends.kubernetes.fields import spec_of, status_of
from raykube.backends.kubernetes.kubeapi import Kube
from raykube.backends.rayapi import RayApi
from raykube.backends.transport import sendable
from raykube.errors import BackendError, NotFound, Unreachable
from raykube.tokens import KEY

#: How many characters of a cluster's name, from its end, KubeRay keeps in the name of the cluster's Secret.
_CHECKED = 50


def token(kube: Kube, cluster: str, spec: Mapping[str, Any]) -> str:
    """Return the token of a cluster's Ray; "" when it requires none.

    Raises:
        NotFound: the Secret that holds it does not exist (yet).
        Forbidden: this user may not read that Secret.
        BackendError: that Secret holds no token, or none that can be sent.
    """
    auth = spec.get("authOptions") or {}
    if auth.get("mode") != "token":
        return ""
    name = auth.get("secretName") or _shortened(cluster)
    held = (kube.get("Secret", name).get("data") or {}).get(KEY)
    try:
        if held:
            return sendable(base64.b64decode(held).decode())
        why = f"it has no key {KEY}"
    except ValueError as error:
        why = f"{KEY}: {error}"
    raise BackendError(
        f"the Secret {name} holds no token of the Ray of cluster {cluster}",
        why=why,
        next_step=f"put the token there under {KEY}, or name another Secret in authOptions.secretName",
    )


def api_of(kube: Kube, cluster: str, spec: Mapping[str, Any], path: str) -> RayApi:
    """Return the Ray API of a cluster's head; the API server passes requests below `path` on to it.

    Raises:
        NotFound, Forbidden, BackendError: its token cannot be read.
    """
    return RayApi.behind(kube.http, path, token(kube, cluster, spec))


def _shortened(name: str) -> str:
    """Return a cluster's name as KubeRay's ``CheckName`` shortens it: its end, beginning with a letter."""
    end = name[-_CHECKED:]
    return end if end[0].isalpha() else f"r{end[1:]}"


def cluster_spec(kube: Kube, job: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the spec of the cluster that a RayJob runs on, its own or a long-lived one. Raises NotFound."""
    own: Mapping[str, Any] | None = spec_of(job).get("rayClusterSpec")
    if own is not None:
        return own
    if not (name := selected(job)):  # KubeRay calls such a RayJob invalid
        raise NotFound(f"RayJob {job['metadata']['name']} names no cluster, and has none of its own")
    return spec_of(kube.get("RayCluster", name))


class RayHead:
    """The head that a RayJob runs on now."""

    def __init__(self, kube: Kube, job: Mapping[str, Any]) -> None:
        self.cluster = cluster_name(job)
        self.submission_id: str = status_of(job).get("jobId") or spec_of(job).get("jobId") or ""
        self.path = kube.proxy(service_of(job))
        self.api = api_of(kube, self.cluster, cluster_spec(kube, job), self.path)

    def details(self) -> dict[str, Any]:
        """Return Ray's JobDetails; empty while the head does not answer, or does not know the job yet."""
        with contextlib.suppress(NotFound, Unreachable):
            return self.api.job(self.submission_id)
        return {}

    def told(self, name: str, node: str) -> dict[str, Any]:
        """Return the state that the run's pod leaves on the driver's node; empty when it cannot be read (yet)."""
        with contextlib.suppress(BackendError):
            return self.state(name, node)
        return {}

    def state(self, name: str, node: str) -> dict[str, Any]:
        """Return the state that the run's pod leaves on the driver's node, in Ray's log folder.

        Raises:
            NotFound: there is none (yet), or the node is gone.
            Forbidden, BackendError: the head may not be asked, or does not answer with all of it.
        """
        file = wire.state_file(name)
        text = self.api.log(node, file)
        with contextlib.suppress(ValueError):
            if isinstance(told := json.loads(text), dict):
                return told
        raise Unreachable(f"the Ray head does not answer with all of {file}", why=f"{len(text)} bytes, no JSON object")

    def ranks(self, name: str, node: str) -> list[tuple[str, str]]:
        """Return Ray's ids of the node and worker of each rank of the run; empty when they are not known (yet)."""
        with contextlib.suppress(BackendError, ValueError):
            text = self.api.log(node, wire.ranks_file(name))
            return [(node, worker) for node, worker in json.loads(text)]
        return []

    @property
    def log_file(self) -> str:
        """The name of the driver's log in the log folder of its node."""
        return f"job-driver-{self.submission_id}.log"


def head_of(kube: Kube, job: Mapping[str, Any]) -> RayHead | None:
    """Return the head of a RayJob; None when there is no cluster that could answer."""
    if not cluster_name(job) or not service_of(job):
        return None
    with contextlib.suppress(NotFound):  # the Secret or the cluster is gone, or not there yet
        return RayHead(kube, job)
    return None
