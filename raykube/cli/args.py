"""From the words of a command line to specs. Pure, but for reading the files that options name."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from raykube import wire
from raykube.errors import ConfigError, Problem
from raykube.specs import App, Job, Service


def job_of(entrypoint: Sequence[str], options: Mapping[str, Any], said: Mapping[str, Any]) -> Job:
    """Make the job of ``raykube job submit``: what options give, else what the file said, else the spec's defaults."""
    if not entrypoint and "entrypoint" not in said:
        raise ConfigError("there is nothing to run", next_step="write a command after --, or -f FILE")
    fields = dict(said) | _given(options) | ({"entrypoint": _command(entrypoint)} if entrypoint else {})
    fields |= {"env_vars": pairs("--env", fields["env_vars"])} if "env_vars" in fields else {}
    for option, key in (("--metadata-json", "metadata_json"), ("--entrypoint-resources", "entrypoint_resources")):
        if key in fields:
            fields[key.removesuffix("_json")] = _json(option, fields.pop(key))
    return Job(**_with_runtime_env(fields))


def manifest_of(path: Path) -> list[dict[str, Any]]:
    """Read the documents of ``-f FILE``: a job's fields, or Kubernetes objects of which one is a RayJob, put last.

    Raises:
        ConfigError: it holds neither.
    """
    found = [each for each in _yaml_documents(path) if each is not None]
    if len(found) == 1 and isinstance(found[0], dict) and "kind" not in found[0]:
        return found
    jobs = [each for each in found if isinstance(each, dict) and each.get("kind") == "RayJob"]
    if len(jobs) != 1 or not all(isinstance(each, dict) for each in found):
        kinds = [each.get("kind") if isinstance(each, dict) else type(each).__name__ for each in found]
        what = f"{path} holds {', '.join(map(str, kinds)) or 'nothing'}"
        raise ConfigError(what, next_step="give a file with one RayJob, or with a job's fields: entrypoint, name, …")
    return [*(each for each in found if each is not jobs[0]), jobs[0]]


def refuse_beside_manifest(entrypoint: Sequence[str], options: Mapping[str, Any]) -> None:
    """Refuse what a RayJob says itself: to take one of two words in silence would be a guess."""
    said = sorted(_given(options).keys() - {"name"}) + (["the command after --"] if entrypoint else [])
    if said:
        problems = [Problem(word, "is said by the RayJob itself", "leave it out, or edit the file") for word in said]
        raise ConfigError.of("a RayJob is submitted as it is", problems)


def service_of(name: str, options: Mapping[str, Any]) -> Service:
    """Make the service of ``raykube service deploy``: one application of the service's name."""
    fields = _given(options)
    app: dict[str, Any] = {key: fields.pop(key) for key in ("import_path", "route_prefix", "model") if key in fields}
    app["env_vars"] = pairs("--env", fields.pop("env_vars", ()))
    app["args"] = _json("--args", fields.pop("args_json"))
    app |= _replicas(fields.pop("replicas"))
    return Service(name=name, apps=(App(name=name, **app),), **_with_runtime_env(fields))


def pairs(option: str, words: Sequence[str]) -> dict[str, str]:
    """Read words of the form ``KEY=VALUE``."""
    if wrong := [
        Problem(option, f"{word!r} has no '='", f"write {option} {word}=VALUE") for word in words if "=" not in word
    ]:
        raise ConfigError.of("wrong options", wrong)
    return {key: value for key, _, value in (word.partition("=") for word in words)}


def count(option: str, text: str) -> int | tuple[int, int]:
    """Read ``8`` or ``2..8``."""
    try:
        return wire.parse_workers(text)
    except ValueError as error:
        raise ConfigError.of("wrong options", [Problem(option, str(error))]) from error


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what was not given."""
    return {key: value for key, value in options.items() if value not in (None, (), "")}


def _command(words: Sequence[str]) -> str:
    """Return the words as one shell command; a single word may be a whole command in quotes."""
    return words[0] if len(words) == 1 else shlex.join(words)


def _replicas(text: str) -> dict[str, Any]:
    found = count("--replicas", text)
    if isinstance(found, int):
        return {"num_replicas": found}
    return {"autoscaling_config": {"min_replicas": found[0], "max_replicas": found[1]}}


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
    return next(iter(_yaml_documents(path, option)), None)


def _yaml_documents(path: Path, option: str = "-f") -> list[Any]:
    try:
        return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError.of("wrong options", [Problem(option, f"cannot read {path}: {error.strerror}")]) from error
    except yaml.YAMLError as error:
        raise ConfigError.of("wrong options", [Problem(option, f"{path} is not YAML: {error}")]) from error
