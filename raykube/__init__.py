"""Run Ray training, tuning and serving from Python: the same script on a laptop and on KubeRay.

Names are loaded on first use: ``import raykube`` loads no Ray, no torch, no MLflow and no Kubernetes
client. The names of the inside plane (``train``, ``sweep``, ``report``) work wherever Ray is installed; the
others need only raykube's base install. All errors are in ``raykube.errors``.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raykube import errors as errors
    from raykube.api import attach, deploy, plan, runs, submit
    from raykube.cluster import Cluster
    from raykube.errors import BackendError, ConfigError, RaykubeError, RunFailed
    from raykube.handles import Endpoint, Run, Status
    from raykube.inside.loops import report
    from raykube.inside.training import train
    from raykube.inside.tuning import sweep
    from raykube.specs import App, Job, Service
    from raykube.wire import Result

__version__ = "0.1.0"

_HOMES = {
    "App": "specs",
    "BackendError": "errors",
    "Cluster": "cluster",
    "ConfigError": "errors",
    "Endpoint": "handles",
    "Job": "specs",
    "RaykubeError": "errors",
    "Result": "wire",
    "Run": "handles",
    "RunFailed": "errors",
    "Service": "specs",
    "Status": "handles",
    "attach": "api",
    "deploy": "api",
    "plan": "api",
    "report": "inside.loops",
    "runs": "api",
    "submit": "api",
    "sweep": "inside.tuning",
    "train": "inside.training",
}

__all__ = [
    "App",
    "BackendError",
    "Cluster",
    "ConfigError",
    "Endpoint",
    "Job",
    "RaykubeError",
    "Result",
    "Run",
    "RunFailed",
    "Service",
    "Status",
    "attach",
    "deploy",
    "plan",
    "report",
    "runs",
    "submit",
    "sweep",
    "train",
]


# The code package of a job has only the half of raykube that runs on a cluster. Where a whole raykube is installed
# as well, modules that the half lacks are taken from the installed one; those that it has come first.
if not os.path.exists(os.path.join(__path__[0], "api.py")):  # noqa: PTH110, PTH118 - pathlib takes time to import
    from pkgutil import extend_path

    __path__ = extend_path(__path__, __name__)


if not TYPE_CHECKING:  # with it, a type checker would accept every name, even a misspelt one

    def __getattr__(name: str) -> Any:
        if name == "errors":
            return import_module("raykube.errors")
        if name not in _HOMES:
            raise AttributeError(f"module 'raykube' has no attribute {name!r}")
        value = getattr(_module(f"raykube.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
    from raykube.errors import ConfigError

    raise ConfigError(
        f"{name} is not here",
        why="the code of a job comes with no more of raykube than train, sweep, report and what they need",
        next_step="install raykube in the job's image or environment, or call it where jobs are submitted from",
    )


def __dir__() -> list[str]:
    return [*__all__, "errors"]
