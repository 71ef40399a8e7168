"""Metrics as JSON scalars, read from a device without holding up the loop that uses it."""

from __future__ import annotations

import ctypes
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from raykube.errors import ConfigError, Problem

# Types that JSON takes as they are.
PLAIN = frozenset({int, float, str, bool, type(None)})
_JSON = (int, float, str)
_LOOK_S = 0.001
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED


def scalars(metrics: Mapping[str, Any], *, defer: bool = False) -> dict[str, Any]:
    """Return `metrics` with every value as a JSON scalar.

    Args:
        metrics: names to numbers, strings, booleans, None, or one-element numpy or torch values.
        defer: leave a torch value on its device, so that the caller does not wait for it;
            :func:`fetched` reads it.

    Raises:
        ConfigError: values are none of these, or names are not text; all of them are listed.
    """
    if type(metrics) is not dict and not isinstance(metrics, Mapping):
        raise ConfigError(f"metrics must be a dict of names to numbers, not {type(metrics).__name__}")
    done: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, value in metrics.items():
        if type(name) is not str and not isinstance(name, str):
            problems.append(Problem(repr(name), "this name is not text", f"write {str(name)!r}"))
            continue
        if type(value) in PLAIN:
            done[name] = value
            continue
        try:
            done[name] = _scalar(value, defer=defer)
        except (TypeError, ValueError) as error:
            problems.append(Problem(name, str(error)))
    if problems:
        raise ConfigError.of("these metrics cannot be reported", problems)
    return done


def _scalar(value: Any, *, defer: bool) -> Any:
    if is_spread(value):  # a rank would silently read only its own part
        raise TypeError("is spread over the workers: report its full_tensor(), which every worker calls")
    if defer and getattr(value, "is_cpu", True) is False:
        _check_size(value)
        if not value.is_complex():
            return Deferred.of(value)
    elif isinstance(plain := _item(value), _JSON):
        return plain
    raise TypeError(f"{type(value).__name__} is not a number or string: convert it, or put it in the checkpoint")


def is_spread(value: Any) -> bool:
    """Whether a worker holds only a part of this tensor, as with FSDP2."""
    return (
        hasattr(value, "placements")
        and hasattr(value, "to_local")
        and not all(each.is_replicate() for each in value.placements)
    )


def _item(value: Any) -> Any:
    item = getattr(value, "item", None)
    if item is None:
        return value
    try:
        return item()
    except (RuntimeError, ValueError):
        # Only now: a loop reports at every step, with cold caches, and each look at a value costs time.
        _check_size(value)
        raise


def _check_size(value: Any) -> None:
    shape = tuple(getattr(value, "shape", ()))
    if math.prod(shape) != 1:
        raise ValueError(f"shape {shape} is more than one value: report its mean or norm") from None


@dataclass(frozen=True)
class Deferred:
    """A number that a device has, or will have once it has done its queued work.

    Attributes:
        value: a tensor of one element that nobody overwrites.
        known: an event after which it is computed; None if a read waits by itself.
    """

    value: Any
    known: Any = None

    @classmethod
    def of(cls, value: Any) -> Deferred:
        """Copy a tensor: the loop may overwrite it before it is read."""
        own = value.to_local() if hasattr(value, "placements") else value  # all of it: a spread one was refused
        copy = own.detach().clone()
        if copy.device.type != "cuda":
            return cls(copy)
        import torch

        # An event, because a later wait for the whole device would break a capture of a CUDA graph in the loop, and no
        # read waits for a stream of the loop's own. Not torch.cuda.Event: looking up its stream in Python costs more
        # than all the rest.
        event = torch.Event(device=copy.device)
        event.record()
        return cls(copy, event)


def fetched(found: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Exception]]:
    """Return rows with numbers for what :func:`scalars` left on devices, and why each unreadable name was left out.

    A loop runs ahead of its device, and each read waits for its turn there. So values are read together: one read per
    value would fall behind a loop that reports at every step.
    """
    done = [dict(metrics) for metrics in found]
    unread: dict[str, Exception] = {}
    waiting: defaultdict[Any, list[tuple[dict[str, Any], str]]] = defaultdict(list)
    for row in done:
        for name, value in row.items():
            if type(value) is Deferred:
                waiting[value.value.device, value.value.dtype].append((row, name))
    for places in waiting.values():
        numbers = _numbers([row[name] for row, name in places])
        for (row, name), number in zip(places, numbers, strict=True):
            if isinstance(number, Exception):
                unread[name] = number
                del row[name]
            else:
                row[name] = number
    return done, unread


def _numbers(values: list[Deferred]) -> list[Any]:
    """Return the number of each value, or why it cannot be read."""
    import torch

    try:
        with _aside(values[0].value.device):
            for each in values:
                while each.known is not None and not each.known.query():
                    time.sleep(_LOOK_S)  # the event's own wait would keep a core of the loop's busy
            return list(torch.stack([each.value.reshape(()) for each in values]).tolist())
    except (RuntimeError, TypeError):  # one of them cannot be stacked with the others, or the device failed
        return [_alone(each.value) for each in values]


@contextmanager
def _aside(device: Any) -> Iterator[None]:
    """Work on another stream than the loop, where a read does not wait for all that the loop has queued since.

    While the loop captures a CUDA graph in the way of ``torch.cuda.graph``, CUDA refuses other threads' calls that wait
    or allocate, and the capture fails too, unless such a thread has set the relaxed mode.
    """
    import torch

    if device.type != "cuda":
        yield
        return
    mode = _exchange_capture_mode(_RELAXED)
    try:
        stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # torch's has no types
        with torch.cuda.stream(stream):
            yield
    finally:
        _exchange_capture_mode(mode)


def _exchange_capture_mode(mode: int) -> int:
    """Set how CUDA treats this thread's calls during a capture; return the mode until now."""
    import torch

    if torch.version.cuda is None:  # ROCm, whose devices are named "cuda", too
        return mode
    held = ctypes.c_int(mode)
    ctypes.CDLL("libcuda.so.1").cuThreadExchangeStreamCaptureMode(ctypes.byref(held))
    return held.value


def _alone(value: Any) -> Any:
    try:
        return value.item()
    except (RuntimeError, TypeError) as error:
        return error
