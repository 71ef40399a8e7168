"""Metrics as JSON scalars, and those of a device read without holding up the loop that goes on using it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from raykube.errors import ConfigError, Problem

#: Types that JSON takes as they are.
PLAIN = frozenset({int, float, str, bool, type(None)})


def scalars(metrics: Mapping[str, Any], *, defer: bool = False) -> dict[str, Any]:
    """Return `metrics` with every value as a JSON scalar.

    Args:
        metrics: names to numbers, strings, booleans, None, or one-element numpy or torch values.
        defer: leave a torch value on a device as a detached copy, so that the caller does not wait for
            the device; :func:`fetched` reads it.

    Raises:
        ConfigError: values that are none of these; every name is listed.
    """
    if not isinstance(metrics, Mapping):
        raise ConfigError(f"metrics must be a dict of names to numbers, not {type(metrics).__name__}")
    done: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, value in metrics.items():
        if type(value) in PLAIN:
            done[name] = value
            continue
        try:
            done[name] = _scalar(value, defer=defer)
        except (TypeError, ValueError) as error:
            problems.append(Problem(str(name), str(error)))
    if problems:
        raise ConfigError.of("these metrics are not single numbers or strings", problems)
    return done


def _scalar(value: Any, *, defer: bool) -> Any:
    shape = tuple(getattr(value, "shape", ()))
    if math.prod(shape) != 1:
        raise ValueError(f"shape {shape} is more than one value: report its mean or norm")
    if defer and _is_on_device(value):
        if not value.is_complex():
            return value.detach().clone()  # the loop may overwrite the tensor in place before it is read
    else:
        item = getattr(value, "item", None)
        plain = item() if callable(item) else value
        if isinstance(plain, bool | int | float | str):
            return plain
    raise TypeError(f"{type(value).__name__} is not a number or string: convert it, or put it in the checkpoint")


def _is_on_device(value: Any) -> bool:
    return getattr(getattr(value, "device", None), "type", "cpu") != "cpu" and hasattr(value, "detach")


def fetched(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what :func:`scalars` left on devices as numbers, with one wait for each device and type.

    A loop runs ahead of its device. To read one value is to wait until the device has done all that it was told so
    far, so whoever reads one after another falls behind a loop that reports at every step.

    Raises:
        RuntimeError: a device has failed.
    """
    done = [dict(metrics) for metrics in found]
    waiting: defaultdict[Any, list[tuple[dict[str, Any], str, Any]]] = defaultdict(list)
    for row in done:
        for name, value in row.items():
            if _is_on_device(value):
                waiting[value.device, value.dtype].append((row, name, value))
    for (device, _), places in waiting.items():
        numbers = _read(device, [value for _, _, value in places])
        for (row, name, _), number in zip(places, numbers, strict=True):
            row[name] = number
    return done


def _read(device: Any, values: list[Any]) -> list[Any]:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)  # the loop may work on a stream of its own, which a copy would not wait for
    numbers: list[Any] = torch.stack([value.reshape(()) for value in values]).tolist()
    return numbers
