"""The report as one picture: four panels, each showing its goal or noise floor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import findings
from benchmarks.rows import Row

_INK, _MUTED, _BAND, _GOAL = "#1f2933", "#7b8794", "#e4e7eb", "#c0392b"
_COLOURS = ("#0b6e99", "#d9822b", "#3d8c40", "#8e5ea2", "#5c7080", "#bf7326")
_QUANTILES = ("p50", "p95", "p99", "max")
_NAMES = {
    "submit": "pack, head up, sent",
    "first_line": "script's first line",
    "entered": "loop entered",
    "first_step": "first step",
    "ended": "end, result there",
}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw `rows`, as findings.latest returns them, as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    quiet = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "text.color": _INK}
    with mpl.rc_context(quiet):
        figure, axes = plt.subplots(2, 2, figsize=(13, 8.4), layout="constrained")
        panels: tuple[Callable[[Any, Sequence[Row]], None], ...] = (_ratios, _reports, _submissions, _scaling)
        for axis, panel in zip(axes.flat, panels, strict=True):
            panel(axis, rows)
            axis.title.set_size(11)
            axis.tick_params(colors=_INK, labelsize=9)
        figure.suptitle(_headline(rows), fontsize=10, color=_MUTED)
        figure.savefig(path, dpi=130, metadata={"Software": None})
        plt.close(figure)


def _headline(rows: Sequence[Row]) -> str:
    parts = []
    for experiment, session in sorted({(row.experiment, row.session) for row in rows}):
        first = next(row for row in rows if (row.experiment, row.session) == (experiment, session))
        length = ", quick" if first.quick else ""
        parts.append(f"{experiment} {first.session} at {first.commit[:8]}{length} ({first.kind})")
    where = next((f"{row.environment['cpu']}, {row.environment['cores']} cores" for row in rows), "")
    return "  |  ".join([where, *parts])


def _empty(axis: Any, title: str) -> None:
    axis.set_title(f"{title}: no rows", loc="left")
    axis.set_axis_off()


def _ratios(axis: Any, rows: Sequence[Row]) -> None:
    title = "Mean optimizer step of raykube, as a ratio"
    found = [each for each in findings.comparisons(rows) if each.statistic == "mean"]
    if not found:
        return _empty(axis, title)
    for place, each in enumerate(reversed(found)):
        left, width = 1 - each.floor, 2 * each.floor
        axis.barh(place, width, left=left, height=0.7, color=_BAND, label="noise floor" if place == 0 else None)
        colour = _COLOURS[0] if each.against == "torchrun" else _COLOURS[1]
        axis.plot([each.ratio.low, each.ratio.high], [place, place], color=colour, linewidth=2.5)
        axis.plot(each.ratio.value, place, "o", color=colour, markersize=6)
        goal = each.goal or 1.0
        axis.plot([goal, goal], [place - 0.35, place + 0.35], color=_GOAL, label="goal" if place == 0 else None)
    axis.axvline(1, color=_MUTED, linewidth=0.8)
    axis.set_yticks(
        range(len(found)), [f"{each.case}\nagainst {each.against}, n={each.ratio.count}" for each in reversed(found)]
    )
    axis.set_xlabel("raykube / other, 95 % interval, n pairs (right of 1: raykube is slower)")
    axis.legend(frameon=False, loc="best")
    axis.set_title(title, loc="left")
    return None


def _reports(axis: Any, rows: Sequence[Row]) -> None:
    title = "One call of report on the training thread"
    found = findings.report_costs(rows)
    if not found:
        return _empty(axis, title)
    for place, each in enumerate(reversed(found)):
        values = (each.p50, each.p95, each.p99.value, each.worst)
        axis.plot([values[0], values[-1]], [place, place], color=_BAND, linewidth=5, zorder=1, solid_capstyle="round")
        for name, value, colour, above in zip(_QUANTILES, values, _COLOURS, (True, False, True, False), strict=False):
            axis.plot(value, place, "o", color=colour, markersize=8)
            words, shift, side = f"{name} {value:,.{0 if value >= 100 else 1}f} µs", 10 if above else -10, "center"
            anchor = "bottom" if above else "top"  # alternating, because neighbours may be close
            axis.annotate(words, (value, place), (0, shift), textcoords="offset points", ha=side, va=anchor)
    axis.axvline(findings.REPORT_P99_US, color=_GOAL, linewidth=1.2)
    axis.annotate("goal for p99", (findings.REPORT_P99_US, -0.5), (4, 0), textcoords="offset points", color=_GOAL)
    axis.set_yticks(range(len(found)), [f"{each.tracking}\n{each.calls:,} calls" for each in reversed(found)])
    axis.set_ylim(-0.6, len(found) - 0.4)
    axis.set_xscale("log")
    axis.margins(x=0.12)
    axis.set_xlabel("µs (logarithmic)")
    axis.set_title(title, loc="left")
    return None


def _submissions(axis: Any, rows: Sequence[Row]) -> None:
    title = "From submit to the first step, and to the end"
    found = findings.submissions(rows)
    if not found:
        return _empty(axis, title)
    for place, (arm, events) in enumerate(reversed(found.items())):
        done = 0.0
        for colour, phase in zip(_COLOURS, _NAMES, strict=False):
            until = max(events[phase].value, done)
            label = _NAMES[phase] if place == 0 else None
            axis.barh(place, until - done, left=done, height=0.5, color=colour, label=label)
            if until - done > 0.04 * events["ended"].value:
                axis.text((done + until) / 2, place, f"{until - done:.1f}", ha="center", va="center", color="white")
            done = until
        limit = findings.FIRST_LINE_S[arm]
        label = "goal for the first line" if place == 0 else None
        axis.plot([limit, limit], [place - 0.35, place + 0.35], color=_GOAL, linewidth=2, label=label)
    axis.set_yticks(range(len(found)), [f"{arm} head\nn={found[arm]['ended'].count}" for arm in reversed(found)])
    axis.set_ylim(-0.5, len(found) + 0.1)
    axis.set_xlabel("seconds since the call of submit")
    axis.legend(frameon=False, loc="upper center", ncols=3)
    axis.set_title(title, loc="left")
    return None


def _scaling(axis: Any, rows: Sequence[Row]) -> None:
    title = "Efficiency against one process of plain PyTorch"
    found = findings.points(rows)
    if not found:
        return _empty(axis, title)
    modes = list(dict.fromkeys(each.mode for each in found))
    counts = sorted({each.workers for each in found})
    for shift, mode in enumerate(modes):
        for each in (each for each in found if each.mode == mode):
            # Points, not a line: nothing was measured between them.
            across = counts.index(each.workers) + (shift - (len(modes) - 1) / 2) * 0.16
            label = mode if each.workers == counts[0] else None
            axis.plot([across] * 2, [each.efficiency.low, each.efficiency.high], color=_COLOURS[shift], linewidth=2.5)
            axis.plot(across, each.efficiency.value, "o", color=_COLOURS[shift], markersize=7, label=label)
            words = f"{each.step_ms:.1f} ms\nfloor {each.floor_ms:.2f} ms"
            side, align = ((-8, 0), "right") if shift == 0 else ((8, 0), "left")
            point = (across, each.efficiency.value)
            axis.annotate(words, point, side, textcoords="offset points", ha=align, va="center", color=_MUTED)
    axis.axhline(1, color=_MUTED, linewidth=0.8)
    axis.set_xticks(range(len(counts)), [f"{count} worker{'s' if count > 1 else ''}" for count in counts])
    axis.set_xlim(-0.7, len(counts) - 0.3)
    axis.set_ylim(0, max(1.15, *(each.efficiency.high * 1.1 for each in found)))
    axis.set_ylabel("efficiency")
    axis.legend(frameon=False, loc="lower left")
    axis.set_title(f"{title} ({found[0].base_ms:.1f} ms a step)", loc="left")
    if max(counts) <= 2:
        axis.set_xlabel("one and two workers show overhead, not scaling")
    return None
