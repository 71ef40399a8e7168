"""The statistics of two sets of samples that were taken in pairs. Pure functions.

Costs are summarised first and then divided once; ratios are never averaged. Nothing here assumes that times are
normally distributed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Verdict = Literal["pass", "fail", "not resolvable here"]

FOLDS = 10_000
#: The range of n independent samples contains the true median with probability 1 - 2^(1-n): 97 % for six, less than
#: 95 % for five. With fewer than six, no resampling can make a 95 % interval from the samples.
MIN_PAIRS = 6


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval.

    Attributes:
        value: the estimate itself.
        low, high: its bounds, in the same unit.
        count: the number of samples, or pairs of samples, behind it.
    """

    value: float
    low: float
    high: float
    count: int


def ratio_of_medians(ours: Sequence[float], base: Sequence[float]) -> float:
    """Return median(ours) / median(base): above 1 means that ours costs more."""
    return float(np.median(ours) / np.median(base))


def compare(ours: Sequence[float], base: Sequence[float], *, folds: int = FOLDS, seed: int = 0) -> Interval:
    """Return the ratio of medians, with its interval from a paired bootstrap.

    Args:
        ours: one cost per pair; ``ours[i]`` was measured next to ``base[i]``.
        base: the other arm, in the same unit.
        folds: how often whole pairs are resampled.
        seed: of the resampling, so that the same rows give the same interval.

    Raises:
        ValueError: the arms are empty, or differ in length.
    """
    medians = _medians(_pairs(ours, base), folds, seed)
    low, high = np.quantile(medians[:, 0] / medians[:, 1], (0.025, 0.975))
    return Interval(ratio_of_medians(ours, base), float(low), float(high), len(ours))


def excess(ours: Sequence[float], base: Sequence[float], *, folds: int = FOLDS, seed: int = 0) -> Interval:
    """Return by how much ours costs more, median less median in their unit; arguments and errors as of compare."""
    medians = _medians(_pairs(ours, base), folds, seed)
    low, high = np.quantile(medians[:, 0] - medians[:, 1], (0.025, 0.975))
    return Interval(float(np.median(ours) - np.median(base)), float(low), float(high), len(ours))


def _medians(
    pairs: np.ndarray[tuple[int, int], np.dtype[np.float64]], folds: int, seed: int
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return the medians of both arms, for each time that whole pairs are resampled."""
    drawn = np.random.default_rng(seed).integers(0, len(pairs), size=(folds, len(pairs)))
    found: np.ndarray[tuple[int, int], np.dtype[np.float64]] = np.median(pairs[drawn], axis=1)
    return found


def _pairs(ours: Sequence[float], base: Sequence[float]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    if len(ours) != len(base) or not ours:
        raise ValueError(f"{len(ours)} samples against {len(base)}: pairs are needed")
    return np.array(list(zip(ours, base, strict=True)), dtype=np.float64)


def median(samples: Sequence[float], *, folds: int = FOLDS, seed: int = 0) -> Interval:
    """Return the median, with its interval from a bootstrap."""
    values = np.asarray(samples, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(values), size=(folds, len(values)))
    low, high = np.quantile(np.median(values[drawn], axis=1), (0.025, 0.975))
    return Interval(float(np.median(values)), float(low), float(high), len(values))


def quantile(samples: Sequence[float], share: float) -> Interval:
    """Return a quantile, with an interval from order statistics, which holds for any distribution.

    Too few samples bound the quantile from one side only: the largest of a hundred may well be below the true p99.

    Args:
        samples: independent values, such as the costs of single calls.
        share: between 0 and 1, as in 0.99.
    """
    values = sorted(samples)
    middle, spread = len(values) * share, 1.96 * math.sqrt(len(values) * share * (1 - share))
    bounded = [-math.inf, *values, math.inf]
    ranks = math.floor(middle - spread), math.ceil(middle + spread)
    low, high = (min(max(rank + 1, 0), len(values) + 1) for rank in ranks)
    return Interval(float(np.quantile(values, share)), bounded[low], bounded[high], len(values))


def noise_floor(base: Sequence[float], again: Sequence[float]) -> float:
    """Return an experiment's resolution: how far from 1 its base's ratio to itself may be, by the interval."""
    found = compare(again, base)
    return max(abs(found.low - 1), abs(found.high - 1))


def verdict(ratio: Interval, goal: float, floor: float) -> Verdict:
    """Judge ``ratio <= goal`` by the bounds of the ratio and the noise floor alone.

    A goal that is nearer to 1 than the floor cannot be met here, only missed by more than the floor. The same holds for
    a goal below 1, which asks for a gain.
    """
    if ratio.count < MIN_PAIRS:
        return "not resolvable here"
    resolved = floor <= abs(goal - 1)
    if ratio.high <= goal and resolved:
        return "pass"
    return "fail" if ratio.low > (goal if resolved else max(goal, 1 + floor)) else "not resolvable here"


def within(cost: Interval, limit: float) -> Verdict:
    """Judge ``cost <= limit``, both in the same unit, by the bounds of the cost alone."""
    if cost.count < MIN_PAIRS:
        return "not resolvable here"
    if cost.high <= limit:
        return "pass"
    return "fail" if cost.low > limit else "not resolvable here"
