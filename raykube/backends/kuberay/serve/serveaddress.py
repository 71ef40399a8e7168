"""Whether a service's address answers, which only a pod of the same Kubernetes can find out.

KubeRay calls a service ready once its Service has endpoints. Each node's kube-proxy hears of these a second or two
later, and until then connections fail. The API server finds its own way, so its proxy does not tell.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import replace
from urllib.parse import urlsplit

from raykube.backends import Status

#: Seconds that nodes have, at most, to learn of an address. A pod that a network policy keeps out never reaches it.
ROUTED_S = 10.0
_CONNECT_S = 1.0


class Address:
    """The address of one service, for those who wait for it; `server` is the API server that tells of the service."""

    def __init__(self, server: str) -> None:
        self._is_open = not _is_around(server)
        self._since: float | None = None

    def checked(self, status: Status) -> Status:
        """Return the status: not RUNNING before the address answers, if this runs in a pod of the same Kubernetes."""
        if status.state != "RUNNING" or self._is_open:
            return status
        self._since = self._since or time.monotonic()
        self._is_open = _answers(status.url) or time.monotonic() - self._since > ROUTED_S
        if self._is_open:
            return status
        return replace(status, state="PENDING", detail=f"{status.detail}; its address does not answer yet")


def _is_around(server: str) -> bool:
    """Whether this runs in a pod of the Kubernetes that has this API server, as the server's address tells."""
    host, own = urlsplit(server).hostname or "", os.environ.get("KUBERNETES_SERVICE_HOST")
    return bool(own) and (host == own or f"{host}.".startswith("kubernetes.default."))


def _answers(url: str) -> bool:
    there = urlsplit(url)
    try:
        socket.create_connection((there.hostname or "", there.port or 80), _CONNECT_S).close()
    except OSError:  # refused, or the name is not known yet
        return False
    return True
