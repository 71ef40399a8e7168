"""Run Ray training, tuning and serving from Python: the same script on a laptop and on KubeRay.

Names are loaded on first use: ``import raykube`` loads no Ray, no torch, no MLflow and no Kubernetes
client. The names of the inside plane (``train``, ``sweep``, ``report``) work wherever Ray is; the rest
needs only raykube's base install. All errors are in ``raykube.errors``.
"""

from __future__ import annotations

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


if not TYPE_CHECKING:  # a type checker would take it for any name, misspelt ones too

    def __getattr__(name: str) -> Any:
        if name == "errors":
            return import_module("raykube.errors")
        if name not in _HOMES:
            raise AttributeError(f"module 'raykube' has no attribute {name!r}")
        value = getattr(import_module(f"raykube.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return [*__all__, "errors"]
