"""From the words of a command line to specs. Pure, but for reading the files that options name."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from raykube import wire
from raykube.cluster import Cluster
from raykube.errors import ConfigError, Problem
from raykube.settings import setting
from raykube.specs import App, Job, Service


def job_of(entrypoint: Sequence[str], options: Mapping[str, Any]) -> Job:
    """Make the job of ``raykube job submit``; options that were not given keep the spec's defaults."""
    fields = _given(options) | {"entrypoint": _command(entrypoint)}
    fields |= {"env_vars": pairs("--env", fields["env_vars"])} if "env_vars" in fields else {}
    for option, key in (("--metadata-json", "metadata_json"), ("--entrypoint-resources", "entrypoint_resources")):
        if key in fields:
            fields[key.removesuffix("_json")] = _json(option, fields.pop(key))
    return Job(**_with_runtime_env(fields))


def service_of(name: str, options: Mapping[str, Any]) -> Service:
    """Make the service of ``raykube service deploy``: one application of the service's name."""
    fields = _given(options)
    app: dict[str, Any] = {key: fields.pop(key) for key in ("import_path", "route_prefix", "model") if key in fields}
    app["env_vars"] = pairs("--env", fields.pop("env_vars", ()))
    app["args"] = _json("--args", fields.pop("args_json"))
    app |= _replicas(fields.pop("replicas"))
    return Service(name=name, apps=(App(name=name, **app),), **_with_runtime_env(fields))


def cluster_of(on: str | None, workers: str | None) -> Cluster:
    """Make the cluster of ``--on`` and ``--workers``."""
    cluster = Cluster.load(setting("on", on).value)
    return cluster.sized(workers=_count("--workers", workers)) if workers else cluster


def pairs(option: str, words: Sequence[str]) -> dict[str, str]:
    """Read words of the form ``KEY=VALUE``."""
    if wrong := [
        Problem(option, f"{word!r} has no '='", f"write {option} {word}=VALUE") for word in words if "=" not in word
    ]:
        raise ConfigError.of("wrong options", wrong)
    return {key: value for key, _, value in (word.partition("=") for word in words)}


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what was not given."""
    return {key: value for key, value in options.items() if value not in (None, (), "")}


def _command(words: Sequence[str]) -> str:
    """Return the words as one shell command; a single word may be a whole command in quotes."""
    return words[0] if len(words) == 1 else shlex.join(words)


def _count(option: str, text: str) -> int | tuple[int, int]:
    try:
        return wire.parse_workers(text)
    except ValueError as error:
        raise ConfigError.of("wrong options", [Problem(option, str(error))]) from error


def _replicas(text: str) -> dict[str, Any]:
    count = _count("--replicas", text)
    if isinstance(count, int):
        return {"num_replicas": count}
    return {"autoscaling_config": {"min_replicas": count[0], "max_replicas": count[1]}}


def _json(option: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError.of("wrong options", [Problem(option, f"is not JSON: {error}", f"{text!r}")]) from error


def _with_runtime_env(fields: dict[str, Any]) -> dict[str, Any]:
    """Put ``--runtime-env`` or ``--runtime-env-json`` where the spec has it."""
    path: Path | None = fields.pop("runtime_env", None)
    text: str | None = fields.pop("runtime_env_json", None)
    if path and text:
        raise ConfigError.of("wrong options", [Problem("--runtime-env", "and --runtime-env-json exclude each other")])
    if text:
        fields["runtime_env"] = _json("--runtime-env-json", text)
    if path:
        fields["runtime_env"] = _yaml("--runtime-env", path)
    return fields


def _yaml(option: str, path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError.of("wrong options", [Problem(option, f"cannot read {path}: {error.strerror}")]) from error
    except yaml.YAMLError as error:
        raise ConfigError.of("wrong options", [Problem(option, f"{path} is not YAML: {error}")]) from error
