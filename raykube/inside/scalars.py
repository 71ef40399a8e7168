"""Metrics as JSON scalars, and those of a device read without holding up the loop that goes on using it."""

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
        defer: leave a torch value that is on a device there, so that the caller does not wait for it;
            :func:`fetched` reads it.

    Raises:
        ConfigError: values that are none of these, or names that are no text; every name is listed.
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
    if is_spread(value):  # a rank would read its own part of it without a word
        raise TypeError("is spread over the workers: report its full_tensor(), which every worker calls")
    if defer and getattr(value, "is_cpu", True) is False:
        _check_size(value)
        if not value.is_complex():
            return Deferred.of(value)
    elif isinstance(plain := _item(value), _JSON):
        return plain
    raise TypeError(f"{type(value).__name__} is not a number or string: convert it, or put it in the checkpoint")


def is_spread(value: Any) -> bool:
    """Tell a tensor of which a worker holds a part only, as those of FSDP2 are."""
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
        # Not before: a loop reports at every step, where the caches are cold and whatever is looked at costs time.
        _check_size(value)
        raise


def _check_size(value: Any) -> None:
    shape = tuple(getattr(value, "shape", ()))
    if math.prod(shape) != 1:
        raise ValueError(f"shape {shape} is more than one value: report its mean or norm") from None


@dataclass(frozen=True)
class Deferred:
    """A number that a device has, or will have once it has done what it was told.

    Attributes:
        value: a tensor of one element that nobody overwrites.
        known: an event after which it is computed; None where a read waits by itself.
    """

    value: Any
    known: Any = None

    @classmethod
    def of(cls, value: Any) -> Deferred:
        """Take a copy of a tensor: the loop may overwrite it before it is read."""
        own = value.to_local() if hasattr(value, "placements") else value  # all of it, or it was refused
        copy = own.detach().clone()
        if copy.device.type != "cuda":
            return cls(copy)
        import torch

        # Not a wait for the whole device later, which would break a capture of a CUDA graph in the loop. The loop may
        # work on a stream of its own, for which no read waits. Not CUDA's own event: to look up the stream for it, as
        # Python must, costs more than all the rest.
        event = torch.Event(device=copy.device)
        event.record()
        return cls(copy, event)


def fetched(found: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Exception]]:
    """Return what :func:`scalars` left on devices as numbers, and the names of those that cannot be read, with why.

    A loop runs ahead of its device, and reading takes its turn there: whoever reads one value after another falls
    behind a loop that reports at every step.
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
                    time.sleep(_LOOK_S)  # for such an event waits with a core of the loop's that it keeps busy
            return list(torch.stack([each.value.reshape(()) for each in values]).tolist())
    except (RuntimeError, TypeError):  # one of them is of a kind that cannot be put beside others, or the device failed
        return [_alone(each.value) for each in values]


@contextmanager
def _aside(device: Any) -> Iterator[None]:
    """Work beside the loop: on another stream, where a read does not wait for all that it has told the device since.

    While the loop captures a CUDA graph, as ``torch.cuda.graph`` does it, CUDA refuses every other thread what waits
    or allocates, and the capture fails by it; but not a thread that says that it knows what it does.
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
    """Set how CUDA takes this thread's calls beside a capture; return how it took them until now."""
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
