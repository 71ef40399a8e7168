"""What the quotas of a namespace count, and whether they have room for a cluster. Pure functions."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from raykube import manifests

#: The relative error of adding up tenths in binary.
_ROUNDED = 1e-9
#: What KubeRay gives its autoscaler if the manifest does not say.
_AUTOSCALER = {"resources": {key: {"cpu": "500m", "memory": "512Mi"} for key in ("requests", "limits")}}
#: The server's words for a quota that takes a pod only if each container says how much it needs.
_UNSET = re.compile(r"failed quota: ([^:]+): (must specify (.+ for: .+))")


def compared(quotas: Iterable[Mapping[str, Any]], needed: Mapping[str, float]) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each quota that counts all pods, and in words what it has too little of."""
    for each in quotas:
        if each["spec"].get("scopes") or each["spec"].get("scopeSelector"):
            continue
        status = each.get("status") or {}
        hard, used = status.get("hard") or {}, status.get("used") or {}
        left = {key: quantity(hard[key]) - quantity(used.get(key, "0")) for key in hard if key in needed}
        yield (
            each["metadata"]["name"],
            [
                f"{key}: {needed[key]:g} asked, {left[key]:g} left"
                for key in left
                if needed[key] > left[key] + _ROUNDED * abs(needed[key])
            ],
        )


def asked(spec: Mapping[str, Any]) -> dict[str, float]:
    """Return what a cluster's pods ask for, under the names that a quota uses."""
    total: defaultdict[str, float] = defaultdict(float)
    for group in manifests.groups(spec):
        pod, count = group["template"]["spec"], manifests.pods(group)
        beside = {**_AUTOSCALER, **(spec.get("autoscalerOptions") or {})}
        sidecar = [beside] if spec.get("enableInTreeAutoscaling") and group is spec["headGroupSpec"] else []
        total["pods"] += count
        for container in [*pod["containers"], *sidecar]:
            for key, amount in _of_container(container):
                total[key] += amount * count
    return dict(total)


def _of_container(container: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    resources = container.get("resources") or {}
    limits = resources.get("limits") or {}
    for key, amount in {**limits, **(resources.get("requests") or {})}.items():
        yield f"requests.{key}", quantity(amount)
        if key in ("cpu", "memory"):
            yield key, quantity(amount)
    for key, amount in limits.items():
        yield f"limits.{key}", quantity(amount)


def quantity(value: Any) -> float:
    """Return a Kubernetes quantity as a number; 0 for an invalid one, which the server refuses anyway."""
    try:
        return manifests.quantity(value)
    except ValueError:
        return 0.0


def unset(words: str) -> tuple[str, str, str] | None:
    """Return which quota refuses a pod whose containers do not say what they need, its words, and what to set.

    None if the refusal in `words` has another cause. A manifest alone does not tell, as defaults of the namespace (a
    LimitRange) may fill in what it leaves out.
    """
    if not (found := _UNSET.search(words)):
        return None
    parts = [part.partition(" for: ") for part in found[3].split("; ")]
    fields = [f"{_field(key)} of container{'s' * (',' in names)} {names.replace(',', ', ')}" for key, _, names in parts]
    return found[1], found[2], f"set {' and '.join(fields)} in the manifest"


def _field(key: str) -> str:
    return f"resources.{key}" if "." in key else f"resources.requests.{key}"
