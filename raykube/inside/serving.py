"""Turns a model reference into a Ray Serve application: checked, resolved once, batched across requests."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from raykube import wire
from raykube.errors import ConfigError, NotFound, Problem
from raykube.inside import addresses, storage, tracking
from raykube.inside.answers import Predict

_DEFAULTS: dict[str, Any] = {"model": "", "max_batch_size": 32, "batch_wait_timeout_s": 0.005}


def application(load: tracking.Loader, predict: Predict) -> Callable[[dict[str, Any]], Any]:
    """Return a builder, for ``import_path``, of a Serve application with one deployment named ``Model``.

    Its ``args``: ``model`` (a reference, see :func:`resolve`), ``max_batch_size`` (instances, 32) and
    ``batch_wait_timeout_s`` (seconds to wait for more of them, 0.005).

    Over HTTP: POST ``{"instances": [...]}`` gives ``{"predictions": [...]}``, one for each instance;
    GET gives ``{"model": ...}``, what is served; HEAD, as load balancers probe, the same without the body.

    Args:
        load: makes the model from a checkpoint's folder, which may be gone once it has returned.
        predict: takes (model, instances) and returns a list, or an array, of as many JSON values. If it raises
            ValueError, TypeError or LookupError for an instance, that request is answered with HTTP 400, for any other
            exception with 500; the other requests of the batch are not affected. A prediction that is NaN or infinite
            is answered as null.

    Raises:
        ConfigError: `predict` is a coroutine function.
    """
    if inspect.iscoroutinefunction(predict):
        raise ConfigError(
            f"{getattr(predict, '__name__', predict)} is a coroutine, and predict is called as a function",
            next_step="write it by def; it is called in a thread, so what it waits for holds nobody up",
        )

    def app(args: dict[str, Any]) -> Any:
        from raykube.inside.replica import Model

        known = checked(args)
        size, wait_s = known["max_batch_size"], known["batch_wait_timeout_s"]
        return Model.bind(load, predict, resolve(known["model"]), size, wait_s)

    return app


def checked(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the application's `args` with the defaults filled in.

    Raises:
        ConfigError: there are unknown keys or values that do not work; all are listed.
    """
    problems = [Problem(f"args.{key}", "is not known", _nearest(key)) for key in args if key not in _DEFAULTS]
    known = _DEFAULTS | dict(args)
    if not isinstance(known["model"], str) or not known["model"]:
        problems.append(Problem("args.model", "says which model to serve", "write run:NAME, a path, or models:/NAME/1"))
    if type(known["max_batch_size"]) is not int or known["max_batch_size"] < 1:
        problems.append(Problem("args.max_batch_size", f"{known['max_batch_size']!r} is not a number from 1 on"))
    wait = known["batch_wait_timeout_s"]
    if isinstance(wait, bool) or not isinstance(wait, int | float) or wait < 0:
        problems.append(Problem("args.batch_wait_timeout_s", f"{wait!r} is not a number of seconds"))
    if problems:
        raise ConfigError.of("this application cannot be built", problems)
    return known


def _nearest(key: str) -> str:
    near = difflib.get_close_matches(str(key), _DEFAULTS, n=1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(_DEFAULTS)}"


def resolve(reference: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return what a model reference means now: a checkpoint's path or URI, or ``models:/NAME/VERSION``.

    Args:
        reference: ``run:NAME`` (the best checkpoint of that run), a checkpoint's path or URI,
            ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS`` (MLflow's registry).
        environ: where the storage and MLflow's address are read from.

    Raises:
        NotFound: there is no such run, checkpoint or model.
    """
    if reference.startswith("models:/"):
        return _registered(reference, environ)
    if not reference.startswith("run:"):
        path = storage.plain(reference)
        if not storage.exists(path):
            raise NotFound(f"no checkpoint at {reference}", next_step="write run:NAME, a path, or models:/NAME/VERSION")
        return path
    path = storage.join(addresses.base(environ), reference.removeprefix("run:"), wire.RESULT_FILE)
    text = storage.read_from(path).decode()
    if not text:
        raise NotFound(
            f"run {reference.removeprefix('run:')} has no result",
            why=f"there is no {path}",
            next_step="wait until it has ended well, or look for its name in `raykube job list`",
        )
    checkpoint = wire.Result.from_json(text).checkpoint
    if not checkpoint:
        raise NotFound(f"{reference} has no checkpoint", next_step="report one: raykube.report(metrics, {...})")
    if not storage.exists(checkpoint):
        step = "train again, under another name, or name a checkpoint that is there by its path"
        raise NotFound(f"the checkpoint of {reference} is gone", why=f"there is no {checkpoint}", next_step=step)
    return checkpoint


def _registered(reference: str, environ: Mapping[str, str]) -> str:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri = addresses.registry(addresses.tracking(addresses.base(environ), environ), environ)
    client = MlflowClient(uri, registry_uri=uri)
    name, at, alias = reference.removeprefix("models:/").partition("@")
    name, _, version = name.partition("/")
    try:
        if at:
            version = client.get_model_version_by_alias(name, alias).version
        elif version.isdecimal():  # else `latest` or a stage, which MLflow resolves as it loads
            # Otherwise each replica would find that there is none, and try again.
            client.get_model_version(name, version)
    except MlflowException as error:
        why = addresses.shown(str(error), uri)
    else:
        return f"models:/{name}/{version}"
    # Outside of `except`: a traceback would show MLflow's message, which has the password of its address.
    raise NotFound(f"no model {reference}", why=why, next_step="see the registry in MLflow")


def open_model(resolved: str, load: tracking.Loader, environ: Mapping[str, str] = os.environ) -> Any:
    """Load the model that :func:`resolve` found: from a checkpoint by `load`, or from MLflow onto the CPU."""
    if not resolved.startswith("models:/"):
        with storage.local_copy(resolved) as folder:
            return load(folder)
    import mlflow
    import mlflow.pytorch

    uri = addresses.tracking(addresses.base(environ), environ)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(addresses.registry(uri, environ))
    return mlflow.pytorch.load_model(resolved, map_location="cpu").eval()
