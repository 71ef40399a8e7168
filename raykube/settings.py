"""The one way to find a setting: argument, then ``RAYKUBE_NAME``, then ``[tool.raykube]``, then the default.

The answer says where the value came from: people ask "which storage did it use?" more often than they set it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raykube import wire
from raykube.errors import ConfigError, Problem
from raykube.here import seems, upward
from raykube.names import nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: The names of the two places; the names of presets come beside these.
LOCAL = "local"
KUBERNETES = "kubernetes"
KNOWN: Mapping[str, str] = {
    "on": LOCAL,  # where jobs and services go: "local", "kubernetes", the name of a preset, or the path of a manifest
    "context": "",  # of the kubeconfig; empty: its current one
    "namespace": "",  # in Kubernetes; empty: the manifest's, else the context's
    "storage": "",  # where local runs are kept; empty: a folder of raykube's own
    "idle_timeout_s": "900",  # seconds without work after which the local head ends
    "serve_port": "0",  # of the local head; 0: any free port
    "cpus_per_worker": "1",  # of a training worker on this machine
    "gpus_per_worker": "0",  # of a training worker on this machine
    "tracking": "",  # "off" keeps MLflow out
}
_NUMBERS = {
    "idle_timeout_s": "a number of 0 or more",
    "serve_port": "a port from 0 to 65535",
    "cpus_per_worker": "a number above 0",
    "gpus_per_worker": wire.GPU_SHARE,
}
#: Shares of one worker. In a run's script, their variables hold the run's own size, not the size of what it submits.
_SHARES = {"cpus_per_worker": wire.is_cpu_share, "gpus_per_worker": wire.is_gpu_share}


@dataclass(frozen=True)
class Setting:
    """A value, and where it came from, as in ``from RAYKUBE_STORAGE``."""

    value: str
    source: str


def setting(name: str, argument: object = None) -> Setting:
    """Find one setting.

    Args:
        name: one of ``KNOWN``.
        argument: the value that the caller was given; None when there is none.

    Raises:
        ConfigError: a name or key is unknown, a pyproject.toml cannot be read, or a value is not a valid number where
            one is needed.
    """
    if name not in KNOWN:
        raise ConfigError(f"there is no setting {name!r}", next_step=nearest(name, KNOWN))
    found = _found(name, argument) or Setting(KNOWN[name], "default")
    if name in _NUMBERS and not _is_valid(name, found.value):
        raise ConfigError(
            f"{name} is {found.value!r}, which is not {_NUMBERS[name]}",
            why=f"it came {found.source}",
            next_step=f"set it to a number such as {KNOWN[name]}",
        )
    return found


def _found(name: str, argument: object) -> Setting | None:
    if argument is not None:
        return Setting(str(argument), "from the argument")
    variable = f"RAYKUBE_{name.upper()}"
    is_own = name in _SHARES and bool(os.environ.get(wire.RUN_NAME))
    if not is_own and (value := os.environ.get(variable)):
        return Setting(value, f"from {variable}")
    table, path = _project_table()
    if name not in table:
        return None
    return Setting(_relative_to_project(path, name, str(table[name])), f"from [tool.raykube] in {path}")


def is_path(on: str) -> bool:
    """Whether `on` names a file, rather than a preset or a place."""
    return "/" in on or on.endswith((".yaml", ".yml"))


def _relative_to_project(project: str, name: str, value: str) -> str:
    """Return a relative path from pyproject.toml as one from the current folder: it is relative to that file."""
    folder = Path(project).parent
    says_path = {"on": is_path(value), "storage": bool(value) and "://" not in value}.get(name, False)
    return str(folder / value) if says_path and folder.parts and not value.startswith("~") else value


def _is_valid(name: str, text: str) -> bool:
    try:
        if name == "serve_port":
            return 0 <= int(text) <= 65535
        number = float(text)
    except ValueError:
        return False
    return _SHARES[name](number) if name in _SHARES else 0 <= number < float("inf")


def _project_table() -> tuple[Mapping[str, Any], str]:
    """Return the nearest ``[tool.raykube]`` from here upward, and its file's path relative to the current folder."""
    for parent in upward():
        path = parent / "pyproject.toml"
        if seems(path.is_file) and (table := _read_table(path)) is not None:
            return table, os.path.relpath(path)
    return {}, ""


def _read_table(path: Path) -> Mapping[str, Any] | None:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read", why=str(error), next_step="repair it, or make it readable"
        ) from None
    tool = document.get("tool", {})
    table = tool.get("raykube") if isinstance(tool, dict) else None
    if table is None:
        return None
    if not isinstance(table, dict):
        raise ConfigError(f"tool.raykube in {path} is {table!r}", next_step="write a table: [tool.raykube]")
    if unknown := [
        Problem(f"tool.raykube.{key}", "unknown key", nearest(key, KNOWN)) for key in table if key not in KNOWN
    ]:
        raise ConfigError.of(f"{path} sets what raykube does not know", unknown)
    return dict(table)
