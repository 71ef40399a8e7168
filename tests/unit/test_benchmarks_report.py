"""From rows to a report: what is shown, which rows count, and what is refused before anything runs."""

import dataclasses
import json

import pytest

import raykube
from benchmarks import figure, findings, overhead, report, rows, scaling, tables

PLACE = {"cpu": "A CPU", "cores": 2, "load_1min": 0.5, "steal_share": 0.0}


def row(what, arm, pair, case, values, **more):
    fields = {"experiment": "overhead", "session": "2026-01-01T00:00:00Z", "quick": False, "commit": "abc", "time": 0.0}
    fields |= {"environment": PLACE} | more
    return rows.Row(what=what, arm=arm, pair=pair, case=case, values=values, **fields)


def step_rows(slowdown=1.0):
    """Ten pairs in which nothing varies but the arm."""
    for pair in range(10):
        for arm in overhead.ARMS:
            ms = 10.0 * (slowdown if arm == "raykube" else 1.0)
            values = {"mean_ms": ms, "p50_ms": ms, "p99_ms": 2 * ms, "entered_s": 1.0}
            yield row("step", arm, pair, {"model": "mlp", "world": 2}, values)


def report_row(p99_us):
    names = ("p50_us", "p95_us", "p99_us", "p99_low_us", "p99_high_us", "max_us")
    values = dict(zip(names, (5.0, 9.0, p99_us, p99_us - 1, p99_us + 1, 900.0), strict=True)) | {"calls": 10_000}
    return row("report", "tracking on", 0, {}, values)


def submit_row(pair=0):
    events = {f"{phase}_s": float(place) for place, phase in enumerate(findings.PHASES)}
    return row("submit", "cold", pair, {"on": "local", "workers": 1}, events)


def point_rows():
    case = {"model": "cnn", "batch": 64, "on": "local"}
    points = (("torchrun", "both", 1, 8.0), ("raykube", "both", 1, 8.0), ("raykube", "weak", 2, 10.0))
    for pair in range(6):
        for arm, mode, workers, ms in (*points, ("raykube", "strong", 2, 5.0)):
            values = {"mean_ms": ms} | ({"floor_ms": 0.5, "busbw_mb_s": 1000.0} if workers > 1 else {})
            case |= {"mode": mode, "workers": workers}
            yield row("point", arm, pair, dict(case), values, experiment="scaling")


def everything():
    return [*step_rows(), report_row(20.0), submit_row(), *point_rows()]


def line_of(text, *words):
    (found,) = [line for line in text.splitlines() if all(word in line for word in words)]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_report_shows_both_arms_with_ratio_interval_floor_and_verdict():
    text = tables.render(list(step_rows(slowdown=1.05)), "x.png")
    cells = line_of(text, "mlp, 2 workers", "| mean |", "| torchrun |")
    assert cells[2:] == ["10.500", "torchrun", "10.000", "1.050", "1.050 to 1.050", "±0.000", "≤ 1.01", "fail", "10"]


def test_report_judges_what_a_report_adds_by_spells_that_took_turns():
    found = []
    for number in range(6):
        for arm, ms in (("raykube", 1.004), ("no report", 1.0), ("no report again", 1.001)):
            found.append(row("turn", arm, number, {"model": "mlp"}, {"p50_ms": ms * (1 + number)}))
    cells = line_of(tables.render(found, "x.png"), "| mlp |")
    assert cells[3:] == ["1.0040", "1.0040 to 1.0040", "±0.0010", "≤ 1.005", "pass", "6"]


def test_report_says_pass_when_arms_are_equal():
    cells = line_of(tables.render(list(step_rows()), "x.png"), "mlp, 2 workers", "| mean |", "| ray |")
    assert cells[-2:] == ["pass", "10"]


def test_report_names_session_commit_machine_and_kind():
    text = tables.render(everything(), "x.png")
    assert "session 2026-01-01T00:00:00Z, commit `abc`, kind: measured" in text
    assert "cpu A CPU, cores 2" in text
    assert "![What was measured](x.png)" in text


def test_report_judges_the_report_call_by_its_p99():
    assert line_of(tables.render([report_row(48.0)], ""), "tracking on")[-1] == "pass"
    assert line_of(tables.render([report_row(50.0)], ""), "tracking on")[-1] == "not resolvable here"
    assert line_of(tables.render([report_row(60.0)], ""), "tracking on")[-1] == "fail"


def test_one_submission_resolves_no_goal():
    text = tables.render([submit_row()], "")
    assert "First line, cold: 3.00 to 3.00 s, goal ≤ 12 s: not resolvable here." in text
    assert "goal ≤ 12 s: pass." in tables.render([submit_row(pair) for pair in range(6)], "")


def test_efficiency_is_of_one_process_of_plain_pytorch():
    found = {(point.mode, point.workers): point for point in findings.points(list(point_rows()))}
    assert found["weak", 1].efficiency.value == 1.0
    assert found["weak", 2].efficiency.value == 0.8
    assert found["strong", 2].efficiency.value == 0.8
    assert found["strong", 2].base_ms == 8.0
    assert found["strong", 2].floor_ms == 0.5


def test_simulated_rows_are_not_mixed_with_measured_ones():
    simulated = dataclasses.replace(submit_row(), kind="simulated")
    with pytest.raises(ValueError, match="simulated"):
        tables.render([submit_row(), simulated], "")


def cluster_rows(tuned_s=10.0):
    """Six pairs on KubeRay in which nothing varies but the arm."""
    starts = {"kubectl": 24.0, "kubectl again": 24.0, "raykube": 12.0, "raykube, tuned": tuned_s}
    posts = {"kubectl": 20.0, "kubectl again": 21.0, "raykube": 25.0}
    for pair in range(6):
        for what, arms in (("running_s", starts), ("post_ms", posts)):
            for arm, value in arms.items():
                yield row(what, arm, pair, {}, {what: value}, experiment="cluster")


def test_report_judges_both_operators_by_kubectl_under_the_one_as_delivered():
    text = tables.render(list(cluster_rows(tuned_s=12.0)), "x.png")
    assert line_of(text, "| raykube |")[1:] == [
        *("12.00", "24.00", "0.500", "0.500 to 0.500", "±0.000", "≤ 0.8", "pass", "6")
    ]
    assert line_of(text, "| raykube, tuned |")[6:] == ["≤ 0.45", "fail", "6"]


def test_report_judges_creating_objects_by_what_it_costs_more():
    text = tables.render(list(cluster_rows()), "x.png")
    assert line_of(text, "≤ 10")[2:] == ["5.0", "5.0 to 5.0", "±1.0", "≤ 10", "pass", "6"]


def test_report_judges_a_waiter_by_its_latest_news():
    found = [row("changes_ms", "raykube", 0, {}, {"ms": [20.0] * 600}, experiment="following")]
    for pair, (ours, kubectl) in enumerate([(0.2, 2.0), (1.6, 3.0)]):
        for arm, late in (("raykube", ours), ("rayjob", kubectl)):
            found.append(row("end_s", arm, pair, {}, {"end_s": late}, experiment="following"))
    text = tables.render(found, "x.png")
    assert line_of(text, "| the end of a job | raykube |")[4:] == ["1.60 s", "worst ≤ 1.5 s", "fail", "2"]
    assert line_of(text, "| the end of a job | rayjob |")[5:] == ["", "", "2"]
    assert line_of(text, "| a change of the object |")[5:] == ["p99 ≤ 100 ms", "pass", "600"]


def test_newest_session_that_measured_a_thing_counts():
    old, new = submit_row(), dataclasses.replace(submit_row(), session="2026-01-02T00:00:00Z")
    quick = dataclasses.replace(submit_row(), session="2026-01-03T00:00:00Z", quick=True)
    points = list(point_rows())
    assert findings.latest([new, old, quick, *points]) == [quick, *points]
    assert findings.latest([new, old, quick, *points], full=True) == [new, *points]
    steps = list(step_rows())  # of the older session, which measured them last
    assert findings.latest([new, old, *steps]) == [new, *steps]


def test_pairs_without_a_partner_do_not_count():
    taken = [row for row in step_rows() if not (row.arm == "raykube" and row.pair == 3)]
    assert {each.ratio.count for each in findings.comparisons(taken)} == {9}


def test_rows_survive_the_way_through_a_file(tmp_path):
    written = everything()
    lines = [json.dumps(dataclasses.asdict(row)) for row in written]
    (tmp_path / "overhead.jsonl").write_text("\n".join(lines) + "\n")
    assert rows.read(tmp_path) == written


def test_report_command_writes_table_and_figure(tmp_path, capsys):
    lines = [json.dumps(dataclasses.asdict(row)) for row in everything()]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    report.main(["--results", str(tmp_path), "--out", str(tmp_path / "out.md")])
    assert (tmp_path / "out.md").read_text().startswith("# Benchmarks")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.split() == [str(tmp_path / "out.md"), str(tmp_path / "out.png")]


def test_figure_of_one_experiment_leaves_the_other_panels_empty(tmp_path):
    figure.draw(list(point_rows()), tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_every_second_pair_is_taken_in_reverse():
    assert rows.in_turn(("a", "b", "c"), 0) + rows.in_turn(("a", "b", "c"), 1) == ("a", "b", "c", "c", "b", "a")


def test_more_ranks_than_cores_are_refused():
    with pytest.raises(raykube.ConfigError, match="4 workers on 2 cores") as refused:
        scaling.check("local", (1, 2, 4), cores=2)
    assert refused.value.next_step == "--workers 1,2, or --on a larger cluster"
    scaling.check("gpu", (1, 2, 4), cores=2)


def test_workers_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(raykube.ConfigError, match=r"\[3\]"):
        scaling.check("gpu", (1, 3), cores=8)


def test_one_worker_is_the_same_point_for_weak_and_strong():
    points = scaling.points((1, 2), "both")
    assert [(point.arm, point.mode, point.workers, point.batch) for point in points] == [
        ("torchrun", "both", 1, 64),
        ("raykube", "both", 1, 64),
        ("raykube", "weak", 2, 64),
        ("raykube", "strong", 2, 32),
    ]


def test_measured_process_sees_one_thread_and_no_other_ray():
    environ = rows.environ(RAYKUBE_HOME="/x")
    assert environ["OMP_NUM_THREADS"] == "1"
    assert [key for key in environ if key.startswith(("RAY_", "RAYKUBE_"))] == ["RAYKUBE_HOME"]
