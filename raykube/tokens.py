"""Whether a cluster's Ray requires a token, and whether everything that talks to Ray uses the same token.

KubeRay and raykube read the token from the Secret of ``authOptions``. A container's variable that says otherwise wins
in that container only, and nothing reports it: KubeRay's requests fail for as long as the job may wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from raykube.errors import Problem
from raykube.shapes import mapping

MIN_RAY = (2, 52)
#: The key under which KubeRay looks for the token in a Secret.
KEY = "auth_token"
_TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def auth(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a cluster's ``authOptions``."""
    return mapping(spec.get("authOptions"))


def mode(spec: Mapping[str, Any]) -> str:
    """Return a cluster's authentication mode; where it sets none, raykube sets ``token``."""
    return str(auth(spec).get("mode") or "token")


def problems(variables: Iterable[Any], path: str, spec: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the variables of a Ray container, at `path`, that contradict its cluster's authentication."""
    for variable in variables:
        yield from _contradicts(mapping(variable), path, spec)


def _contradicts(variable: Mapping[str, Any], path: str, spec: Mapping[str, Any]) -> Iterator[Problem]:
    name, value = variable.get("name"), variable.get("value")
    if name == "RAY_AUTH_MODE" and value not in (None, mode(spec)):  # None: a reference, whose value is not known here
        what = f"RAY_AUTH_MODE is {value}, and authOptions says, or is given by raykube, mode: {mode(spec)}"
        yield Problem(path, what, f"remove it, and write spec.authOptions: {{mode: {value}}} if that is meant")
    if name not in _TOKENS or mode(spec) != "token":
        return
    reference = mapping(mapping(variable.get("valueFrom")).get("secretKeyRef"))
    secret = auth(spec).get("secretName")
    if name == _TOKENS[0] and reference.get("key") == KEY and secret and reference.get("name") == secret:
        return
    step = f"remove it, and write spec.authOptions: {{mode: token, secretName: {reference.get('name') or 'SECRET'}}}"
    beside = "" if reference.get("key") == KEY else f", of a Secret that has the token under {KEY}"
    what = f"{name} wins over authOptions in this container, and KubeRay asks Ray in vain with the token of those"
    yield Problem(path, what, f"{step}{beside}")
