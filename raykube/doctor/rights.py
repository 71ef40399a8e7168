"""The rights that raykube needs in Kubernetes. Each one is asked for by itself, because that answer is exact.

The server's own list of a user's rights may leave some out, and tells nothing of webhooks that grant more.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from raykube.backends.kubernetes.kubeapi import Kube
from raykube.backends.kubernetes.refusals import UnknownKind
from raykube.doctor.check import Check
from raykube.errors import Forbidden

_ALL = ("get", "list", "watch", "create", "patch", "delete")
_READ = ("get", "list", "watch")
_AT_ONCE = 8
#: The API groups of Kueue, which a cluster may do without.
_KUEUE = ("kueue.x-k8s.io", "visibility.kueue.x-k8s.io")
_WHO = "authentication.k8s.io/v1"


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
        _KUEUE[0],
        ("workloads",),
        ("list", "watch", "patch"),
        "to say why Kueue has not admitted a run, and stop it",
    ),
    Rule(_KUEUE[1], ("localqueues/pendingworkloads",), ("get",), "to say where it stands in the queue"),
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
    absent = _without_kueue(kube) if missing else frozenset()
    if all(rule.group in absent for rule, _, _ in missing):
        needed = sum(rule.group not in absent for rule, _, _ in wanted)
        yield Check("rights", True, f"all {needed} that raykube needs in {kube.namespace}")
    yield from lacking(missing, _user(kube) if missing else "", absent)


def _without_kueue(kube: Kube) -> frozenset[str]:
    """Return the groups of Kueue that the server does not have; none if this user may not see its groups."""
    try:
        return frozenset(_KUEUE) - {each["name"] for each in kube.json("GET", "/apis")["groups"]}
    except Forbidden:
        return frozenset()


def _user(kube: Kube) -> str:
    """Return the name under which the server knows who asks: an administrator binds a Role to it."""
    asked = {"apiVersion": _WHO, "kind": "SelfSubjectReview"}
    try:
        told = kube.json("POST", f"/apis/{_WHO}/selfsubjectreviews", asked)
    except (Forbidden, UnknownKind):  # Kubernetes before 1.28 has no such question
        return "this user"
    return str(told["status"]["userInfo"].get("username") or "this user")


def lacking(missing: Iterable[tuple[Rule, str, str]], user: str, absent: Collection[str] = ()) -> Iterator[Check]:
    """Yield a check for each resource that lacks rights, with the rule to ask for; no fault if its group is absent."""
    for (rule, resource), found in itertools.groupby(missing, key=lambda each: each[:2]):
        verbs = [verb for _, _, verb in found]
        words = ", ".join(f'"{verb}"' for verb in verbs)
        is_absent = rule.group in absent
        purpose = "; needed only with Kueue, which is not here" if is_absent else f"; needed {rule.purpose}"
        yield Check(
            f"right {resource}",
            None if is_absent else False,
            f"{user} may not {', '.join(verbs)}{purpose}",
            f'ask for the rule {{apiGroups: ["{rule.group}"], resources: ["{resource}"], verbs: [{words}]}}; '
            "docs/kubernetes.md has the whole Role",
        )
