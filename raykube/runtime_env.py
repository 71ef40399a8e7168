"""Which keys of Ray's ``runtime_env`` are passed on, and which are refused for what reason; none is dropped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from raykube.errors import Problem
from raykube.names import nearest

REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://")
_PASSED_ON = frozenset(
    {
        *("py_executable", "uv", "pip", "conda", "image_uri", "config", "worker_process_setup_hook", "py_modules"),
        *("nsight", "_nsight", "rocprof_sys", "_rocprof_sys", "java_jars"),
    }
)
TYPED = ("working_dir", "excludes", "env_vars")
_REFUSED = {
    "container": "Ray replaced it by image_uri; the image of the whole cluster is Cluster.with_image's",
    "_ray_release": "it would replace the Ray of the cluster",
    "_ray_commit": "it would replace the Ray of the cluster",
    "_inject_current_ray": "it would replace the Ray of the cluster",
}


def problems_of(env: dict[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong with a ``runtime_env`` whose TYPED keys were taken out."""
    for key, value in env.items():
        path = key
        if key in _REFUSED:
            yield Problem(path, f"refused: {_REFUSED[key]}")
        elif key in TYPED:
            yield Problem(path, "refused: a service sets it for each app", "write it in apps[]")
        elif key not in _PASSED_ON:
            yield Problem(path, "unknown key", nearest(key, (*_PASSED_ON, *TYPED)))
        elif key in ("pip", "uv") and isinstance(value, str):
            yield Problem(path, f"refused: the file {value!r} is not on the cluster", "give its lines as a list")
        elif key == "conda" and isinstance(value, str) and value.endswith((".yml", ".yaml")):
            yield Problem(path, f"refused: the file {value!r} is not on the cluster", "give its content")
        elif key == "py_modules":
            yield from _local_modules(value)


def _local_modules(modules: Any) -> Iterator[Problem]:
    for index, module in enumerate(modules if isinstance(modules, (list, tuple)) else [modules]):
        if not (isinstance(module, str) and REMOTE.match(module)):
            what = f"refused: {module!r} is not a URI that the cluster can read"
            yield Problem(f"py_modules[{index}]", what, "put the module into the working_dir")
