"""Which metrics can be compared, and which numbers stand for the others where Ray compares them."""

from __future__ import annotations

import math
from typing import Any

#: Stand for a missing number, and for NaN or an infinity: beyond what loops report, within what JSON can say.
_MISSING, _NO_NUMBER = 1e308, 1.5e308


def is_number(value: Any) -> bool:
    """Whether a metric can be compared with others: NaN, infinities and what stands for them cannot."""
    return isinstance(value, int | float) and -_MISSING < value < _MISSING


def scored(metrics: dict[str, Any], metric: str | None, mode: str) -> dict[str, Any]:
    """Return metrics with a number for `metric`: the worst possible one, if they have none.

    Where small is good, Ray takes a checkpoint without the metric for the best of all, and deletes the others. NaN and
    infinities become null in Ray's list of checkpoints, and the next attempt dies of that; ASHA lets a trial with NaN
    run on.
    """
    if metric is None or is_number(metrics.get(metric)):
        return metrics
    worst = _NO_NUMBER if isinstance(metrics.get(metric), float) else _MISSING
    return {**metrics, metric: worst if mode == "min" else -worst}


def as_reported(metrics: dict[str, Any], metric: str | None) -> dict[str, Any]:
    """Return `metrics` without what :func:`scored` put in; what was NaN or an infinity comes back as NaN."""
    value = metrics.get(metric or "")
    if value in (_NO_NUMBER, -_NO_NUMBER):
        return {**metrics, metric or "": math.nan}
    return {name: each for name, each in metrics.items() if name != metric or value not in (_MISSING, -_MISSING)}
