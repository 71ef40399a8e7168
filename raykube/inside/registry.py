"""A trained model in MLflow: logged in its run, and registered."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from raykube.inside import storage

_NAME_MAX = 250


def register(model: Callable[[str], Any], checkpoint: str, experiment: str, run_id: str, uri: str) -> str:
    """Make a ``torch.nn.Module`` from a checkpoint with `model`, and log and register it, moved to the CPU.

    Returns:
        The URI of its version.
    """
    # On an image without git it says so at length, four times per model; the commit is known from elsewhere.
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import mlflow
    import mlflow.pytorch
    import torch

    name = model_name(experiment)
    with storage.local_copy(checkpoint) as folder:
        module = model(folder).cpu()  # else only a replica with a GPU could read what a driver with one has written
        with _fluent(uri), mlflow.start_run(run_id=run_id, nested=True):  # nested: the script may have its own
            info = mlflow.pytorch.log_model(
                module,
                name="model",
                registered_model_name=name,
                # Given, because MLflow would find them out by loading the model in a fresh process.
                pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],
                serialization_format="pickle",
            )
    return f"models:/{name}/{info.registered_model_version}"


def model_name(experiment: str) -> str:
    """Return the name of an experiment's registered model, without what MLflow refuses in it."""
    name = re.sub(r"[/:]", "_", experiment)[:_NAME_MAX]
    return re.sub(r"^\.+", "_", name) if name == "." or name.startswith("..") else name


@contextmanager
def _fluent(uri: str) -> Iterator[None]:
    """Make MLflow's module-wide functions talk to `uri`; restore the environment for the next training."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)  # which also sets the variable
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before or "")
        if before is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
