"""What raykube costs: the optimizer step compared with plain Ray Train and torchrun, a report, the first step's delay.

Run: python -m benchmarks.overhead          (about an hour on 2 cores)
     python -m benchmarks.overhead --quick  (about 3 minutes; shows that it works, resolves no tight goal)
     python -m benchmarks.overhead --device cuda  (on one GPU, which has nobody to exchange gradients with)

The arms of a pair run at the same time and take turns of a second or two (benchmarks.relay), so that a machine in
another mood is not mistaken for a slow arm. Steps with and without a report alternate in one process.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import arms, relay, rows, submission

#: The last arm is the third again: the difference between the two is noise.
ARMS = ("raykube", "ray", "torchrun", "torchrun again")
WORLDS = (1, 2)
_SAME = ("torch_threads", "worker_omp", "worker_affinity")


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        device: of the step samples: ``"cpu"`` or ``"cuda"``.
        arms: of the step samples.
        pairs: of the step arms, for each number of workers.
        worlds: numbers of workers of the step arms.
        budget_s: seconds after which no pair should end: one that would is not begun; 0 for no such limit.
        rounds: turns of each arm, for each model.
        warmup: steps before each model's first turn.
        settle_s: seconds of rest before the first turn.
        cold, warm: submissions to a head that does not run yet; after each, submissions to the running head.
        turns, spells: processes in which steps with and without a report alternate, and how often in each.
        calls: of report in one submitted run.
        idle_s: seconds for which an idle head is watched; 0 for not at all.
    """

    device: str
    arms: tuple[str, ...]
    pairs: int
    worlds: tuple[int, ...]
    budget_s: float
    rounds: int
    warmup: int
    settle_s: float
    cold: int
    warm: int
    turns: int
    spells: int
    calls: int
    idle_s: int


FULL = Sizes(
    device="cpu",
    arms=ARMS,
    pairs=8,
    worlds=WORLDS,
    budget_s=0,
    rounds=8,
    warmup=50,
    settle_s=10,
    cold=6,
    warm=2,
    turns=10,
    spells=150,
    calls=20_000,
    idle_s=60,
)
# Without plain Ray Train, whose sample takes a minute to start.
QUICK = Sizes(
    device="cpu",
    arms=("raykube", *ARMS[2:]),
    pairs=1,
    worlds=WORLDS[:1],
    budget_s=150,
    rounds=3,
    warmup=20,
    settle_s=3,
    cold=1,
    warm=0,
    turns=1,
    spells=40,
    calls=10_000,
    idle_s=0,
)

# A single GPU, where two workers could not use NCCL. Submissions would be the same as on the CPU.
GPU = replace(
    FULL, device="cuda", pairs=6, worlds=WORLDS[:1], rounds=8, warmup=30, settle_s=3, turns=6, spells=18, cold=0
)


def relayed(world: int, pair: int, sizes: Sizes) -> dict[str, dict[str, Any]]:
    """Run all arms at the same time, in turn; return what the rank 0 of each wrote."""
    with tempfile.TemporaryDirectory(prefix="rkb-", ignore_cleanup_errors=True) as name:
        commands = {arm: partial(_command, arm, world, sizes) for arm in relay.order(sizes.arms, pair)}
        rounds = len(arms.MODELS[sizes.device]) * (sizes.rounds + 1)
        relay.run(commands, Path(name), rounds, sizes.settle_s)
        return {arm: _written(Path(name) / arm) for arm in sizes.arms}


def _twice(sample: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Take a sample, and once more if it fails: a rendezvous may lose the race for its port."""
    try:
        return sample()
    except SystemExit as failed:
        print(f"  taken once more, because it failed: {str(failed)[-300:]}", flush=True)
        return sample()


def _command(arm: str, world: int, sizes: Sizes, folder: Path) -> list[str]:
    """Return the command of an arm; it writes to ``sample.json`` in the folder."""
    kind = arm.split(maxsplit=1)[0]
    launcher = [sys.executable, "-m"]
    if kind == "torchrun":
        launcher += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(world), "-m"]
    sizing = ["--world", world, "--rounds", sizes.rounds, "--warmup", sizes.warmup, "--device", sizes.device]
    at = ["--since", time.time(), "--turns", folder / "turns", "--out", folder / "sample.json"]
    return [*launcher, "benchmarks.arms", kind, *map(str, [*sizing, *at])]


def _written(folder: Path) -> dict[str, Any]:
    measured: dict[str, Any] = json.loads((folder / "sample.json").read_text(encoding="utf-8"))
    measured["environment"]["tracked_values"] = tracked_values(folder / "runs" / "mlflow.db")
    return measured


def tracked_values(store: Path) -> int:
    """Return how many values MLflow's store holds: proof that tracking was on."""
    if not store.exists():
        return 0
    with closing(sqlite3.connect(store)) as database:
        count: int = database.execute("select count(*) from metrics").fetchone()[0]
        return count


def steps(session: rows.Session, sizes: Sizes) -> None:
    """Take the step samples.

    Raises:
        SystemExit: the arms did not run with the same threads and CPUs, or raykube's ran without tracking.
    """
    same: dict[str, Any] = {}
    start = time.monotonic()
    for pair in range(sizes.pairs):
        done = time.monotonic() - start
        # Assume that another pair takes as long as the average so far.
        if pair and sizes.budget_s and done * (pair + 1) / pair > sizes.budget_s:
            print(f"  {pair} of {sizes.pairs} pairs taken: the next one would end after {sizes.budget_s:g} s")
            break
        for world in sizes.worlds:
            for arm, measured in _twice(partial(relayed, world, pair, sizes)).items():
                _check(arm, measured, same)
                _write(session, arm, pair, (sizes.device, world), measured)


def _write(session: rows.Session, arm: str, pair: int, at: tuple[str, int], measured: dict[str, Any]) -> None:
    device, world = at
    for model, values in measured["values"].items():
        case = {"model": _named(model, device), "world": world}
        _tell(session.add("step", arm, pair, case, measured | {"values": values}))


def _named(model: str, device: str) -> str:
    return model if device == "cpu" else f"{model} on a GPU"


def turns(session: rows.Session, sizes: Sizes) -> None:
    """Measure what a report adds to each step, with alternating steps in one process."""
    same: dict[str, Any] = {}
    for number in range(sizes.turns):
        measured = _twice(partial(_turns_sample, sizes))
        _check("raykube", measured, same)
        for model, taken in measured["values"].items():
            for arm, ms in taken.items():
                case = {"model": _named(model, sizes.device)}
                _tell(session.add("turn", arm, number, case, measured | {"values": {"p50_ms": ms}}))


def _turns_sample(sizes: Sizes) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="rkb-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        command = _command("turns", 1, replace(sizes, rounds=sizes.spells), folder)
        submission.run_child([*command, "--settle-s", str(sizes.settle_s)], rows.own_environ(folder))
        return _written(folder)


def _check(arm: str, measured: dict[str, Any], same: dict[str, Any]) -> None:
    found = {key: measured["environment"][key] for key in _SAME}
    if same.setdefault("settings", found) != found:
        raise SystemExit(f"the arms cannot be compared: {arm} ran with {found}, another one with {same['settings']}")
    if not same.setdefault("told", False):
        print(f"  every arm: {found}", flush=True)
        same["told"] = True
    if arm == "raykube" and not measured["environment"]["tracked_values"]:
        raise SystemExit("raykube's arm ran without tracking: is MLflow installed?")


def _tell(row: rows.Row) -> None:
    case = ", ".join(f"{key} {value}" for key, value in row.case.items())
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in row.values.items())
    print(f"  pair {row.pair + 1} {row.what} {row.arm} ({case}): {numbers}", flush=True)


def submissions(session: rows.Session, sizes: Sizes) -> None:
    """Measure, on cold and warm heads, the phases of a submission up to its end, and the cost of a report."""
    for pair in range(sizes.cold):
        with submission.place() as here:
            _submission(session, here, ("cold", pair, "on"), sizes)
            for turn in range(sizes.warm):
                tracking = "off" if turn % 2 == 0 else "on"
                _submission(session, here, ("warm", pair * sizes.warm + turn, tracking), sizes)
            if sizes.idle_s and pair == 0:
                values = {"busy_with_head_cores": busy_cores(sizes.idle_s)}
                here.end()
                values["busy_without_cores"] = busy_cores(sizes.idle_s)
                _tell(session.add("idle", "head", 0, {}, {"values": values}))


def _submission(session: rows.Session, here: submission.Place, case: tuple[str, int, str], sizes: Sizes) -> None:
    """Submit one small training that reports at every step; write its phases and its report costs."""
    arm, pair, tracking = case
    words = ["train", "--model", "tiny", "--batch", "16", "--steps", sizes.calls, "--warmup", "50"]
    seen = here.submit(words, RAYKUBE_TRACKING="" if tracking == "on" else tracking)
    metrics = seen["metrics"]
    settings = {key: metrics[key] for key in _SAME}
    costs = {name.removeprefix("report_"): value for name, value in metrics.items() if name.startswith("report_")}
    _tell(session.add("submit", arm, pair, {"on": "local", "workers": 1}, {"values": phases(seen)}))
    _tell(session.add("report", f"tracking {tracking}", pair, {}, {"values": costs, "environment": settings}))


def phases(seen: dict[str, Any]) -> dict[str, float]:
    """Return the seconds from the call of submit to each event, and the seconds for packing alone."""
    marks = {f"{name}_s": seen["metrics"][name] - seen["began"] for name in ("entered", "first_step")}
    names = ("packing_s", "submit_s", "running_s", "first_line_s", "ended_s")
    return {name: seen[name] for name in names} | marks


def busy_cores(seconds: float) -> float:
    """Watch the whole machine for `seconds`, and return how many of its cores were busy on average."""
    import psutil

    cores = psutil.cpu_count() or 1
    return float(psutil.cpu_percent(seconds)) / 100 * cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few pairs, for a first look")
    parser.add_argument("--part", choices=("steps", "turns", "submissions"), help="only this part of it")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the steps")
    parser.add_argument("--pairs", type=int, help="another number of them, for the steps")
    said = parser.parse_args()
    sizes = QUICK if said.quick else FULL
    if said.device == "cuda":
        if said.quick or said.part == "submissions":
            parser.error("on a GPU there are the steps and the turns, and no quick session")
        sizes = GPU
    sizes = replace(sizes, pairs=said.pairs or sizes.pairs)
    session = rows.Session.start("overhead" if said.device == "cpu" else "overhead-gpu", quick=said.quick)
    start = time.monotonic()
    for part in (steps, turns, submissions):
        if said.part in {None, part.__name__}:
            part(session, sizes)
    print(
        f"{session.path.relative_to(rows.ROOT)}: rows of {time.monotonic() - start:.0f} s; python -m benchmarks.report"
    )


if __name__ == "__main__":
    main()
