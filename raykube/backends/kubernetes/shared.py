"""One Kube for all handles of a process that ask the same server, as the same user, about the same namespace."""

from __future__ import annotations

import contextlib
import os
import weakref
from pathlib import Path
from typing import Any

from raykube.backends.kubernetes import kubeconfig
from raykube.backends.kubernetes.kubeapi import Kube

#: What each was made of. It goes with the last handle that has it, and its connections with it.
_made: list[tuple[Any, weakref.ref[Kube]]] = []


def kube(context: str = "", namespace: str = "") -> Kube:
    """Return the Kube that other handles have, for a program may have hundreds, or a new one.

    The kubeconfig is read all the same: where it says something else now, nobody else has that yet.

    Raises:
        ConfigError: there is none, it cannot be read, or it has no such context.
    """
    config = kubeconfig.load(context)
    origin = (config, namespace or config.namespace, _stamps(config), dict(os.environ))
    for known, made in _made:
        if known == origin and (found := made()):
            return found
    new = Kube(context, namespace, config)
    # Not under a lock: of two threads at once each may get its own, and a child of a fork would find the lock taken.
    _made[:] = [each for each in _made if each[1]()] + [(origin, weakref.ref(new))]
    return new


def _stamps(config: kubeconfig.Config) -> list[tuple[int, int, int]]:
    """Return what changes when somebody renews the certificates that a kubeconfig names.

    A token's file is read for each request. Proxies and plugins are a matter of the environment too.
    """
    found = []
    for file in filter(None, (config.cluster.certificate_auth, config.user.client_cert, config.user.client_key)):
        with contextlib.suppress(OSError):  # client() tells it
            seen = Path(file).stat()
            found.append((seen.st_ino, seen.st_size, seen.st_mtime_ns))
    return found
