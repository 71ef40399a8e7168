"""Notes on a valid manifest that the reader of a plan should know before it is sent. Pure functions."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raykube import manifests, marks, tokens
from raykube.bodies import CodePlace
from raykube.shapes import mapping

Manifest = Mapping[str, Any]
_OPERATORS = ";&|<>\n"


def of_beside(titles: Sequence[str]) -> Iterator[str]:
    """Yield a note that names the other objects in a manifest's file, which raykube does not create."""
    if titles:
        yield f"raykube does not create these; if they are not there, kubectl apply them: {', '.join(titles)}"


def of_storage(manifest: Manifest) -> Iterator[str]:
    """Yield a note that names the groups of a valid manifest that mount nothing at its storage path."""
    storage = str(mapping(manifest["metadata"].get("annotations")).get(marks.STORAGE) or "")
    path, spec = manifests.storage_path(storage), manifest["spec"]
    bare = [group for group in manifests.groups(spec) if not manifests.mounts(group, path)]
    names = [f"group {group['groupName']}" if "groupName" in group else "the head" for group in bare]
    if path.is_absolute() and names:
        lost = "what is kept there ends with the pod, and retries and results need it on all pods"
        yield f"{marks.STORAGE}: nothing is mounted at {path} in {', '.join(names)}: {lost}"


def of_code(code: CodePlace) -> Iterator[str]:
    """Yield a note that says where code goes that is too large for a ConfigMap."""
    if code.way == "upload":
        yield "the code is too large for a ConfigMap: it is uploaded to the head, and the job cannot be retried"
    elif code.way == "storage":
        folder = code.uri.removeprefix("file://").rpartition("/")[0]
        yield f"the code is too large for a ConfigMap: it goes to the storage, to {folder}"


def of_submitter(spec: Manifest) -> Iterator[str]:
    """Yield notes on the pitfalls of KubeRay's submitter, which HTTPMode does without."""
    if spec.get("submissionMode") == "SidecarMode":
        words = "KubeRay does not see the end of a job that is over before all pods are ready; with HTTPMode it does"
        yield f"submissionMode: {words}"
    yield from _shell_notes(spec)


def _shell_notes(spec: Manifest) -> Iterator[str]:
    """Yield notes on what the submitter's shell does to the runtime environment and the entrypoint."""
    mode = spec.get("submissionMode") or "K8sJobMode"
    own = mapping(mapping(spec.get("submitterPodTemplate")).get("spec")).get("containers") or [{}]
    if mode not in ("K8sJobMode", "SidecarMode") or mapping(own[0]).get("command"):
        return
    where = f"{mode} passes it through a shell in the submitter"
    if found := {"$", "`"} & set(str(spec.get("runtimeEnvYAML") or "")):
        yield f"runtimeEnvYAML: {where}, which replaces what {' and '.join(sorted(found))} begin; HTTPMode does not"
    if ends := _operator(str(spec.get("entrypoint") or "").strip("; \n")):
        yield f"entrypoint: {where}, which takes {ends!r} and what follows for itself; HTTPMode does not"


def _operator(entrypoint: str) -> str:
    """Return the first operator at which a shell would end the command; "" for one simple command."""
    words = shlex.shlex(entrypoint, posix=True, punctuation_chars=_OPERATORS)
    words.whitespace = " \t\r"
    with contextlib.suppress(ValueError):  # the shell itself will report the error
        return next((word for word in words if word and not word.strip(_OPERATORS)), "")
    return ""


def of_open_dashboard(spec: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if a RayJob's own cluster does not require a token."""
    own = spec.get("rayClusterSpec")
    if own and tokens.auth(own).get("mode") != "token":
        words = "anyone who can reach its dashboard's port can run code; write authOptions: {mode: token} (Ray 2.52)"
        yield f"rayClusterSpec: {words}"
