"""Fields of Kubernetes objects, as the API server gives them. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

Object = Mapping[str, Any]

#: The fraction of a second: Go writes as many digits as there are, Python 3.10 needs six.
_FRACTION = re.compile(r"\.(\d{1,6})\d*")


def conditions(thing: Object) -> dict[str, Object]:
    """Return an object's conditions by type."""
    found = status_of(thing).get("conditions") or []
    return {each["type"]: each for each in found}


def is_true(thing: Object, kind: str) -> bool:
    """Whether an object has a condition of this type that holds."""
    return bool(conditions(thing).get(kind, {}).get("status") == "True")


def seconds(stamp: str | None) -> float:
    """Return a Kubernetes timestamp as Unix time; 0 for none."""
    if not stamp:
        return 0.0
    exact = _FRACTION.sub(lambda found: f".{found[1]:0<6}", stamp.replace("Z", "+00:00"))
    return datetime.fromisoformat(exact).timestamp()


def name_of(thing: Object) -> str:
    """Return an object's name; empty for an object that is not there."""
    return str(thing.get("metadata", {}).get("name", ""))


def status_of(thing: Object) -> Object:
    """Return an object's status; empty before anybody has written one."""
    found: Object = thing.get("status") or {}
    return found


def spec_of(thing: Object) -> Object:
    """Return an object's spec; empty if it has none, for KubeRay's definitions do not require it."""
    found: Object = thing.get("spec") or {}
    return found


def labels_of(thing: Object) -> Object:
    """Return an object's labels; empty where it has none."""
    found: Object = thing.get("metadata", {}).get("labels") or {}
    return found


def annotations_of(thing: Object) -> Object:
    """Return an object's annotations; empty where it has none."""
    found: Object = thing.get("metadata", {}).get("annotations") or {}
    return found


def is_ready(pod: Object) -> bool:
    """Whether a pod is ready."""
    return is_true(pod, "Ready")


def is_leaving(thing: Object) -> bool:
    """Whether an object is being deleted."""
    return "deletionTimestamp" in thing.get("metadata", {})


def is_current(thing: Object) -> bool:
    """Whether a controller has seen the last version of an object."""
    seen, made = status_of(thing).get("observedGeneration"), thing.get("metadata", {}).get("generation")
    return int(seen or 0) >= int(made or 0)


def changed(thing: Object) -> float:
    """Return when an object was last changed, other than its status, in Unix seconds; 0 if nobody notes that."""
    fields = thing.get("metadata", {}).get("managedFields") or ()
    return max((seconds(each.get("time")) for each in fields if not each.get("subresource")), default=0.0)


def claims_of(pod: Object) -> list[str]:
    """Return the names of the volume claims that a pod, or a template of one, uses."""
    claims = (each.get("persistentVolumeClaim") for each in spec_of(pod).get("volumes") or ())
    return [claim["claimName"] for claim in claims if claim]


def times(event: Object) -> int:
    """Return how often an event has occurred."""
    return int(event.get("count") or (event.get("series") or {}).get("count") or 1)


def moment(event: Object) -> float:
    """Return when an event last occurred, in Unix seconds."""
    series = event.get("series") or {}
    stamps = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return max(seconds(stamp) for stamp in stamps)


def newest(things: Iterable[Object]) -> Object:
    """Return the object that was created last; empty when there is none."""
    return max(things, key=lambda thing: str(thing["metadata"].get("creationTimestamp", "")), default={})
