"""What the benchmarks may conclude from samples: known answers, and made-up machines with a known truth."""

import math

import numpy as np
import pytest

from benchmarks import stats


def noisy(count: int, slowdown: float = 1.0, seed: int = 1) -> tuple[list[float], list[float]]:
    """Two arms on a machine that drifts by 20 %: pairs share the drift, each sample has 0.5 % of its own noise."""
    random = np.random.default_rng(seed)
    drift = 10 * (1 + 0.2 * np.linspace(0, 1, count))
    ours, base = (drift * random.normal(1, 0.005, count) for _ in range(2))
    return list(ours * slowdown), list(base)


def test_ratio_of_medians_divides_once():
    assert stats.ratio_of_medians([2.0, 4.0, 90.0], [1.0, 2.0, 3.0]) == 2.0


def test_interval_of_a_constant_ratio_has_no_width():
    ratio = stats.compare([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (ratio.value, ratio.low, ratio.high, ratio.count) == (2.0, 2.0, 2.0, 3)


def test_interval_of_two_pairs_is_their_range():
    ratio = stats.compare([1.0, 3.0], [1.0, 1.0])
    assert (ratio.low, ratio.value, ratio.high) == (1.0, 2.0, 3.0)


def test_bootstrap_is_the_same_for_the_same_rows():
    ours, base = noisy(10)
    assert stats.compare(ours, base, folds=50) == stats.compare(ours, base, folds=50)
    assert stats.compare(ours, base, folds=50) != stats.compare(ours, base, folds=50, seed=1)


def test_bootstrap_draws_whole_pairs():
    ours, base = noisy(20)
    shuffled = base[::-1]  # the same samples, but no longer next to their partners
    paired, unpaired = stats.compare(ours, base), stats.compare(ours, shuffled)
    assert paired.high - paired.low < 0.2 * (unpaired.high - unpaired.low)


def test_arms_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="2 samples against 1"):
        stats.compare([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="0 samples"):
        stats.compare([], [])


def test_base_against_itself_is_no_slowdown():
    again, base = noisy(10)
    ratio = stats.compare(again, base)
    assert ratio.low < 1 < ratio.high
    floor = stats.noise_floor(base, again)
    assert floor == max(1 - ratio.low, ratio.high - 1)
    assert stats.verdict(ratio, 1.01, floor) != "fail"
    assert stats.verdict(ratio, 1.05, floor) == "pass"


def test_floor_counts_how_far_off_the_base_is_from_itself():
    base = [1.0, 1.001, 0.999, 1.0, 1.002, 0.998]
    assert stats.noise_floor(base, [value * 1.04 for value in base]) > 0.038


def test_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(200):
        ratio = stats.compare(*noisy(10, seed=seed), folds=500)
        covered += ratio.low <= 1 <= ratio.high
    assert covered >= 180


def test_planted_slowdown_of_five_percent_is_detected():
    ours, base = noisy(10, slowdown=1.05)
    floor = stats.noise_floor(base, noisy(10, seed=2)[1])
    ratio = stats.compare(ours, base)
    assert ratio.value == pytest.approx(1.05, abs=0.01)
    assert stats.verdict(ratio, 1.01, floor) == "fail"


@pytest.mark.parametrize(
    ("low", "high", "count", "goal", "floor", "expected"),
    [
        (0.99, 1.008, 10, 1.01, 0.004, "pass"),
        (0.99, 1.012, 10, 1.01, 0.004, "not resolvable here"),
        (1.02, 1.03, 10, 1.01, 0.004, "fail"),
        (0.99, 1.008, 10, 1.01, 0.02, "not resolvable here"),
        (1.015, 1.03, 10, 1.01, 0.02, "not resolvable here"),
        (1.04, 1.06, 10, 1.01, 0.02, "fail"),
        (0.99, 1.0, 5, 1.01, 0.004, "not resolvable here"),
        (0.57, 0.73, 6, 0.8, 0.12, "pass"),
        (0.57, 0.73, 6, 0.8, 0.25, "not resolvable here"),
        (0.85, 0.95, 6, 0.8, 0.12, "fail"),
    ],
    ids=[
        "below-goal",
        "across-goal",
        "above-goal",
        "goal-tighter-than-floor",
        "above-goal-within-floor",
        "above-floor",
        "too-few",
        "gain",
        "gain-within-floor",
        "gain-too-small",
    ],
)
def test_verdict_follows_bounds_and_floor(low, high, count, goal, floor, expected):
    assert stats.verdict(stats.Interval(low, low, high, count), goal, floor) == expected


def test_verdict_does_not_look_at_the_estimate():
    assert stats.verdict(stats.Interval(1.0, 0.98, 1.02, 10), 1.01, 0.001) == "not resolvable here"


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (1.0, 3.9, 6, "pass"),
        (4.1, 5.0, 6, "fail"),
        (3.0, 5.0, 6, "not resolvable here"),
        (1.0, 2.0, 1, "not resolvable here"),
    ],
)
def test_limit_follows_bounds(low, high, count, expected):
    assert stats.within(stats.Interval(low, low, high, count), 4.0) == expected


def test_quantile_has_the_bounds_of_its_order_statistics():
    p99 = stats.quantile([float(value) for value in range(10_000)], 0.99)
    assert p99.value == pytest.approx(9899, abs=1)
    assert (p99.low, p99.high) == (9880.0, 9920.0)


def test_quantile_that_few_values_do_not_bound_is_within_no_limit():
    p99 = stats.quantile([float(value) for value in range(300)], 0.99)
    assert (p99.low, p99.high) == (293.0, math.inf)
    assert stats.within(p99, 1000.0) == "not resolvable here"
    assert stats.quantile([1.0, 2.0, 3.0], 0.01).low == -math.inf


def test_median_of_one_sample_is_that_sample():
    assert stats.median([7.0]) == stats.Interval(7.0, 7.0, 7.0, 1)
