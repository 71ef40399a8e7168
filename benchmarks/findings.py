"""What the rows say: comparisons with their intervals, floors and verdicts. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks import stats
from benchmarks.rows import Row

STATISTICS = ("mean", "p50", "p99")
#: Upper bounds for the ratio of raykube's step to the other arm's.
GOALS = {
    ("torchrun", "mean"): 1.01,
    ("torchrun", "p50"): 1.01,
    ("torchrun", "p99"): 1.02,
    ("ray", "mean"): 1.005,
    ("ray", "p50"): 1.005,
    ("ray", "p99"): 1.02,
    ("no report", "p50"): 1.005,
}
REPORT_P99_US = 50.0
FIRST_LINE_S = {"cold": 12.0, "warm": 4.0}
#: Upper bounds for the ratio of created -> RUNNING under raykube to kubectl's with the operator as it is delivered.
START_GOALS = {"raykube": 0.8, "raykube, tuned": 0.45}
POST_MS = 10.0
END_S = 1.5
CHANGE_P99_MS = 100.0
PHASES = ("packing", "submit", "running", "first_line", "entered", "first_step", "ended")


@dataclass(frozen=True)
class Comparison:
    """One statistic of one loop, raykube against a base.

    Attributes:
        case: the loop, as in ``"mlp, 2 workers"``; empty for a start on KubeRay.
        statistic: ``"mean"``, ``"p50"`` or ``"p99"`` of the steps of a sample; ``"running"`` for a start on KubeRay.
        ours, base: medians over the samples, in milliseconds; of a start on KubeRay, in seconds.
        arm, against: the two arms that are compared.
        ratio: of the medians.
        floor: how far from 1 the ratio of the base (torchrun, or steps without a report) to itself may be, by its
            interval.
        goal: upper bound of the ratio; None if there is none.
    """

    case: str
    statistic: str
    ours: float
    base: float
    arm: str
    against: str
    ratio: stats.Interval
    floor: float
    goal: float | None

    @property
    def verdict(self) -> str:
        """The verdict on whether the goal was met; "" if there is no goal."""
        return stats.verdict(self.ratio, self.goal, self.floor) if self.goal else ""


def latest(rows: Sequence[Row], *, full: bool = False) -> list[Row]:
    """Return the rows of the newest session that measured each thing; with `full`, of one that was not quick."""
    usable = [row for row in rows if not (full and row.quick)]
    newest: dict[tuple[str, str], str] = {}
    for row in usable:
        key = row.experiment, row.what
        newest[key] = max(newest.get(key, ""), row.session)
    return [row for row in usable if row.session == newest[row.experiment, row.what]]


def of(rows: Sequence[Row], what: str) -> list[Row]:
    """Return the rows about one thing."""
    return [row for row in rows if row.what == what]


def pairs_of(rows: Sequence[Row], ours: str, base: str, value: str) -> tuple[list[float], list[float]]:
    """Return the values of two arms from the pairs that have both."""
    found = {arm: {row.pair: row.values[value] for row in rows if row.arm == arm} for arm in (ours, base)}
    both = sorted(found[ours].keys() & found[base].keys())
    return [found[ours][pair] for pair in both], [found[base][pair] for pair in both]


def comparisons(rows: Sequence[Row]) -> list[Comparison]:
    """Compare raykube with torchrun and with plain Ray Train, for every loop and statistic."""
    return [
        _compare(case, group, f"{statistic}_ms", "raykube", against)
        for case, group in _cases(rows)
        for against in ("torchrun", "ray")
        for statistic in STATISTICS
    ]


def turns(rows: Sequence[Row]) -> list[Comparison]:
    """Compare steps with a report with the steps without one that alternated with them."""
    found = of(rows, "turn")
    models = sorted({row.case["model"] for row in found}, reverse=True)
    groups = {model: [row for row in found if row.case["model"] == model] for model in models}
    return [
        _compare(model, group, "p50_ms", "raykube", "no report", base="no report") for model, group in groups.items()
    ]


def floors(rows: Sequence[Row]) -> list[Comparison]:
    """Compare torchrun with itself, for every loop and statistic: what this machine can resolve."""
    return [
        _compare(case, group, f"{statistic}_ms", "torchrun again", "torchrun")
        for case, group in _cases(rows)
        for statistic in STATISTICS
    ]


def _cases(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    steps = of(rows, "step")
    for model, world in sorted({(row.case["model"], row.case["world"]) for row in steps}, reverse=True):
        group = [row for row in steps if (row.case["model"], row.case["world"]) == (model, world)]
        if {"raykube", "ray", "torchrun", "torchrun again"} <= {row.arm for row in group}:
            yield f"{model}, {world} worker{'s' if world > 1 else ''}", group


def _compare(case: str, rows: list[Row], value: str, arm: str, against: str, *, base: str = "torchrun") -> Comparison:
    statistic = value.rpartition("_")[0]
    ours, theirs = pairs_of(rows, arm, against, value)
    again, first = pairs_of(rows, f"{base} again", base, value)
    goal = GOALS.get((against, statistic)) if arm == "raykube" else None
    ratio, floor = stats.compare(ours, theirs), stats.noise_floor(first, again)
    middle, middle_of_base = float(np.median(ours)), float(np.median(theirs))
    return Comparison(case, statistic, middle, middle_of_base, arm, against, ratio, floor, goal)


@dataclass(frozen=True)
class ReportCost:
    """What one call of report costs on the training thread, in microseconds.

    Attributes:
        tracking: ``"tracking on"`` or ``"tracking off"``.
        calls: in all runs together.
        p50, p95: medians over the runs.
        p99: median over the runs, with the widest bounds of all runs.
        worst: the longest call of any run.
    """

    tracking: str
    calls: int
    p50: float
    p95: float
    p99: stats.Interval
    worst: float


def report_costs(rows: Sequence[Row]) -> list[ReportCost]:
    """Return the cost of report with tracking on and off."""
    reports = of(rows, "report")
    return [_report_cost(arm, [row for row in reports if row.arm == arm]) for arm in _arms(reports, reverse=True)]


def _report_cost(arm: str, rows: list[Row]) -> ReportCost:
    def every(name: str) -> list[float]:
        return [row.values[name] for row in rows]

    calls = int(sum(every("calls")))
    p99 = stats.Interval(float(np.median(every("p99_us"))), min(every("p99_low_us")), max(every("p99_high_us")), calls)
    p50, p95 = float(np.median(every("p50_us"))), float(np.median(every("p95_us")))
    return ReportCost(arm, calls, p50, p95, p99, max(every("max_us")))


def _arms(rows: Sequence[Row], *, reverse: bool = False) -> list[str]:
    return sorted({row.arm for row in rows}, reverse=reverse)


def submissions(rows: Sequence[Row]) -> dict[str, dict[str, stats.Interval]]:
    """Return, for cold and warm heads, the seconds from submit to each event."""
    found = of(rows, "submit")
    groups = {arm: [row for row in found if row.arm == arm] for arm in _arms(found)}
    return {
        arm: {phase: stats.median([row.values[f"{phase}_s"] for row in group]) for phase in PHASES}
        for arm, group in groups.items()
    }


def starts(rows: Sequence[Row]) -> list[tuple[str, int, float]]:
    """Return (arm, workers, seconds from the process's start to the loop) of the step samples."""
    first = [row for row in of(rows, "step") if row.case["model"] == "mlp" and row.arm != "torchrun again"]
    groups: dict[tuple[int, str], list[float]] = {}
    for row in first:
        groups.setdefault((row.case["world"], row.arm), []).append(row.values["entered_s"])
    return [(arm, world, float(np.median(seconds))) for (world, arm), seconds in sorted(groups.items())]


@dataclass(frozen=True)
class Point:
    """One number of workers.

    Attributes:
        mode: ``"weak"`` or ``"strong"``.
        workers: ranks.
        step_ms, base_ms: median over the runs of the mean step, and the same for one process of plain PyTorch.
        efficiency: base / step for weak scaling, base / (workers x step) for strong scaling.
        floor_ms: one all-reduce of the gradients, measured in the same runs; 0 for one worker.
        busbw_mb_s: of that all-reduce.
    """

    mode: str
    workers: int
    step_ms: float
    base_ms: float
    efficiency: stats.Interval
    floor_ms: float
    busbw_mb_s: float


def points(rows: Sequence[Row]) -> list[Point]:
    """Return the points of both modes; the point of a single worker is in both."""
    found = of(rows, "point")
    base = [row for row in found if row.arm == "torchrun"]
    ours = [row for row in found if row.arm == "raykube"]
    modes = sorted({row.case["mode"] for row in ours} - {"both"}, reverse=True) or ["both"]
    return [
        _point(mode, workers, [row for row in ours if _belongs(row, mode, workers)], base)
        for mode in modes
        for workers in sorted({row.case["workers"] for row in ours})
    ]


def _belongs(row: Row, mode: str, workers: int) -> bool:
    return row.case["workers"] == workers and row.case["mode"] in {mode, "both"}


def _point(mode: str, workers: int, ours: list[Row], base: list[Row]) -> Point:
    steps, bases = pairs_of([*ours, *base], "raykube", "torchrun", "mean_ms")
    share = 1 / workers if mode == "strong" else 1.0
    ratio = stats.compare(bases, steps)
    efficiency = stats.Interval(ratio.value * share, ratio.low * share, ratio.high * share, ratio.count)
    floor, busbw = (
        float(np.median([row.values.get(name, 0.0) for row in ours])) for name in ("floor_ms", "busbw_mb_s")
    )
    return Point(mode, workers, float(np.median(steps)), float(np.median(bases)), efficiency, floor, busbw)


def cluster_starts(rows: Sequence[Row]) -> list[Comparison]:
    """Compare the time from created to RUNNING with kubectl's; the operator is tuned only in the arm that says so."""
    found = of(rows, "running_s")
    taken = {row.arm for row in found}
    return [
        replace(_compare("", found, "running_s", arm, "kubectl", base="kubectl"), goal=goal)
        for arm, goal in START_GOALS.items()
        if {arm, "kubectl", "kubectl again"} <= taken
    ]


@dataclass(frozen=True)
class PostCost:
    """What creating a job's objects costs, in milliseconds.

    Attributes:
        ours, base: medians of raykube and of the bare requests.
        excess: by how much raykube's costs more.
        floor: the same for the base against itself: the bound that is farther from 0.
    """

    ours: float
    base: float
    excess: stats.Interval
    floor: float


def post_cost(rows: Sequence[Row]) -> PostCost | None:
    """Return what creating a job's objects costs; None if that was not measured."""
    found = of(rows, "post_ms")
    if not {"raykube", "kubectl", "kubectl again"} <= {row.arm for row in found}:
        return None
    ours, base = pairs_of(found, "raykube", "kubectl", "post_ms")
    same = stats.excess(*pairs_of(found, "kubectl again", "kubectl", "post_ms"))
    middles = float(np.median(ours)), float(np.median(base))
    return PostCost(*middles, stats.excess(ours, base), max(abs(same.low), abs(same.high)))


def ends_heard(rows: Sequence[Row]) -> dict[str, list[float]]:
    """Return, for raykube's waiter and for the RayJob's status, how late each end of a job was known, in seconds."""
    found = of(rows, "end_s")
    return {arm: [row.values["end_s"] for row in found if row.arm == arm] for arm in _arms(found)}


def changes_heard(rows: Sequence[Row]) -> list[float]:
    """Return how late a waiter saw each change of a job's object, in milliseconds."""
    return [ms for row in of(rows, "changes_ms") for ms in row.values["ms"]]
