"""Specs from the words of a command line. Pure, except for reading the files that options name."""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from raykube import wire
from raykube.errors import ConfigError, Problem
from raykube.runtime_env import REMOTE
from raykube.settings import LOCAL
from raykube.specs import Job, Service
from raykube.strict import Spec
from raykube.yamltext import documents

_Spec = TypeVar("_Spec", bound=Spec)
#: An option, the field of a spec that it sets, and the function that reads its text.
_Reader = tuple[str, str, Callable[[str, Any], Any]]
#: Fields of a spec that may stand in its runtime_env as well.
_IN_BOTH = ("working_dir", "excludes", "pip")


def job_of(entrypoint: Sequence[str], options: Mapping[str, Any], said: Mapping[str, Any]) -> Job:
    """Make the job of ``raykube job submit`` from the options, else the file, else the spec's defaults."""
    if not entrypoint and "entrypoint" not in said:
        raise ConfigError("there is nothing to run", next_step="write a command after --, or -f FILE")
    given, problems = _read(_given(options), _OF_A_JOB)
    given |= {"entrypoint": _command(entrypoint)} if entrypoint else {}
    return _make_spec(Job, _merge(said, given), problems)


def manifest_of(path: Path) -> list[dict[str, Any]]:
    """Read ``-f FILE``: one document with a job's fields, or Kubernetes objects with exactly one RayJob, put last.

    A relative ``working_dir`` counts from the file's folder, wherever the file is submitted from.

    Raises:
        ConfigError: the file holds neither.
    """
    found = [each for each in _yaml_documents(path) if each is not None]
    if len(found) == 1 and isinstance(found[0], dict) and "kind" not in found[0]:
        return [_from_its_folder(found[0], path)]
    jobs = [each for each in found if isinstance(each, dict) and each.get("kind") == "RayJob"]
    if len(jobs) != 1 or not all(isinstance(each, dict) for each in found):
        kinds = [each.get("kind") if isinstance(each, dict) else type(each).__name__ for each in found]
        what = f"{path} holds {', '.join(map(str, kinds)) or 'nothing'}"
        step = "give a file with one RayJob, or with a job's fields: entrypoint, name, …"
        if not jobs and difflib.get_close_matches("RayJob", map(str, kinds), cutoff=0.8):
            step = "did you mean RayJob?"
        if "RayService" in kinds:
            step = f"kubectl apply -f {shlex.quote(str(path))}; then: raykube service status|why|logs|forward NAME"
        raise ConfigError(what, next_step=step + (_of_a_cluster(path) if "RayCluster" in kinds else ""))
    return [*(each for each in found if each is not jobs[0]), jobs[0]]


def _from_its_folder(fields: dict[str, Any], path: Path) -> dict[str, Any]:
    """Resolve the ``working_dir`` of a job's fields, and of its ``runtime_env``, against the file's folder."""
    where = fields.get("working_dir")
    if isinstance(where, str) and path.is_file() and not (REMOTE.match(where) or where.startswith("~")):
        fields = fields | {"working_dir": str(path.parent / where)}
    env = fields.get("runtime_env")
    return fields | {"runtime_env": _from_its_folder(env, path)} if isinstance(env, dict) else fields


def _of_a_cluster(path: Path) -> str:
    """Return a hint for a cluster's manifest: how to run a job on it, or to create the cluster."""
    on = f"--on {shlex.quote(str(path))}"
    return f"; a job on such a cluster: {on} -- COMMAND; one that stays: raykube cluster create NAME {on}"


def refuse_beside_manifest(entrypoint: Sequence[str], options: Mapping[str, Any]) -> None:
    """Refuse options that a RayJob sets itself: to choose one of two values in silence would be a guess."""
    said = sorted(_given(options).keys() - {"name"}) + (["the command after --"] if entrypoint else [])
    if said:
        problems = [Problem(word, "is said by the RayJob itself", "leave it out, or edit the file") for word in said]
        raise ConfigError.of("a RayJob is submitted as it is", problems)


def refuse_beside_cluster(cluster: str, options: Mapping[str, Any]) -> None:
    """Refuse options for a job's own cluster: a long-lived one has its own size, and stays after the job."""
    words = [f"--{key.replace('_', '-')}" for key in ("workers", "keep_cluster_s") if options[key] is not None]
    what = f"is for a cluster of the job's own; {cluster} has its own size, and stays after the job"
    step = f"leave it out; or leave out --cluster {cluster}, and the job gets a cluster of its own"
    problems = [Problem(word, what, step) for word in words]
    if options["on"] == LOCAL:
        problems.append(Problem("--on local", f"is this machine; {cluster} is in Kubernetes", "leave out one of them"))
    if problems:
        raise ConfigError.of("wrong options", problems)


def service_of(name: str, options: Mapping[str, Any]) -> Service:
    """Make the service of ``raykube service deploy``: one application with the service's name."""
    fields, problems = _read(_given(options), _OF_A_SERVICE)
    if options.get("deployment") and not options.get("replicas") and options.get("num_gpus") is None:
        step = "give one of them, or leave it out"
        problems.append(Problem("--deployment", "has no effect without --replicas or --num-gpus", step))
    of_app = ("import_path", "route_prefix", "model", "env_vars", "args", "deployment")
    app = {key: fields.pop(key) for key in of_app if key in fields} | fields.pop("replicas", {})
    if (gpus := fields.pop("num_gpus", None)) is not None:
        app["ray_actor_options"] = {"num_gpus": gpus}
        if not wire.is_gpu_share(gpus):
            problems.append(Problem("--num-gpus", f"{gpus:g} is not {wire.GPU_SHARE}"))
    return _make_spec(Service, fields | {"name": name, "apps": ({"name": name} | app,)}, problems)


def pairs(option: str, words: Sequence[str]) -> dict[str, str]:
    """Read words of the form ``KEY=VALUE``."""
    # The word itself is not shown: it may be just the value, and a secret.
    if wrong := [
        Problem(option, f"number {number} has no '='", f"write {option} NAME=VALUE")
        for number, word in enumerate(words, 1)
        if "=" not in word
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
    """Leave out options that were not given."""
    return {key: value for key, value in options.items() if value not in (None, (), "")}


def _command(words: Sequence[str]) -> str:
    """Return the words as one shell command; a single word may be a whole quoted command."""
    return words[0] if len(words) == 1 else shlex.join(words)


def _replicas(option: str, text: str) -> dict[str, Any]:
    found = count(option, text)
    if isinstance(found, int):
        return {"num_replicas": found}
    return {"autoscaling_config": {"min_replicas": found[0], "max_replicas": found[1]}}


def _json(option: str, text: str) -> dict[str, Any]:
    step = f"""write it in quotes, as in {option} '{{"KEY": "VALUE"}}'"""
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:  # says where the text is wrong, without quoting it
        raise ConfigError.of("wrong options", [Problem(option, f"is not JSON: {error}", step)]) from None
    if not isinstance(found, dict):
        raise ConfigError.of("wrong options", [Problem(option, "must be a JSON object", step)])
    return found


def _read(fields: dict[str, Any], readers: Mapping[str, _Reader]) -> tuple[dict[str, Any], list[Problem]]:
    """Turn the texts of options into fields of a spec; return them with the problems of those that cannot be read."""
    problems: list[Problem] = []
    if fields.keys() >= {"runtime_env", "runtime_env_json"}:
        problems.append(Problem("--runtime-env", "and --runtime-env-json exclude each other"))
    for key, (option, field, read) in readers.items():
        if key in fields:
            try:
                fields[field] = read(option, fields.pop(key))
            except ConfigError as error:
                problems += error.problems
    return fields, problems


def _make_spec(kind: type[_Spec], fields: Mapping[str, Any], problems: Sequence[Problem]) -> _Spec:
    """Make the spec, or raise all problems: those of reading the options, and those of the fields."""
    try:
        made = kind(**fields)
    except ConfigError as error:
        raise ConfigError.of(error.what, [*problems, *error.problems]) from None
    if problems:
        raise ConfigError.of(f"invalid {kind.__name__}", problems)
    return made


def _merge(said: Mapping[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Merge a file's fields with those of options, which win, even over the same key in the file's runtime_env."""
    own = given.get("runtime_env")
    twice = [key for key in _IN_BOTH if key in given or (isinstance(own, dict) and key in own)]
    variables = given.get("env_vars", {})
    joined = _without(said, twice, variables)
    if isinstance(env := said.get("runtime_env"), dict):
        joined["runtime_env"] = _without(env, twice, variables)
    if variables and isinstance(others := joined.get("env_vars"), dict):
        variables = others | variables
    return joined | given | ({"env_vars": variables} if variables else {})


def _without(fields: Mapping[str, Any], keys: Sequence[str], variables: Mapping[str, str]) -> dict[str, Any]:
    """Return `fields` without these keys, and without the environment variables that are set elsewhere."""
    kept = {key: value for key, value in fields.items() if key not in keys}
    if isinstance(others := kept.get("env_vars"), dict):
        kept["env_vars"] = {key: value for key, value in others.items() if key not in variables}
    return kept


def _yaml(option: str, path: Path) -> Any:
    return next(iter(_yaml_documents(path, option)), None)


def _yaml_documents(path: Path, option: str = "-f") -> list[Any]:
    try:
        return list(documents(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError.of("wrong options", [Problem(option, f"cannot read {path}: {why}")]) from error
    except yaml.YAMLError as error:
        raise ConfigError.of("wrong options", [Problem(option, f"{path} is not YAML: {error}")]) from error


_RUNTIME_ENV: dict[str, _Reader] = {
    "runtime_env": ("--runtime-env", "runtime_env", _yaml),
    "runtime_env_json": ("--runtime-env-json", "runtime_env", _json),
}
#: What options give as text.
_OF_A_JOB: dict[str, _Reader] = {
    **_RUNTIME_ENV,
    "env_vars": ("--env", "env_vars", pairs),
    "metadata_json": ("--metadata-json", "metadata", _json),
    "entrypoint_resources": ("--entrypoint-resources", "entrypoint_resources", _json),
}
_OF_A_SERVICE: dict[str, _Reader] = {
    **_RUNTIME_ENV,
    "env_vars": ("--env", "env_vars", pairs),
    "args_json": ("--args", "args", _json),
    "replicas": ("--replicas", "replicas", _replicas),
}
