"""A model reference becomes a Ray Serve application: batched across requests, checked, resolved once."""

from __future__ import annotations

import difflib
import inspect
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from raykube import wire
from raykube.errors import ConfigError, NotFound, Problem
from raykube.inside import addresses, storage, tracking

# `raykube service logs` shows what goes there.
_serve_log = logging.getLogger("ray.serve")
Predict = Callable[[Any, list[Any]], Sequence[Any]]

_DEFAULTS: dict[str, Any] = {"model": "", "max_batch_size": 32, "batch_wait_timeout_s": 0.005}
_BAD_INPUT = (ValueError, TypeError, LookupError)
_UNWRITABLE = (TypeError, ValueError, RecursionError)
#: So many instances at fault are told of one request.
_TOLD = 5


def application(load: tracking.Loader, predict: Predict) -> Callable[[dict[str, Any]], Any]:
    """Return a builder for ``import_path``, of a Serve application with one deployment named ``Model``.

    Its ``args``: ``model`` (a reference, see :func:`resolve`), ``max_batch_size`` (instances, 32) and
    ``batch_wait_timeout_s`` (seconds to wait for more of them, 0.005).

    Over HTTP: POST ``{"instances": [...]}`` gives ``{"predictions": [...]}``, one for each instance;
    GET gives ``{"model": ...}``, what is served.

    Args:
        load: makes the model from a checkpoint's folder, which may be gone once it has returned.
        predict: (model, instances) to a list, or an array, of as many JSON values; raises ValueError, TypeError or
            LookupError for an instance that it cannot take, which answers that request with HTTP 400, and whatever else
            with 500; either leaves the others of the batch alone. A prediction that is NaN or infinite is answered as
            null.

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
        ConfigError: unknown keys or values that do not work; all are listed.
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
        elif version.isdecimal():  # else `latest`, or a stage, which MLflow itself reads as it loads
            # Each replica would find out by itself, and try again, that there is none.
            client.get_model_version(name, version)
    except MlflowException as error:
        why = addresses.shown(str(error), uri)
    else:
        return f"models:/{name}/{version}"
    # Outside of `except`: a traceback would show what MLflow said with the password of its address.
    raise NotFound(f"no model {reference}", why=why, next_step="see the registry in MLflow")


def open_model(resolved: str, load: tracking.Loader, environ: Mapping[str, str] = os.environ) -> Any:
    """Return the model that :func:`resolve` found: by `load` from a checkpoint, or, on the CPU, from MLflow."""
    if not resolved.startswith("models:/"):
        with storage.local_copy(resolved) as folder:
            return load(folder)
    import mlflow
    import mlflow.pytorch

    uri = addresses.tracking(addresses.base(environ), environ)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(addresses.registry(uri, environ))
    return mlflow.pytorch.load_model(resolved, map_location="cpu").eval()


@dataclass(frozen=True)
class Refused:
    """An instance that `predict` could not take, why, and the HTTP status that says whose fault that is."""

    reason: str
    status: int = 400


def predict_each(predict: Predict, model: Any, instances: list[Any]) -> list[Any]:
    """Return one prediction an instance, or :class:`Refused` for those that it fails on alone."""
    try:
        found = predict(model, instances)
        found = list(found) if isinstance(found, Iterator) else found  # a generator has not run before
    except Exception as error:  # noqa: BLE001 - PyTorch says a wrong shape by RuntimeError, others by their own
        if len(instances) == 1 or isinstance(error, OSError):  # what does not answer would not for each of them
            return [_refused(error)] * len(instances)
        # The batch holds instances of several requests: find the bad one, answer the others.
        return [outcome for instance in instances for outcome in predict_each(predict, model, [instance])]
    try:
        return _one_each(found, len(instances))
    except RuntimeError as wrong:
        return [_refused(wrong)] * len(instances)


def _one_each(found: Any, count: int) -> list[Any]:
    """Return what `predict` gave as a list.

    Raises:
        RuntimeError: it is not one prediction an instance, in their order.
    """
    # To go through these gives the names of columns, or letters; a set has no order.
    if isinstance(found, Mapping | AbstractSet | str | bytes) or hasattr(found, "columns"):
        raise RuntimeError(f"predict gave one {type(found).__name__}, not a list with a prediction for each instance")
    try:
        listed = list(found)
    except TypeError as error:
        raise RuntimeError(f"predict gave no list of predictions, but {type(found).__name__}: {error}") from error
    if len(listed) != count:
        raise RuntimeError(f"predict gave {len(listed)} predictions for {count} instances")
    return listed


def _refused(error: Exception) -> Refused:
    bad_input = isinstance(error, _BAD_INPUT)
    if not bad_input:  # it may as well be the model's fault: whoever serves it needs to see where
        _serve_log.error("predict failed on an instance", exc_info=error)
    return Refused(f"{type(error).__name__}: {error}", 400 if bad_input else 500)


def answer(found: Sequence[Any]) -> tuple[dict[str, Any], int]:
    """Return what a request is answered, for the outcome of each of its instances, and the HTTP status."""
    refused = [(index, one) for index, one in enumerate(found) if isinstance(one, Refused)]
    if refused:
        said = "; ".join(f"instances[{index}]: {one.reason}" for index, one in refused[:_TOLD])
        return {"error": said}, max(one.status for _, one in refused)
    return {"predictions": [one.tolist() if hasattr(one, "tolist") else one for one in found]}, 200


def reply(found: Sequence[Any]) -> tuple[bytes, int]:
    """Return :func:`answer` as JSON text, and the HTTP status; what JSON cannot hold is an error of `predict`."""
    body, status = answer(found)
    try:
        return as_text(body), status
    except _UNWRITABLE:
        body, status = answer([_written(one) for one in found])
        return as_text(body), status


def _written(prediction: Any) -> Any:
    try:
        as_text(prediction)
    except _UNWRITABLE as error:
        return _refused(RuntimeError(f"predict gave what JSON cannot hold: {error}"))
    return prediction


def as_text(body: Any) -> bytes:
    """Return the JSON text of an answer.

    A number that JSON has not, as NaN, is null, as JavaScript and pandas write it: what else the answer holds is sound,
    and ``NaN`` as it is would make the whole of it unreadable for strict readers.
    """
    try:
        return _dump(body)
    except ValueError:  # looked for only then: most answers have none, and may be large
        return _dump(wire.finite(json.loads(json.dumps(body, default=_listed))))


def _dump(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_listed).encode()


def _listed(value: Any) -> Any:
    """Return a value of numpy or PyTorch that lies within a prediction as JSON has it."""
    if not hasattr(value, "tolist"):
        raise TypeError(f"it knows no {type(value).__name__}")
    return value.tolist()


def read_instances(body: bytes) -> list[Any]:
    """Return the instances of a request's body.

    Raises:
        ValueError: it is not ``{"instances": [...]}``.
    """
    try:
        found = json.loads(body)
    except ValueError as error:
        raise ValueError(f"the body is not JSON: {error}") from error
    if not isinstance(found, dict) or set(found) != {"instances"} or not isinstance(found["instances"], list):
        raise ValueError('the body must be {"instances": [...]} and nothing else')
    return list(found["instances"])
