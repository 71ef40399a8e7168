"""The report as Markdown. Pure functions from rows to text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from benchmarks import findings, stats
from benchmarks.rows import Row

_HOW = """The arms of a pair are processes that live at the same time and take turns of a second or two, in changing
orders; what a driver does beside the steps falls on all of them. Ratios are of medians over the pairs, intervals are
95 %, from 10,000 draws of whole pairs. The floor is how far from 1 the interval of torchrun against itself reaches: a
goal tighter than it cannot be met on this machine. A verdict needs at least six pairs and follows from the bounds and
the floor alone."""
_TURNS = """Within one training under raykube with MLflow, spells of 50 ms with a report at every step, and without,
take turns. A sample is the median of one process, and with reports what writing their rows takes, which is else done in
a thread beside the steps; what the driver does beside them falls on all spells alike, and is not in it. The floor is
that of spells without against themselves."""
_STARTS = """Medians, from the start of the process. The arms raykube and ray start a Ray of their own. Arms that have
started are idle beside the next one."""
_SUBMITS = """Medians in seconds since the call of submit, in a client process of its own, on a Ray head of its own:
*cold* is not there yet, *warm* is. Packing is measured by itself; submit holds it, the start of a cold head, and the
POST. The script's first line comes before it imports torch."""
_SCALING = """The base is one process of plain PyTorch, started by torchrun on a worker of the same cluster. The floor
is one all-reduce of the gradients, measured in the same run. One and two workers show what the exchange of gradients
and raykube cost; they show no scaling."""
_CLUSTER = """The base is the same RayJob as kubectl would create and read it, with KubeRay's own probes. *Tuned* is
raykube under an operator with the setting that docs/kubernetes.md recommends; all other arms have the operator as it is
delivered."""
_FOLLOWING = (
    """The end of a job is the time that Ray itself reports; *rayjob* is a watch of the RayJob's status beside it."""
)
_EVENTS = {
    "packing": "packing alone",
    "submit": "submit returned (packed, head up, sent)",
    "running": "job running",
    "first_line": "first line seen",
    "entered": "training loop entered",
    "first_step": "first step done",
    "ended": "run ended, result there",
}


def render(rows: Sequence[Row], figure: str) -> str:
    """Return the whole report.

    Args:
        rows: of each thing that was measured, those of one session.
        figure: the file name of the figure.

    Raises:
        ValueError: the rows are of different kinds: measured numbers do not share a table with others.
    """
    if kinds := {row.kind for row in rows} - {"measured"}:
        raise ValueError(f"rows of kind {', '.join(sorted(kinds))} do not belong among measured ones")
    parts = [["# Benchmarks", "", *_provenance(rows), "", f"![What was measured]({figure})"]]
    parts += [
        _turns(rows),
        _steps(rows),
        _floors(rows),
        _reports(rows),
        _submissions(rows),
        _starts(rows),
        _points(rows),
        cluster_starts(rows),
        posts(rows),
        following(rows),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def table(header: Sequence[str], lines: Iterable[Sequence[object]]) -> list[str]:
    """Return a Markdown table."""
    return [_line(header), _line(["---"] * len(header)), *map(_line, lines)]


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _provenance(rows: Sequence[Row]) -> Iterator[str]:
    for experiment, session in sorted({(row.experiment, row.session) for row in rows}):
        own = [row for row in rows if (row.experiment, row.session) == (experiment, session)]
        first = own[0]
        what = ", ".join(dict.fromkeys(row.what for row in own))
        changed = " with changes" if first.dirty else ""
        length = "quick session" if first.quick else "session"
        code = f"commit `{first.commit[:12]}`{changed}"
        yield f"- **{experiment}** ({what}): {length} {session}, {code}, kind: {first.kind}"
        yield f"  - {', '.join(f'{key} {value}' for key, value in first.environment.items() if key not in _VARYING)}"
        loads = [row.environment["load_1min"] for row in own]
        stolen = own[-1].environment["steal_share"]
        yield f"  - load average of a minute {min(loads)} to {max(loads)}, {stolen:.2%} of the time stolen"


_VARYING = ("load_1min", "steal_share")


def span(interval: stats.Interval, digits: int = 3) -> str:
    """Return the bounds of an interval."""
    return f"{interval.low:.{digits}f} to {interval.high:.{digits}f}"


def _turns(rows: Sequence[Row]) -> list[str]:
    found = findings.turns(rows)
    header = ["loop", "with a report, ms", "without, ms", "ratio", "95 % CI", "floor", "goal", "verdict", "n"]
    lines = [
        [
            *(each.case, f"{each.ours:.4f}", f"{each.base:.4f}", f"{each.ratio.value:.4f}", span(each.ratio, 4)),
            *(f"±{each.floor:.4f}", f"≤ {each.goal}", each.verdict, each.ratio.count),
        ]
        for each in found
    ]
    return (
        ["## What a report adds to a step, in its own process", "", _TURNS, "", *table(header, lines)] if found else []
    )


def _steps(rows: Sequence[Row]) -> list[str]:
    found = findings.comparisons(rows)
    header = ["loop", "step", "raykube ms", "against", "its ms", "ratio", "95 % CI", "floor", "goal", "verdict", "n"]
    lines = [
        [
            *(each.case, each.statistic, f"{each.ours:.3f}", each.against, f"{each.base:.3f}"),
            *(f"{each.ratio.value:.3f}", span(each.ratio), f"±{each.floor:.3f}", f"≤ {each.goal}"),
            *(each.verdict, each.ratio.count),
        ]
        for each in found
    ]
    title = "## Optimizer step: raykube with a report and MLflow at every step"
    return [title, "", _HOW, "", *table(header, lines)] if found else []


def _floors(rows: Sequence[Row]) -> list[str]:
    found = findings.floors(rows)
    header = ["loop", "step", "torchrun ms", "torchrun again ms", "ratio", "95 % CI", "floor", "n"]
    lines = [
        [
            *(each.case, each.statistic, f"{each.base:.3f}", f"{each.ours:.3f}", f"{each.ratio.value:.3f}"),
            *(span(each.ratio), f"±{each.floor:.3f}", each.ratio.count),
        ]
        for each in found
    ]
    return ["## Noise floor: torchrun against itself", "", *table(header, lines)] if found else []


def _reports(rows: Sequence[Row]) -> list[str]:
    found = findings.report_costs(rows)
    header = ["", "calls", "p50 µs", "p95 µs", "p99 µs", "95 % CI", "max µs", "goal", "verdict"]
    lines = [
        [
            *(each.tracking, f"{each.calls:,}", f"{each.p50:.1f}", f"{each.p95:.1f}", f"{each.p99.value:.1f}"),
            *(span(each.p99, 1), f"{each.worst:.0f}", f"p99 ≤ {findings.REPORT_P99_US:g}"),
            stats.within(each.p99, findings.REPORT_P99_US),
        ]
        for each in found
    ]
    return ["## One call of report, on the training thread", "", *table(header, lines)] if found else []


def _submissions(rows: Sequence[Row]) -> list[str]:
    found = findings.submissions(rows)
    header = ["until", *(f"{arm} (n={events['ended'].count})" for arm, events in found.items())]
    lines = [[_EVENTS[phase], *(f"{events[phase].value:.2f}" for events in found.values())] for phase in _EVENTS]
    goals = [_first_line(arm, events["first_line"]) for arm, events in found.items()]
    return ["## From submit to the first step", "", _SUBMITS, "", *table(header, lines), *goals] if found else []


def _first_line(arm: str, seconds: stats.Interval) -> str:
    limit = findings.FIRST_LINE_S[arm]
    return f"\nFirst line, {arm}: {span(seconds, 2)} s, goal ≤ {limit:g} s: {stats.within(seconds, limit)}."


def _starts(rows: Sequence[Row]) -> list[str]:
    lines = [[arm, world, f"{loop:.2f}"] for arm, world, loop in findings.starts(rows)]
    found = table(["arm", "workers", "loop entered, s"], lines)
    idle = [row.values for row in findings.of(rows, "idle")]
    words = [
        f"\nAn idle head: {each['busy_with_head_cores']:.2f} cores busy, without it {each['busy_without_cores']:.2f}."
        for each in idle
    ]
    return ["## From nothing to the loop, without submit", "", _STARTS, "", *found, *words] if lines else []


def _points(rows: Sequence[Row]) -> list[str]:
    found = findings.points(rows)
    header = [
        "mode",
        "workers",
        "step ms",
        "plain PyTorch, n=1, ms",
        "efficiency",
        "95 % CI",
        "floor ms",
        "busbw MB/s",
        "n",
    ]
    lines = [
        [
            *(each.mode, each.workers, f"{each.step_ms:.3f}", f"{each.base_ms:.3f}", f"{each.efficiency.value:.1%}"),
            *(span(each.efficiency), f"{each.floor_ms:.3f}", f"{each.busbw_mb_s:.0f}", each.efficiency.count),
        ]
        for each in found
    ]
    return ["## Scaling", "", _SCALING, "", *table(header, lines)] if found else []


def cluster_starts(rows: Sequence[Row]) -> list[str]:
    """Return the table of the time from created to RUNNING on KubeRay."""
    found = findings.cluster_starts(rows)
    header = ["arm", "its s", "kubectl s", "ratio", "95 % CI", "floor", "goal", "verdict", "n"]
    lines = [
        [
            *(each.arm, f"{each.ours:.2f}", f"{each.base:.2f}", f"{each.ratio.value:.3f}", span(each.ratio)),
            *(f"±{each.floor:.3f}", f"≤ {each.goal}", each.verdict, each.ratio.count),
        ]
        for each in found
    ]
    return ["## On KubeRay: from created to RUNNING", "", _CLUSTER, "", *table(header, lines)] if found else []


def posts(rows: Sequence[Row]) -> list[str]:
    """Return the table of what creating a job's objects costs."""
    found = findings.post_cost(rows)
    if found is None:
        return []
    header = ["raykube ms", "bare requests ms", "more by ms", "95 % CI", "floor ms", "goal", "verdict", "n"]
    line = [
        *(f"{found.ours:.1f}", f"{found.base:.1f}", f"{found.excess.value:.1f}", span(found.excess, 1)),
        *(f"±{found.floor:.1f}", f"≤ {findings.POST_MS:g}", stats.within(found.excess, findings.POST_MS)),
        found.excess.count,
    ]
    return ["## On KubeRay: creating a job's objects", "", *table(header, [line])]


def following(rows: Sequence[Row]) -> list[str]:
    """Return the table of how late a waiter hears of a change, and of the end."""
    ends, changes = findings.ends_heard(rows), findings.changes_heard(rows)
    header = ["what", "heard by", "median", "p99, 95 % CI", "worst", "goal", "verdict", "n"]
    lines = [_end_heard(arm, lates) for arm, lates in ends.items()]
    if changes:
        p99, limit = stats.quantile(changes, 0.99), findings.CHANGE_P99_MS
        middle, bounds = f"{stats.median(changes).value:.1f} ms", f"{p99.value:.1f} ms, {span(p99, 1)}"
        judged = f"p99 ≤ {limit:g} ms", stats.within(p99, limit)
        lines.append(
            ["a change of the object", "raykube", middle, bounds, f"{max(changes):.1f} ms", *judged, len(changes)]
        )
    return ["## On KubeRay: how late a waiter hears", "", _FOLLOWING, "", *table(header, lines)] if lines else []


def _end_heard(arm: str, lates: Sequence[float]) -> list[object]:
    worst, limit = max(lates), findings.END_S
    judged = (f"worst ≤ {limit:g} s", "pass" if worst <= limit else "fail") if arm == "raykube" else ("", "")
    return ["the end of a job", arm, f"{stats.median(lates).value:.2f} s", "", f"{worst:.2f} s", *judged, len(lates)]
