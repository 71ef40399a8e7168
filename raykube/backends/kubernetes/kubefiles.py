"""The files of a kubeconfig, read and joined as kubectl joins them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from raykube import shapes, wire
from raykube.errors import ConfigError, Problem

AUTHORITY = "certificate-authority"
_USER_FILES = ("client-certificate", "client-key", "tokenFile")
_FILES = (AUTHORITY, *_USER_FILES)
#: What a YAML error quotes from the file: an unknown tag or alias may be the beginning of a secret value.
_QUOTED = re.compile(r"'(?!<).{2,}'")
_LISTS = {"clusters": "cluster", "contexts": "context", "users": "user"}
_EXEC: Mapping[str, Any] = {
    **dict.fromkeys(("apiVersion", "command", "interactiveMode"), ""),
    "args": [""],
    "env": [{"name": "", "value": ""}],
}
_CLUSTER_TEXTS = ("server", "proxy-url", "tls-server-name", AUTHORITY, f"{AUTHORITY}-data")
_USER_TEXTS = (*_USER_FILES, "token", "username", "password", "client-certificate-data", "client-key-data")
_CLUSTER = {"extensions": [{"name": ""}], **dict.fromkeys(_CLUSTER_TEXTS, "")}
_ACTING = {"as": "", "as-uid": "", "as-groups": [""], "as-user-extra": {}}  # its values are lists
_SHAPE = {
    "current-context": "",
    "clusters": [{"name": "", "cluster": _CLUSTER}],
    "contexts": [{"name": "", "context": {"cluster": "", "user": "", "namespace": ""}}],
    "users": [{"name": "", "user": dict.fromkeys(_USER_TEXTS, "") | _ACTING | {"exec": _EXEC}}],
}
#: What is said of a file on which the YAML parser itself breaks: its own words may show a value.
_BROKEN: Mapping[type, str] = {
    ValueError: "a value looks like a number or a date, and is none",
    RecursionError: "it is nested too deeply",
}


def paths() -> list[Path]:
    """Return the files that are there. Raises ConfigError if the ``~`` of one is nobody's home folder."""
    return [path for path in map(wire.expanded, named()) if _is_there(path)]


def named() -> list[str]:
    """Return the names of the files to look for."""
    said = os.environ.get("KUBECONFIG", "")
    return [path for path in said.split(os.pathsep) if path] or ["~/.kube/config"]


def _is_there(path: Path) -> bool:
    """Whether a file is there. One of ``KUBECONFIG`` that may not be looked at counts: reading it raises the error."""
    try:
        return path.is_file()
    except PermissionError:
        return bool(os.environ.get("KUBECONFIG"))


def joined(files: list[Path]) -> dict[str, Any]:
    """Join several files into one; of entries with the same name the first counts, as for kubectl."""
    found: dict[str, Any] = {key: [] for key in _LISTS}
    for path in files:
        config = _read(path)
        if config.get("current-context"):
            found.setdefault("current-context", config["current-context"])
        for key, kind in _LISTS.items():
            known = {entry["name"] for entry in found[key]}
            entries = [entry for entry in config.get(key) or [] if entry["name"] not in known]
            found[key] += [_absolute(entry, kind, path) for entry in entries]
    return found


def _read(path: Path) -> Mapping[str, Any]:
    config: Mapping[str, Any] = _loaded(path)
    if problems := list(shapes.problems_of(config, _SHAPE)) or list(_missing(config)):
        raise ConfigError.of(f"the kubeconfig {path} cannot be read", problems)
    return config


def _missing(config: Mapping[str, Any]) -> Iterator[Problem]:
    for key, kind in _LISTS.items():
        for index, entry in enumerate(config.get(key) or []):
            if absent := [each for each in ("name", kind) if each not in entry]:
                yield Problem(f"{key}[{index}]", f"has no {' and no '.join(absent)}", "write it, or remove the entry")


def _loaded(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        why = getattr(error, "problem", None) or getattr(error, "reason", "")
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or _BROKEN.get(type(error), type(error).__name__)
        where = str(path)
    # Outside of `except`: a traceback with the YAML error would show the line, which may hold a token.
    why = _QUOTED.sub("'…'", str(why))
    raise ConfigError(f"the kubeconfig {where} cannot be read", why=why, next_step="correct it, or name another")


def _absolute(entry: Mapping[str, Any], kind: str, path: Path) -> dict[str, Any]:
    """Return an entry with the absolute paths of its files; a kubeconfig names them relative to its own folder."""
    # Data in the entry itself comes before a file, and a null counts as absent.
    said = {key: value for key, value in (entry[kind] or {}).items() if value is not None}
    inner = {key: value for key, value in said.items() if not (key in _FILES and said.get(f"{key}-data"))}
    # A context without a cluster is no error for whoever chooses another.
    inner = ({"cluster": ""} if kind == "context" else {}) | inner
    inner |= {key: str(path.parent / inner[key]) for key in _FILES if inner.get(key)}
    if os.sep in (command := inner.get("exec", {}).get("command") or ""):  # else it is looked for on PATH
        inner["exec"] = {**inner["exec"], "command": str(path.parent / command)}
    return {"name": entry["name"], kind: inner}
