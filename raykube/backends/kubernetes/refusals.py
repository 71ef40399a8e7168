"""The API server's refusals as errors of raykube: the server's own words, and what to do about them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from raykube.errors import BackendError, Conflict, Forbidden, ManifestError, NotFound, Problem, Unreachable

_UNKNOWN_FIELD = re.compile(r'unknown field "([^"]+)"')
_FORBIDDEN = re.compile(r'cannot (\S+) resource "([^"]+)"(?: in API group "([^"]*)")?')
#: A webhook's name and own words. Kubernetes puts "forbidden" before them, as it does for a missing right.
_DENIED = re.compile(r'admission webhook "([^"]+)" denied the request(?:: )?(.*)', re.DOTALL)
_TAGS = re.compile(r"(?is)<(style|script)\b.*?</\1>|<[^>]*>")
_WRITES = ("POST", "PATCH")
_TOO_NEW = "Too large resource version"


class UnknownKind(BackendError):
    """The cluster has no such kind of objects."""


class VersionGone(BackendError):
    """The version from which a watch should go on is too old for the server (410), or too new (504)."""


class NoApiServer(Unreachable):
    """What answers is no API server: a proxy's login page, or another program."""


class Unable(Unreachable):
    """The API server itself answers that it cannot do this now: it is busy, or has lost what it needs."""


class Lacking(Forbidden):
    """The user lacks a right; what a quota or a policy of the namespace forbids is told as plain Forbidden."""


class Denied(ManifestError):
    """A webhook of the cluster has refused what was sent, by the cluster's own rules."""


def is_passed_on(path: str) -> bool:
    """Whether the API server passes requests to this path on, so that a pod answers."""
    return "/proxy/" in path


def no_api_server(server: str, response: httpx.Response) -> Unreachable:
    """Return the error for an answer without a JSON object; below a proxy path, a pod sent it, not the API server."""
    path, words = response.request.url.path, " ".join(_TAGS.sub(" ", response.text).split())[:200]
    if is_passed_on(path):
        return Unreachable(f"what the API server passed on from {path} is no JSON object", why=words)
    # Without the query, which may hold a login's secrets.
    whither = f" to {response.headers.get('location', '').partition('?')[0]}" if response.is_redirect else ""
    step = "see that the kubeconfig has the server's own address, and that no proxy asks for a login on the way"
    why = f"HTTP {response.status_code}{whither}: {words}".rstrip(": ")
    return NoApiServer(f"{server} is no Kubernetes API server", why=why, next_step=step)


def refusal(method: str, path: str, response: httpx.Response) -> BackendError | ManifestError:
    """Map an error of the API server to ours."""
    status = _status(response)
    words, code = status.get("message") or f"HTTP {response.status_code}", response.status_code
    details = status.get("details") or {}
    named = " ".join(filter(None, (details.get("kind"), details.get("name"))))
    if method in _WRITES and (refused := _refused_write(path, code, named, words, details)):
        return refused
    if code in _UNAVAILABLE:
        # A version is too new if the server's store was put back to an earlier state.
        kind = VersionGone if _TOO_NEW in words else Unreachable
        return kind(f"no answer by way of the API server to {method} {path}", why=words)
    # Below a proxy path only a Status is the API server's own answer, anything else is the pod's.
    if code in _UNABLE and (not is_passed_on(path) or status.get("kind") == "Status"):
        return Unable(f"the API server cannot do {method} {path} now", why=words, next_step="try it again later")
    if code == httpx.codes.NOT_FOUND and " " not in named:
        return _unnamed(method, path, words)
    known = _REFUSALS.get(code)
    if known:
        return known(named, words)
    return _passed_on(method, path, words) if is_passed_on(path) else _refused(method, path, words)


def _status(response: httpx.Response) -> dict[str, Any]:
    try:
        found = response.json()
    except ValueError:
        return {"message": response.text.strip()[:1000]}
    return found if isinstance(found, dict) else {}


def _not_found(named: str, words: str) -> BackendError:
    kind, _, name = named.partition(" ")
    if kind == "namespaces":
        return NotFound(f"there is no namespace {name}", why=words, next_step=f"kubectl create namespace {name}")
    return NotFound(f"there is no {named} there", why=words)


def _unnamed(method: str, path: str, words: str) -> BackendError:
    """Return the error for a 404 without an object's name: a pod's own answer, or the server lacks the kind."""
    if is_passed_on(path):
        return _passed_on(method, path, words)
    if "/ray.io/" in path:
        what = "KubeRay's definitions are not installed"
        step = "have an administrator install KubeRay: helm install kuberay-operator kuberay/kuberay-operator"
    else:
        what, step = f"it does not serve {path}", "have an administrator install what serves it"
    return UnknownKind(f"the cluster does not know this kind of object: {what}", why=words, next_step=step)


def _passed_on(method: str, path: str, words: str) -> BackendError:
    return BackendError(f"what the API server passed on was refused: {method} {path}", why=words)


def _refused(method: str, path: str, words: str) -> BackendError:
    return BackendError(f"the API server refused {method} {path}", why=words)


def _forbidden(_named: str, words: str) -> BackendError:
    found = _FORBIDDEN.search(words)
    if not found:
        return Forbidden("the cluster does not allow this", why=words, next_step="ask its administrator")
    return lacks(found.group(1), found.group(2), found.group(3) or "", why=words)


def lacks(verb: str, resource: str, group: str = "", *, why: str) -> Lacking:
    """Return the error of a user who lacks a right, with the rule to ask for."""
    rule = f'{{apiGroups: ["{group}"], resources: ["{resource}"], verbs: ["{verb}"]}}'
    return Lacking(
        f"this user may not {verb} {resource}",
        why=why,
        next_step=f"ask for a Role with the rule {rule}; docs/kubernetes.md has the whole Role",
    )


def _refused_write(path: str, code: int, named: str, words: str, details: Mapping[str, Any]) -> ManifestError | None:
    """Return the error in what was sent; None if the refusal is about something else."""
    if code == httpx.codes.FORBIDDEN and (denied := _DENIED.search(words)):
        return _denied(named, *denied.groups())
    return _refused_manifest(path, named, words, details) if code in (400, 422) else None


def _refused_manifest(path: str, named: str, words: str, details: Mapping[str, Any]) -> ManifestError:
    whose, newer = "this cluster", ""
    if "/ray.io/" in path:
        whose, newer = "this cluster's KubeRay", ", or install the KubeRay that knows the field"
    causes = [Problem(cause.get("field", ""), cause.get("message", "")) for cause in details.get("causes") or []]
    unknown = [Problem(field, f"is unknown to {whose}") for field in _UNKNOWN_FIELD.findall(words)]
    return ManifestError.of(
        f"the API server refused {named or 'the manifest'}",
        causes or unknown or [Problem("", words)],
        why=words if causes or unknown else "",
        next_step=f"correct the manifest{newer if unknown else ''}",
    )


def _denied(named: str, webhook: str, words: str) -> Denied:
    """Return the error for the refusal of a webhook: its rules are about what is sent, not about rights."""
    step = "change what it names, or ask who runs that webhook in this cluster"
    what = f"the cluster's admission webhook {webhook} refused {named or 'it'}"
    return Denied.of(what, [Problem("", words.strip() or "it does not say why")], next_step=step)


def _unknown_user(_named: str, words: str) -> BackendError:
    step = "log in again, or choose another --context"
    return Forbidden("the API server does not know who asks", why=words, next_step=step)


def _conflict(named: str, words: str) -> BackendError:
    return Conflict(f"{named} exists already or was changed meanwhile", why=words)


def _gone(_named: str, words: str) -> BackendError:
    return VersionGone("the API server no longer knows the version that was asked for", why=words)


#: 429: too many requests. 500: its store is changing its leader, or a webhook does not answer.
_UNABLE = (429, 500)
_UNAVAILABLE = (502, 503, 504)
_REFUSALS: Mapping[int, Callable[[str, str], BackendError]] = {
    401: _unknown_user,
    403: _forbidden,
    404: _not_found,
    409: _conflict,
    410: _gone,
}
