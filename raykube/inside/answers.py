"""How a replica answers: it reads a request's instances, makes a prediction for each, and replies as JSON."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from raykube import wire

# `raykube service logs` shows this logger's lines.
_serve_log = logging.getLogger("ray.serve")
Predict = Callable[[Any, list[Any]], Sequence[Any]]

_BAD_INPUT = (ValueError, TypeError, LookupError)
_UNWRITABLE = (TypeError, ValueError, RecursionError)
#: How many bad instances of one request its answer names at most.
_TOLD = 5


@dataclass(frozen=True)
class BadInstance:
    """Why `predict` could not take an instance, and the HTTP status that says whose fault that is."""

    reason: str
    status: int = 400


def predict_each(predict: Predict, model: Any, instances: list[Any]) -> list[Any]:
    """Return a prediction for each instance, or :class:`BadInstance` for each that fails even on its own."""
    try:
        found = predict(model, instances)
        found = list(found) if isinstance(found, Iterator) else found  # a generator runs only here
    except Exception as error:  # noqa: BLE001 - PyTorch raises RuntimeError for a wrong shape, others their own
        if len(instances) == 1 or isinstance(error, OSError):  # what is unreachable stays so for each instance
            return [_bad_instance(error)] * len(instances)
        # The batch holds instances of several requests: find the bad one, answer the others.
        return [outcome for instance in instances for outcome in predict_each(predict, model, [instance])]
    try:
        return _one_each(found, len(instances))
    except RuntimeError as wrong:
        return [_bad_instance(wrong)] * len(instances)


def predict_parts(predict: Predict, model: Any, parts: list[list[Any]]) -> list[list[Any]]:
    """Predict the parts of several requests together; return each part's outcomes as :func:`predict_each` does."""
    found = iter(predict_each(predict, model, [instance for part in parts for instance in part]))
    return [list(itertools.islice(found, len(part))) for part in parts]


def size_of(parts: Sequence[Sequence[Any]]) -> int:
    """Return how many instances the parts hold."""
    return sum(map(len, parts))


def _one_each(found: Any, count: int) -> list[Any]:
    """Return the predictions that `predict` gave as a list.

    Raises:
        RuntimeError: they are not one prediction per instance, in order.
    """
    # Iterating over these gives keys, column names or letters; a set has no order.
    if isinstance(found, Mapping | AbstractSet | str | bytes) or hasattr(found, "columns"):
        raise RuntimeError(f"predict gave one {type(found).__name__}, not a list with a prediction for each instance")
    try:
        listed = list(found)
    except TypeError as error:
        raise RuntimeError(f"predict gave no list of predictions, but {type(found).__name__}: {error}") from error
    if len(listed) != count:
        raise RuntimeError(f"predict gave {len(listed)} predictions for {count} instances")
    return listed


def _bad_instance(error: Exception) -> BadInstance:
    bad_input = isinstance(error, _BAD_INPUT)
    if not bad_input:  # perhaps the model's fault: whoever serves it needs the traceback
        _serve_log.error("predict failed on an instance", exc_info=error)
    return BadInstance(f"{type(error).__name__}: {error}", 400 if bad_input else 500)


def answer(found: Sequence[Any]) -> tuple[dict[str, Any], int]:
    """Return a request's answer and HTTP status, given the outcome of each of its instances."""
    refused = [(index, one) for index, one in enumerate(found) if isinstance(one, BadInstance)]
    if refused:
        said = "; ".join(f"instances[{index}]: {one.reason}" for index, one in refused[:_TOLD])
        return {"error": said}, max(one.status for _, one in refused)
    return {"predictions": [one.tolist() if hasattr(one, "tolist") else one for one in found]}, 200


def reply(found: Sequence[Any]) -> tuple[bytes, int]:
    """Return :func:`answer` as JSON, and the HTTP status; a prediction that JSON cannot hold is `predict`'s error."""
    body, status = answer(found)
    try:
        return as_text(body), status
    except _UNWRITABLE:
        body, status = answer([_json_checked(one) for one in found])
        return as_text(body), status


def _json_checked(prediction: Any) -> Any:
    try:
        as_text(prediction)
    except _UNWRITABLE as error:
        return _bad_instance(RuntimeError(f"predict gave what JSON cannot hold: {error}"))
    return prediction


def as_text(body: Any) -> bytes:
    """Return the JSON text of an answer.

    NaN and infinities become null, as in JavaScript and pandas: the rest of the answer is sound, and a bare ``NaN``
    would make all of it unreadable for strict readers.
    """
    try:
        return _dump(body)
    except ValueError:  # look for NaN only now: most answers have none, and may be large
        return _dump(wire.finite(json.loads(json.dumps(body, default=_as_list))))


def _dump(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_as_list).encode()


def _as_list(value: Any) -> Any:
    """Convert a numpy or PyTorch value within a prediction to what JSON can hold."""
    if not hasattr(value, "tolist"):
        raise TypeError(f"it knows no {type(value).__name__}")
    return value.tolist()


def read_instances(body: bytes) -> list[Any]:
    """Return the instances of a request's body.

    Raises:
        ValueError: the body is not ``{"instances": [...]}``.
    """
    try:
        found = json.loads(body)
    except ValueError as error:
        raise ValueError(f"the body is not JSON: {error}") from error
    if not isinstance(found, dict) or set(found) != {"instances"} or not isinstance(found["instances"], list):
        raise ValueError('the body must be {"instances": [...]} and nothing else')
    return list(found["instances"])
