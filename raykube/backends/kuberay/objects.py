"""Creating and deleting objects that others may create and delete at the same time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from raykube.backends.kubernetes.fields import is_leaving, name_of
from raykube.backends.kubernetes.kubeapi import Kube, Object
from raykube.errors import BackendError, Conflict, NotFound

GONE_S = 90.0
POLL_S = 0.1
OPERATOR = "look whether the KubeRay operator runs: kubectl get pods -A | grep kuberay"


def created(kube: Kube, thing: Mapping[str, Any]) -> Object | None:
    """Create an object and return it; None when one of that name exists."""
    try:
        return kube.create(thing)
    except Conflict:
        return None


def delete(kube: Kube, thing: Object) -> None:
    """Delete just this object, not one that has taken its name meanwhile; what it owns goes after it."""
    uid = {"uid": thing["metadata"]["uid"]}
    try:
        kube.delete(thing["kind"], name_of(thing), propagationPolicy="Background", preconditions=uid)
    except (NotFound, Conflict):
        return


def wait_gone(kube: Kube, kind: str, name: str) -> None:
    """Wait until an object that was deleted is gone, so that its name is free.

    Raises:
        BackendError: it stays, held by its finalizers.
    """
    deadline = time.monotonic() + GONE_S
    while (known := kube.find(kind, name)) and is_leaving(known):
        if time.monotonic() > deadline:
            raise BackendError(
                f"{kind} {name} is not gone {GONE_S:g} s after it was deleted",
                why=f"its finalizers: {known['metadata'].get('finalizers')}",
                next_step=OPERATOR,
            )
        time.sleep(POLL_S)
