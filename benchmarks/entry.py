"""The script that the experiments submit: it trains with raykube.train, or with torchrun as the base of a comparison.

Run: raykube job submit -- python -m benchmarks.entry train --model mlp --steps 300
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FIRST = "benchmark entry started at"
MARK = "benchmark base measured "


def loop(config: dict[str, Any]) -> None:
    """Train, and report what was measured as the run's last metrics."""
    import ray.train.torch

    import raykube
    from benchmarks import workload

    device = ray.train.torch.get_device()
    costs: list[float] = []

    def timed_report(metrics: dict[str, Any]) -> None:
        start = time.perf_counter_ns()
        raykube.report(metrics)
        costs.append((time.perf_counter_ns() - start) / 1e3)

    timing = workload.timed_steps(workload.Work(**config["work"]), timed_report, device)
    floor = workload.all_reduce_seconds(timing.gradient_bytes, device)
    raykube.report(_measured(timing, floor, costs[config["work"]["warmup"] :]))


def _measured(timing: Any, floor: list[float], costs: list[float]) -> dict[str, Any]:
    """Return everything that was measured as one flat row."""
    from benchmarks import arms, stats, workload

    values = arms.summary(timing.seconds) | {
        "entered": timing.entered,
        "first_step": timing.first_step,
        "gradient_bytes": timing.gradient_bytes,
        "ranks": workload.world(),
    }
    if floor:
        seconds = stats.quantile(floor, 0.5).value
        bandwidth = workload.bus_bandwidth(timing.gradient_bytes, seconds, workload.world())
        values |= {"floor_ms": seconds * 1e3, "busbw_mb_s": bandwidth / 1e6}
    if costs:
        p99 = stats.quantile(costs, 0.99)
        p50, p95 = (stats.quantile(costs, share).value for share in (0.5, 0.95))
        values |= {"report_p50_us": p50, "report_p95_us": p95, "report_p99_us": p99.value}
        values |= {"report_p99_low_us": p99.low, "report_p99_high_us": p99.high}
        values |= {"report_max_us": max(costs), "report_calls": len(costs)}
    return values | workload.settings()


def train(config: dict[str, Any]) -> None:
    import raykube

    raykube.train(loop, config, experiment="benchmark")


def base(config: dict[str, Any]) -> None:
    """Run the same work with torchrun on one worker of this cluster, and print what it measured."""
    import ray

    ray.init()
    cpus, gpus = (float(os.environ.get(f"RAYKUBE_{name}_PER_WORKER", "0")) for name in ("CPUS", "GPUS"))
    task = ray.remote(num_cpus=cpus, num_gpus=gpus)(_torchrun)
    print(MARK + json.dumps(ray.get(task.remote(config))), flush=True)


def _torchrun(config: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "base.json"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
        command = [*launcher, "-m", "benchmarks.entry", "rank", *config["words"], "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"torchrun ended with exit code {done.returncode}: {done.stderr[-2000:]}")
        measured: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return measured


def plain_rank(config: dict[str, Any]) -> None:
    """Be the one process that torchrun starts: plain PyTorch, nothing after a step."""
    import torch
    import torch.distributed as dist

    from benchmarks import workload

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    timing = workload.timed_steps(workload.Work(**config["work"]), workload.nothing, device)
    Path(config["out"]).write_text(json.dumps(_measured(timing, [], [])), encoding="utf-8")
    dist.destroy_process_group()


def parse(words: list[str]) -> dict[str, Any]:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=ACTIONS)
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--batch", type=int, default=64, help="samples a step on one worker")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--out", default="", help="file for what a torchrun rank measured")
    said = vars(parser.parse_args(words))
    do, out = said.pop("do"), said.pop("out")
    return {"do": do, "out": out, "work": said, "words": words[1:]}


ACTIONS = {"train": train, "base": base, "rank": plain_rank}


def main() -> None:
    # Printed before torch is imported, so that this line tells when the script started.
    print(f"{FIRST} {time.time():.3f}", flush=True)
    config = parse(sys.argv[1:])
    ACTIONS[config["do"]](config)


if __name__ == "__main__":
    main()
