"""What the connected cluster has, and for how many workers that is enough."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raykube import wire
from raykube.errors import ConfigError

log = logging.getLogger("raykube")

_JOINING_S = 60.0
#: Is called with words for what a training has to wait for.
Tell = Callable[[str], None]
_FREED_S = 2.0  # for Ray to free what the training before this one held


def head_runs_no_work() -> bool:
    """Whether the head has no CPUs for work, so that workers are separate nodes."""
    import ray

    heads = [node["Resources"] for node in ray.nodes() if "node:__internal_head__" in node["Resources"]]
    return not any(head.get("CPU") for head in heads)


def slots(nodes: Sequence[Mapping[str, Any]], scale: wire.Scale) -> int:
    """Return how many workers of `scale` fit on `nodes` (as from ``ray.nodes()``) when nothing else runs."""
    needs = {"CPU": scale.cpus, "GPU": scale.gpus}
    if scale.accelerator:
        needs[f"accelerator_type:{scale.accelerator}"] = 0.001
    needs = {name: need for name, need in needs.items() if need}
    alive = [node.get("Resources", {}) for node in nodes if node.get("Alive", True)]
    return sum(min((_times(name, need, have) for name, need in needs.items()), default=0) for have in alive)


def _times(name: str, need: float, have: Mapping[str, float]) -> int:
    """Return how often a need fits; a need below one GPU has to fit on a single GPU."""
    if name == "GPU" and need < 1:
        return int(have.get(name, 0)) * int(1 / need + 1e-6)
    return int(have.get(name, 0) / need + 1e-6)


def require(scale: wire.Scale, workers: int | tuple[int, int], tell: Tell = lambda _: None) -> int:
    """Return how many workers of `scale` fit the connected cluster; `tell` if they wait for others to leave room.

    Raises:
        ConfigError: fewer fit than the fixed number asked for, so that Ray would wait for ever.
    """
    need = workers if isinstance(workers, int) else workers[0]
    fits = _settled_slots(scale, need)
    if fits >= need or not isinstance(workers, int):
        _note_idle_gpus(scale)
        _note_taken(scale, min(fits, need), tell)
        return max(fits, need)
    size, have = _describe(scale), _capacity()
    raise ConfigError(
        f"{_workers(need)} x {size} {'do' if need > 1 else 'does'} not fit: the cluster has {have}, room for {fits}",
        why="Ray would wait for resources that never come",
        next_step=f"ask for {_workers(fits)} or a larger cluster" if fits else _smaller(scale),
    )


def _workers(count: int) -> str:
    return f"{count} worker{'s' if count > 1 else ''}"


def _smaller(scale: wire.Scale) -> str:
    import ray

    if scale.gpus and not ray.cluster_resources().get("GPU"):
        return f"ask for none of the GPUs that it does not have ({wire.GPUS}=0), or for a cluster that has them"
    return "ask for smaller workers"


def _note_idle_gpus(scale: wire.Scale) -> None:
    import ray

    if not scale.gpus and (idle := ray.cluster_resources().get("GPU")):
        log.info("%g GPUs here and no worker uses one: %s=1 gives each worker one", idle, wire.GPUS)


def _note_taken(scale: wire.Scale, need: int, tell: Tell) -> None:
    """Log and `tell` if a training will wait for CPUs that others hold."""
    deadline = time.monotonic() + _FREED_S
    while (free := _free(scale)) < need and time.monotonic() < deadline:
        time.sleep(0.2)
    if free < need:
        wait = f"waiting for {_workers(need)} x {_describe(scale)}: there is room for {free} now"
        words = f"{wait}; what else runs: raykube job list; raykube service list"
        log.info("%s", words)
        tell(words)


def _free(scale: wire.Scale) -> int:
    import ray

    return _times("CPU", scale.cpus, ray.available_resources())


def room(scale: wire.Scale, need: int, tell: Tell = lambda _: None) -> int:
    """Return how many workers trials of `need` each may have together; a cluster that can grow counts at its maximum.

    Nobody requests a trial's workers before it runs, so a cluster that begins with none is not waited for.

    Raises:
        ConfigError: there is no room for one trial.
    """
    workers = scale.workers
    if isinstance(workers, tuple) and workers[1] >= need and head_runs_no_work():
        return workers[1]
    return require(scale, need, tell)


def _settled_slots(scale: wire.Scale, need: int) -> int:
    import ray

    deadline = time.monotonic() + _JOINING_S
    # A head without CPUs of its own means that workers are separate nodes, which may still be on their way.
    while (fits := slots(ray.nodes(), scale)) < need and head_runs_no_work() and time.monotonic() < deadline:
        time.sleep(1.0)
    return fits


def _capacity() -> str:
    import ray

    have = ray.cluster_resources()
    parts = [
        f"{(count := have.get(name, 0)):g} {name}{'s' if count != 1 else ''}"
        for name in ("CPU", "GPU")
        if name == "CPU" or have.get(name)
    ]
    return " and ".join(parts)


def _describe(scale: wire.Scale) -> str:
    gpus = f" and {scale.gpus:g} GPU" if scale.gpus else ""
    return f"{scale.cpus:g} CPU{gpus}" + (f" ({scale.accelerator})" if scale.accelerator else "")
