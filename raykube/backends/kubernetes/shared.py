"""One Kube for all handles of a process that ask the same server, as the same user, about the same namespace."""

from __future__ import annotations

import contextlib
import os
import weakref
from pathlib import Path
from typing import Any

from raykube.backends.kubernetes import kubeconfig
from raykube.backends.kubernetes.kubeapi import Kube

#: What each Kube was made from, and the Kube. It is collected with its last handle, and its connections are closed.
_made: list[tuple[Any, weakref.ref[Kube]]] = []


def kube(context: str = "", namespace: str = "") -> Kube:
    """Return the Kube that other handles use, as a program may have hundreds of them, or a new one.

    The kubeconfig is read each time: once it has changed, a new Kube is made.

    Raises:
        ConfigError: there is none, it cannot be read, or it has no such context.
    """
    config = kubeconfig.load(context)
    origin = (config, namespace or config.namespace, _stamps(config), dict(os.environ))
    for known, made in _made:
        if known == origin and (found := made()):
            return found
    new = Kube(context, namespace, config)
    # Without a lock, which a forked child might find taken: at worst, two threads get a Kube each.
    _made[:] = [each for each in _made if each[1]()] + [(origin, weakref.ref(new))]
    return new


def _stamps(config: kubeconfig.Config) -> list[tuple[int, int, int]]:
    """Return what changes when somebody renews the certificate files that a kubeconfig names.

    Token files need none of this: they are read for each request. Proxies and plugins depend on the environment too,
    which is compared as a whole.
    """
    found = []
    for file in filter(None, (config.cluster.certificate_auth, config.user.client_cert, config.user.client_key)):
        with contextlib.suppress(OSError):  # client() reports it
            seen = Path(file).stat()
            found.append((seen.st_ino, seen.st_size, seen.st_mtime_ns))
    return found
