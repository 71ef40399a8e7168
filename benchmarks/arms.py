"""One sample of one arm, in a process of its own; started by benchmarks.overhead.

Run: python -m benchmarks.arms raykube --world 2 --out sample.json

Rank 0 writes what it measured to a file, so that no arm's way of returning a result is part of the measurement.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import stats, workload

#: The models to train on each device, with the number of samples per step on one worker.
MODELS = {"cpu": {"mlp": 64, "cnn": 64}, "cuda": {"mlp": 64, "decoder": 8}}


def loop(config: dict[str, Any], on_step: workload.OnStep) -> None:
    """Time every model in turn, on this rank; rank 0 writes the file."""
    samples: dict[str, Any] = {}
    device = torch.device(config["device"])
    for model, batch in MODELS[device.type].items():
        settle = 0.0 if samples else config["settle_s"]
        work = workload.Work(model, batch, steps=config["steps"], warmup=config["warmup"], settle_s=settle)
        timing = workload.timed_steps(work, on_step, device)
        samples[model] = summary(timing) | {
            "entered_s": timing.entered - config["since"],
            "first_step_s": timing.first_step - config["since"],
        }
    if workload.rank() == 0:
        measured = {"values": samples, "environment": workload.settings()}
        Path(config["out"]).write_text(json.dumps(measured), encoding="utf-8")


def summary(timing: workload.Timing) -> dict[str, float]:
    """Return the mean, the quantiles and the maximum of the timed steps, in milliseconds, and their number."""
    ms = [second * 1e3 for second in timing.seconds]
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
    for model, batch in MODELS[device.type].items():
        settle = 0.0 if found else config["settle_s"]
        work = workload.Work(model, batch, warmup=config["warmup"], settle_s=settle)
        taken = workload.turns(work, arms, config["steps"], device)
        found[model] = {arm: seconds * 1e3 for arm, seconds in taken.items()}
    Path(config["out"]).write_text(json.dumps({"values": found, "environment": workload.settings()}), encoding="utf-8")


def run_turns(config: dict[str, Any]) -> None:
    """Run :func:`turns_loop` in one training under raykube, with tracking on; ``steps`` is the number of rounds."""
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
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--settle-s", type=float, default=0.0, help="rest in the first warm-up")
    parser.add_argument("--since", type=float, default=0.0, help="Unix time at which the sample was started")
    parser.add_argument("--out", required=True, help="file for what rank 0 measured")
    config = vars(parser.parse_args())
    ARMS[config.pop("arm")](config)


if __name__ == "__main__":
    main()
