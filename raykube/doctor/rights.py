"""The rights that raykube needs in Kubernetes. Each one is asked for by itself, because that answer is exact.

The server's own list of a user's rights may leave some out, and tells nothing of webhooks that grant more.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from raykube.backends.kubernetes.kubeapi import Kube
from raykube.doctor.check import Check
from raykube.errors import Forbidden

_ALL = ("get", "list", "watch", "create", "patch", "delete")
_READ = ("get", "list", "watch")
_AT_ONCE = 8


@dataclass(frozen=True)
class Rule:
    """A rule of a Role, and what it is needed for."""

    group: str
    resources: tuple[str, ...]
    verbs: tuple[str, ...]
    purpose: str


#: The Role of docs/kubernetes.md, rule by rule.
RULES = (
    Rule("ray.io", ("rayjobs", "rayclusters", "rayservices"), _ALL, "to run jobs, clusters and services"),
    Rule("", ("configmaps",), ("get", "create", "patch", "delete"), "to send code"),
    Rule("", ("pods",), _READ, "to say why something does not run"),
    Rule("", ("pods/log",), ("get",), "to say why something does not run"),
    Rule("", ("events",), ("list", "watch"), "to say why something does not run"),
    Rule("", ("pods",), ("create", "patch", "delete"), "to read a run's storage once its cluster is gone"),
    Rule("", ("secrets",), ("get",), "to read the token of a cluster's Ray"),
    Rule("", ("services/proxy",), ("get", "create", "update"), "to ask a cluster's Ray for states, logs and results"),
    Rule("", ("pods/proxy",), ("get", "create"), "to bring code to its storage that a ConfigMap has no room for"),
    Rule("", ("pods/portforward",), ("get", "create"), "for raykube cluster forward and service forward"),
    Rule("", ("resourcequotas",), ("list",), "to say that a quota is used up"),
    Rule("", ("persistentvolumeclaims",), ("get",), "to see whether the claims of a manifest are there"),
    Rule(
        "kueue.x-k8s.io",
        ("workloads",),
        ("list", "watch", "patch"),
        "to say why Kueue has not admitted a run, and stop it",
    ),
    Rule(
        "visibility.kueue.x-k8s.io", ("localqueues/pendingworkloads",), ("get",), "to say where it stands in the queue"
    ),
)


def checks(kube: Kube) -> Iterator[Check]:
    """Ask for each right; yield one check if there are all, else one for each resource that lacks some."""
    wanted = [(rule, resource, verb) for rule in RULES for resource in rule.resources for verb in rule.verbs]
    try:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            allowed = list(pool.map(lambda each: kube.may(each[2], each[1], each[0].group), wanted))
    except Forbidden as error:  # every user whom the server knows may ask this
        yield Check(
            "rights", False, f"this user may not even ask for them: {error.why}", "log in, or take another --context"
        )
        return
    missing = [each for each, is_allowed in zip(wanted, allowed, strict=True) if not is_allowed]
    if not missing:
        yield Check("rights", True, f"all {len(wanted)} that raykube needs in {kube.namespace}")
    yield from lacking(missing)


def lacking(missing: Iterable[tuple[Rule, str, str]]) -> Iterator[Check]:
    """Yield a check for each resource that lacks rights, with the rule to ask for."""
    for (rule, resource), found in itertools.groupby(missing, key=lambda each: each[:2]):
        verbs = [verb for _, _, verb in found]
        words = ", ".join(f'"{verb}"' for verb in verbs)
        yield Check(
            f"right {resource}",
            False,
            f"this user may not {', '.join(verbs)}; needed {rule.purpose}",
            f'ask for the rule {{apiGroups: ["{rule.group}"], resources: ["{resource}"], verbs: [{words}]}}; '
            "docs/kubernetes.md has the whole Role",
        )
