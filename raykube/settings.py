"""One way to find a setting: argument, then ``RAYKUBE_NAME``, then ``[tool.raykube]``, then the default.

The answer says where it came from, because "which storage did it take?" is asked more often than set.
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

#: The names of the two places, among which those of presets stand.
LOCAL = "local"
KUBERNETES = "kubernetes"
KNOWN: Mapping[str, str] = {
    "on": LOCAL,  # where jobs and services go: "local", the name of a preset, or a path of one
    "context": "",  # of the kubeconfig; empty is its current one
    "namespace": "",  # in Kubernetes; empty is the manifest's, else the context's
    "storage": "",  # where local runs are kept; empty is a folder of raykube's own
    "idle_timeout_s": "900",  # seconds without work after which the local head ends
    "serve_port": "0",  # of the local head; 0 is a free one
    "cpus_per_worker": "1",  # of a training on this machine
    "gpus_per_worker": "0",  # of a training on this machine
    "tracking": "",  # "off" keeps MLflow out
}
_NUMBERS = {
    "idle_timeout_s": "a number of 0 or more",
    "serve_port": "a port from 0 to 65535",
    "cpus_per_worker": "a number above 0",
    "gpus_per_worker": wire.GPU_SHARE,
}
#: What a script that runs here has in these variables is its own size, and not that of what it submits.
_SHARES = {"cpus_per_worker": wire.is_cpu_share, "gpus_per_worker": wire.is_gpu_share}


@dataclass(frozen=True)
class Setting:
    """A value and where it came from, as in ``from RAYKUBE_STORAGE``."""

    value: str
    source: str


def setting(name: str, argument: object = None) -> Setting:
    """Find one setting.

    Args:
        name: one of ``KNOWN``.
        argument: what the caller was given; None when nothing.

    Raises:
        ConfigError: an unknown name or key, a pyproject.toml that cannot be read, or a value that is no number
            where one is needed.
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
    return Setting(_beside(path, name, str(table[name])), f"from [tool.raykube] in {path}")


def is_path(on: str) -> bool:
    """Return whether this names a file, rather than a preset or a place."""
    return "/" in on or on.endswith((".yaml", ".yml"))


def _beside(project: str, name: str, value: str) -> str:
    """Return a path that a project's file says, as one from here: whoever wrote it stood beside that file."""
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
    """Return the nearest ``[tool.raykube]`` upward from here, and the file's path as one would name it."""
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
