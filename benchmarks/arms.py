"""One arm, in a process of its own; started by benchmarks.overhead.

Rank 0 writes what it measured to a file, so that no arm's way of returning a result is part of the measurement.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import relay, stats, workload

#: The models to train on each device: samples per step on one worker, and steps per spell, which take some 1.5 s.
MODELS = {"cpu": {"mlp": (64, 1200), "cnn": (64, 240)}, "cuda": {"mlp": (64, 1000), "decoder": (8, 12)}}


def loop(config: dict[str, Any], on_step: workload.OnStep) -> None:
    """Time every model, on this rank, in this arm's turns; rank 0 waits for the turns and writes the file."""
    entered = time.time() - config["since"]
    device = torch.device(config["device"])
    leads = workload.rank() == 0
    # One sequence of turns for all models, so that the relay need not know which is trained.
    turns = iter(relay.Turns(config["turns"] if leads else "", len(MODELS[device.type]) * (config["rounds"] + 1)))
    samples: dict[str, Any] = {}
    for model, (batch, steps) in MODELS[device.type].items():
        work = workload.Work(model, batch, steps=steps, warmup=config["warmup"])
        seconds = workload.relayed_steps(work, on_step, itertools.islice(turns, config["rounds"] + 1), device)
        samples[model] = summary(seconds) | {"entered_s": entered}
    next(turns, None)  # hands the last turn on
    if leads:
        measured = {"values": samples, "environment": workload.settings()}
        Path(config["out"]).write_text(json.dumps(measured), encoding="utf-8")


def summary(seconds: list[float]) -> dict[str, float]:
    """Return the mean, the quantiles and the maximum of steps, in milliseconds, and their number."""
    ms = [second * 1e3 for second in seconds]
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    return {
        "mean_ms": sum(ms) / len(ms),
        **{f"{name}_ms": stats.quantile(ms, share).value for name, share in shares.items()},
        "max_ms": max(ms),
        "steps": len(ms),
    }


def raykube_loop(config: dict[str, Any]) -> None:
    import raykube

    loop(config, raykube.report)


def plain_loop(config: dict[str, Any]) -> None:
    loop(config, workload.nothing)


def _scale(config: dict[str, Any]) -> None:
    os.environ["RAYKUBE_WORKERS"] = str(config["world"])
    os.environ["RAYKUBE_GPUS_PER_WORKER"] = "1" if config["device"] == "cuda" else "0"


def run_raykube(config: dict[str, Any]) -> None:
    import raykube

    _scale(config)
    result = raykube.train(raykube_loop, config, experiment="overhead")
    for note in result.notes:
        print(f"note: {note}")


def turns_loop(config: dict[str, Any]) -> None:
    """Alternate steps with and without a report, and write how long a step of either takes, in milliseconds.

    The thread that normally writes the rows is stopped, and the rows are written between the steps: so everything that
    they cost this process is counted, as if nothing ran in parallel with the steps.
    """
    import raykube
    from raykube.inside import loops

    session: Any = loops._session  # noqa: SLF001 # only a benchmark wants to wait for the rows
    session.recorder._end.set()  # noqa: SLF001 # stops its thread
    plain = (workload.nothing, workload.idle)
    arms = {"raykube": (raykube.report, session.recorder.flush), "no report": plain, "no report again": plain}
    found: dict[str, Any] = {}
    device = torch.device(config["device"])
    for model, (batch, _) in MODELS[device.type].items():
        settle = 0.0 if found else config["settle_s"]
        work = workload.Work(model, batch, warmup=config["warmup"], settle_s=settle)
        taken = workload.turns(work, arms, config["rounds"], device)
        found[model] = {arm: seconds * 1e3 for arm, seconds in taken.items()}
    Path(config["out"]).write_text(json.dumps({"values": found, "environment": workload.settings()}), encoding="utf-8")


def run_turns(config: dict[str, Any]) -> None:
    """Run :func:`turns_loop` in one training under raykube, with tracking on."""
    import raykube

    _scale(config)
    raykube.train(turns_loop, config, experiment="overhead")


def run_ray(config: dict[str, Any]) -> None:
    """Run the loop as Ray Train's own documentation shows."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init(address="local")
    TorchTrainer(
        plain_loop,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=config["world"], use_gpu=config["device"] == "cuda"),
        run_config=RunConfig(name="overhead", storage_path=str(Path(config["out"]).parent / "ray")),
    ).fit()
    ray.shutdown()


def run_torchrun(config: dict[str, Any]) -> None:
    """Run the loop on this rank; torchrun has started one such process per rank."""
    import torch.distributed as dist

    dist.init_process_group("nccl" if config["device"] == "cuda" else "gloo")
    plain_loop(config)
    dist.destroy_process_group()


ARMS: dict[str, Callable[[dict[str, Any]], None]] = {
    "raykube": run_raykube,
    "ray": run_ray,
    "torchrun": run_torchrun,
    "turns": run_turns,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arm", choices=ARMS)
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--device", choices=MODELS, default="cpu")
    parser.add_argument("--rounds", type=int, required=True, help="turns of this arm, besides those for the warm-up")
    parser.add_argument("--warmup", type=int, required=True, help="steps")
    parser.add_argument("--settle-s", type=float, default=0.0, help="rest in the first warm-up, for `turns`")
    parser.add_argument("--since", type=float, default=0.0, help="Unix time at which the arm was started")
    parser.add_argument("--turns", default="", help="socket of the relay that gives turns")
    parser.add_argument("--out", required=True, help="file for what rank 0 measured")
    config = vars(parser.parse_args())
    ARMS[config.pop("arm")](config)


if __name__ == "__main__":
    main()
