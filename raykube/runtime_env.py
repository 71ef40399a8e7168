"""Which keys of Ray's ``runtime_env`` are passed on, and which are refused and why; none is dropped.

Ray replaces ``$NAME`` in ``env_vars`` with a variable of the process that it starts, as in ``PATH: /opt/bin:${PATH}``.
The ``env_vars`` in a ``runtime_env`` keep that meaning; the values of a spec's own ``env_vars`` arrive unchanged.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from raykube.errors import Problem
from raykube.names import nearest, unsendable
from raykube.wire import ATTEMPT, RUN_NAME
from raykube.yamltext import documents

REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://")
#: An entry that makes pip or uv read a local file; an absolute path, or one with a variable, may be on the cluster.
_LINES_OF = re.compile(r"(?:-r|-c|--requirement|--constraint)[\s=]*([^\s=/$].*)|([^-/$\s]\S*\.txt)")
_PASSED_ON = frozenset(
    {
        *("py_executable", "uv", "pip", "conda", "image_uri", "config", "worker_process_setup_hook", "py_modules"),
        *("nsight", "_nsight", "rocprof_sys", "_rocprof_sys", "java_jars"),
    }
)
TYPED = ("working_dir", "excludes")
_ENV_VARS = "env_vars"
_SET_BY_RAYKUBE = (RUN_NAME, ATTEMPT)
#: Ray first replaces the variables that exist, and then removes this in a single pass: a ``$`` before it stays a ``$``.
#: No shell can set a variable of this name.
_NOTHING = "${0}"
_REFUSED = {
    "container": "Ray replaced it by image_uri; the image of the whole cluster is Cluster.with_image's",
    "_ray_release": "it would replace the Ray of the cluster",
    "_ray_commit": "it would replace the Ray of the cluster",
    "_inject_current_ray": "it would replace the Ray of the cluster",
}


def of_rayjob(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return a RayJob's runtime environment, parsed from its YAML text, which :func:`text_problem` must have passed."""
    (found,) = documents(job["spec"].get("runtimeEnvYAML") or "{}")
    return dict(found)


def text_problem(text: Any) -> Iterator[Problem]:
    """Yield the problem of a RayJob's ``runtimeEnvYAML``, if it is not a mapping in YAML; an empty one is fine."""
    if not text:
        return
    found: Any = None
    if isinstance(text, str):
        with contextlib.suppress(yaml.YAMLError, ValueError):  # it is not YAML, or not exactly one document
            (found,) = documents(text)
    if not isinstance(found, Mapping):
        yield Problem(
            "spec.runtimeEnvYAML", "is no text that holds a mapping in YAML", "write runtimeEnvYAML: | above it"
        )


def literal(variables: Mapping[str, str]) -> dict[str, str]:
    """Return variables escaped so that Ray passes on exactly these values, even with ``$`` in them."""
    return {key: value.replace("$", f"${_NOTHING}") for key, value in variables.items()}


def plain(value: str) -> str:
    """Return the value that arrives for one escaped by :func:`literal`."""
    return value.replace(f"${_NOTHING}", "$")


def variable_problem(name: str) -> str:
    """Return why an environment variable cannot have this name; "" when it can."""
    if name in _SET_BY_RAYKUBE:
        return f"{name} is set by raykube"
    valid = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name)
    return "" if valid else f"{name!r} cannot be the name of an environment variable"


def package_problems(words: Iterable[Any], path: str) -> Iterator[Problem]:
    """Yield a problem for each package entry that names a local file."""
    for index, word in enumerate(words):
        found = _LINES_OF.fullmatch(word.strip()) if isinstance(word, str) else None
        if found and not REMOTE.match(file := found[1] or found[2]):
            yield Problem(f"{path}[{index}]", f"refused: the file {file!r} is not on the cluster", "give its lines")


def problems_of(env: dict[str, Any], *, of_a_job: bool) -> Iterator[Problem]:
    """Yield the problems of a ``runtime_env`` after its TYPED keys were taken out."""
    for key, value in env.items():
        if key in _REFUSED:
            yield Problem(key, f"refused: {_REFUSED[key]}")
        elif key == _ENV_VARS and of_a_job:
            yield from _wrong_variables(value)
        elif key in (*TYPED, _ENV_VARS):
            yield Problem(key, "refused: a service sets it for each app", "write it in apps[]")
        elif key not in _PASSED_ON:
            yield Problem(key, "unknown key", nearest(key, (*_PASSED_ON, *TYPED, _ENV_VARS)))
        elif key in ("pip", "uv") and isinstance(value, str):
            yield Problem(key, f"refused: the file {value!r} is not on the cluster", "give its lines as a list")
        elif key in ("pip", "uv") and isinstance(value, (list, tuple)):
            yield from package_problems(value, key)
        elif key == "conda" and isinstance(value, str) and value.endswith((".yml", ".yaml")):
            yield Problem(key, f"refused: the file {value!r} is not on the cluster", "give its content")
        elif key == "py_modules":
            yield from _local_modules(value)


def _wrong_variables(variables: Any) -> Iterator[Problem]:
    if not isinstance(variables, Mapping):
        yield Problem(_ENV_VARS, "is no mapping of names to values")
        return
    for name, value in variables.items():  # values are never shown: people put passwords there
        what = variable_problem(str(name)) or (unsendable(value) if isinstance(value, str) else "")
        if what:
            yield Problem(f"{_ENV_VARS}.{name}", what)
        elif not isinstance(value, str):
            yield Problem(f"{_ENV_VARS}.{name}", "is no text", "write it in quotes")


def _local_modules(modules: Any) -> Iterator[Problem]:
    for index, module in enumerate(modules if isinstance(modules, (list, tuple)) else [modules]):
        if not (isinstance(module, str) and REMOTE.match(module)):
            what = f"refused: {module!r} is not a URI that the cluster can read"
            yield Problem(f"py_modules[{index}]", what, "put the module into the working_dir")
