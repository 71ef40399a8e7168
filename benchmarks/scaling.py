"""How step time changes with the number of workers: weak and strong scaling, each point a submitted run.

Run: python -m benchmarks.scaling --on local --workers 1,2
     python -m benchmarks.scaling --on gpu-8xh100 --workers 1,2,4,8 --mode weak

The base is one process of plain PyTorch that torchrun starts on a worker of the same cluster, not raykube with
one worker. One and two workers show what raykube and the exchange of gradients cost, but no scaling.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from typing import Any

import raykube as rk
from benchmarks import rows, submission

MODES = ("weak", "strong")
BATCH = 64
_VALUES = (
    "mean_ms",
    "p50_ms",
    "p95_ms",
    "p99_ms",
    "max_ms",
    "steps",
    "gradient_bytes",
    "ranks",
    "floor_ms",
    "busbw_mb_s",
)


@dataclass(frozen=True)
class Point:
    """One submitted run.

    Attributes:
        arm: ``"raykube"``, or ``"torchrun"`` for the base.
        mode: ``"weak"``, ``"strong"``, or ``"both"`` for one worker, where they are the same.
        workers: ranks.
    """

    arm: str
    mode: str
    workers: int

    @property
    def batch(self) -> int:
        """Samples per step on one worker: constant for weak scaling, divided by the workers for strong scaling."""
        return BATCH // self.workers if self.mode == "strong" else BATCH


def points(workers: tuple[int, ...], mode: str) -> tuple[Point, ...]:
    """Return the runs of one pair: the base, and one for every number of workers and mode."""
    modes = MODES if mode == "both" else (mode,)
    one = (Point("raykube", "both", 1),) if 1 in workers else ()
    more = tuple(Point("raykube", each, count) for count in workers if count > 1 for each in modes)
    return (Point("torchrun", "both", 1), *one, *more)


def numbers(text: str) -> tuple[int, ...]:
    """Read ``"1,2,4"``."""
    return tuple(sorted({int(word) for word in text.split(",")}))


def check(on: str, workers: tuple[int, ...], cores: int) -> None:
    """Refuse what cannot be measured.

    Raises:
        raykube.ConfigError: a number of workers is below 1, does not divide the batch, or exceeds the cores.
    """
    if wrong := [count for count in workers if count < 1 or BATCH % count]:
        raise rk.ConfigError(
            f"{wrong} cannot be numbers of workers here",
            why=f"strong scaling splits a batch of {BATCH} evenly",
            next_step=f"choose divisors of {BATCH}",
        )
    if on == "local" and max(workers) > cores:
        fits = ",".join(str(count) for count in (1, 2, 4, 8, 16, 32, 64) if count <= cores)
        raise rk.ConfigError(
            f"{max(workers)} workers on {cores} cores measure how ranks wait for a core, not how training scales",
            next_step=f"--workers {fits}, or --on a larger cluster",
        )


def measure(session: rows.Session, place: submission.Place, point: Point, pair: int, work: list[Any]) -> rows.Row:
    """Run one point and write its row."""
    do = "base" if point.arm == "torchrun" else "train"
    seen = place.submit([do, *work, "--batch", point.batch], workers=point.workers)
    found = seen["base"] if do == "base" else seen["metrics"]
    case = {"mode": point.mode, "workers": point.workers, "batch": point.batch, "model": work[1], "on": place.on}
    settings = {key: found[key] for key in ("torch_threads", "worker_omp", "worker_affinity")}
    values = {key: found[key] for key in _VALUES if key in found}
    return session.add("point", point.arm, pair, case, {"values": values, "environment": settings})


def run(said: argparse.Namespace) -> None:
    workers = said.workers
    check(said.on, workers, len(rows.machine()["affinity"].split(",")))
    rk.Cluster.load(said.on).sized(workers=max(workers))
    session = rows.Session.start("scaling", quick=said.quick)
    if max(workers) <= 2:
        print("  one and two workers show overhead, not scaling")
    work = ["--model", said.model, "--steps", 300 if said.quick else 1000]
    labels = {f"{point.arm} {point.mode} {point.workers}": point for point in points(workers, said.mode)}
    with submission.place(said.on) as place:
        for pair in range(said.pairs or (1 if said.quick else 10)):
            for label in rows.in_turn(tuple(labels), pair):
                values = measure(session, place, labels[label], pair, work).values
                numbers = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
                print(f"  pair {pair + 1} {label}: {numbers}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", default="local", help="local, a preset, or a manifest")
    parser.add_argument("--workers", type=numbers, default=(1, 2), help="numbers of workers, as in 1,2,4")
    parser.add_argument("--mode", choices=(*MODES, "both"), default="both")
    parser.add_argument("--model", choices=("mlp", "cnn"), default="cnn")
    parser.add_argument("--pairs", type=int, default=0, help="how often every point is measured")
    parser.add_argument("--quick", action="store_true", help="every point once, for a first look")
    said = parser.parse_args()
    start = time.monotonic()
    try:
        run(said)
    except rk.RaykubeError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(f"rows of {time.monotonic() - start:.0f} s; python -m benchmarks.report")


if __name__ == "__main__":
    main()
