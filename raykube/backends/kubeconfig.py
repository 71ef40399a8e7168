"""Which Kubernetes, as whom, and in which namespace: read as kubectl reads it.

``KUBECONFIG`` (several files are joined, the first to name something wins), else ``~/.kube/config``, else the service
account of the pod that this runs in. lightkube makes the HTTP client of it: certificates, tokens, exec plugins.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml
from lightkube.config.client_adapter import Client, ConnectionParams
from lightkube.config.kubeconfig import KubeConfig, SingleConfig
from lightkube.config.models import NameValue, User, UserExec
from lightkube.core.exceptions import ConfigError as LightkubeError

from raykube.errors import ConfigError
from raykube.names import nearest

_EXEC_V1 = "client.authentication.k8s.io/v1"
_EXEC_V1BETA1 = "client.authentication.k8s.io/v1beta1"
_FILES = ("certificate-authority", "client-certificate", "client-key", "tokenFile")
_LISTS = ("clusters", "contexts", "users")


def load(context: str = "") -> SingleConfig:
    """Return the configuration of `context`, by default the current one.

    Raises:
        ConfigError: there is none, it cannot be read, or it has no such context.
    """
    paths = [Path(path).expanduser() for path in _paths() if Path(path).expanduser().is_file()]
    try:
        found = KubeConfig.from_dict(_joined(paths)) if paths else KubeConfig.from_service_account()
        chosen = found.get(context or None)
    except (LightkubeError, OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise _unreadable(error, context, paths) from error
    if chosen is None or chosen.user is None:
        return chosen._replace(user=User()) if chosen else _no_config(paths)
    return chosen._replace(user=_told(chosen.user))


def client(config: SingleConfig, timeout: httpx.Timeout) -> httpx.Client:
    """Return an HTTP client of the API server, which sends the user's credentials with each request."""
    return Client(config, ConnectionParams(timeout=timeout))


def _paths() -> list[str]:
    said = os.environ.get("KUBECONFIG", "")
    return [path for path in said.split(os.pathsep) if path] or ["~/.kube/config"]


def _joined(paths: list[Path]) -> dict[str, Any]:
    """Join several files to one: of two entries of one name the first counts, as for kubectl."""
    joined: dict[str, Any] = {key: [] for key in _LISTS}
    for path in paths:
        config = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if config.get("current-context"):
            joined.setdefault("current-context", config["current-context"])
        for key in _LISTS:
            known = {entry["name"] for entry in joined[key]}
            joined[key] += [_absolute(entry, path) for entry in config.get(key) or [] if entry["name"] not in known]
    return joined


def _absolute(entry: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return an entry whose files are named from the root: in a kubeconfig they are named from its own folder."""
    kind = next(key for key in entry if key != "name")
    inner = dict(entry[kind] or {})
    inner |= {key: str(path.parent / inner[key]) for key in _FILES if inner.get(key)}
    return {"name": entry["name"], kind: inner}


def _told(user: User) -> User:
    """Return a user whose exec plugin is spoken to in the version that the kubeconfig names.

    lightkube knows v1beta1, which has v1's fields; the plugin is told the version that it must answer in.
    """
    if user.exec is None or user.exec.apiVersion not in (_EXEC_V1, _EXEC_V1BETA1):
        return user
    asked = {"apiVersion": user.exec.apiVersion, "kind": "ExecCredential", "spec": {"interactive": False}}
    env = [*(user.exec.env or []), NameValue("KUBERNETES_EXEC_INFO", json.dumps(asked))]
    told: UserExec = dataclasses.replace(user.exec, apiVersion=_EXEC_V1BETA1, env=env)
    return dataclasses.replace(user, exec=told)


def _no_config(paths: list[Path]) -> SingleConfig:
    raise _unreadable(LightkubeError("no current context"), "", paths)


def _unreadable(error: Exception, context: str, paths: list[Path]) -> ConfigError:
    known: list[str] = []
    if context and paths and "not found" in str(error):
        known = [entry["name"] for entry in _joined(paths)["contexts"]]
    where = ", ".join(map(str, paths)) or f"neither {' nor '.join(_paths())} nor a pod's service account"
    step = nearest(context, known) if known else "see: kubectl config get-contexts"
    what = f"there is no context {context!r} in {where}" if known else f"no Kubernetes is configured: {where}"
    return ConfigError(what, why=str(error), next_step=step)
