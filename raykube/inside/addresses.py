"""Where the environment says that runs and MLflow are, and how such addresses are shown without secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from raykube import wire
from raykube.inside import storage


def base(environ: Mapping[str, str] = os.environ) -> str:
    """Return the folder or URI below which runs keep their files."""
    return storage.plain(environ.get(wire.STORAGE) or wire.default_storage(environ))


def tracking(path: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return MLflow's tracking URI: its own variable, else a database beside the runs; empty if those are at a URI."""
    return environ.get("MLFLOW_TRACKING_URI") or ("" if storage.is_uri(path) else database(path))


def registry(uri: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return the URI of MLflow's registry: its own variable, else the tracking URI `uri`."""
    return environ.get("MLFLOW_REGISTRY_URI") or uri


def database(path: str) -> str:
    """Return the tracking URI of MLflow's database beside the runs in a folder."""
    return f"sqlite:///{path}/mlflow.db"


def shown(text: str, *uris: str) -> str:
    """Return `text` without the users and passwords in `uris`, or in any other URI or password parameter in it."""
    for uri in uris:
        if found := re.match(r"[\w.+-]+://([^/:]*(?::.*)?@)", uri):  # only this finds a password with a slash
            text = text.replace(found[1], "")
    text = re.sub(r"(\w://)[^/\s]*@", r"\1", text)
    return re.sub(r"(password=)[^&\s'\"]+", r"\1***", text)
