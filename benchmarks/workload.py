"""The training loop that every arm runs unchanged, and the all-reduce that bounds it from below.

This module knows only PyTorch: the caller sets up the process group, and passes in what is to happen after each
step.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

OnStep = Callable[[dict[str, Any]], object]
AtEnd = Callable[[], object]
_SPELL_S, _SPELLS_AN_END = 0.05, 10
#: The orders of three arms in successive rounds, such that each arm comes after each of the others equally often.
_ORDERS = ((0, 1, 2), (0, 2, 1), (2, 1, 0), (1, 0, 2), (1, 2, 0), (2, 0, 1))


@dataclass(frozen=True)
class Work:
    """What one worker does.

    Attributes:
        model: ``"mlp"``, ``"cnn"``, ``"tiny"`` or, for a GPU, ``"decoder"``.
        batch: samples per step on this worker.
        warmup: steps before the timed ones.
        settle_s: seconds of rest in the warm-up, while the run's start-up is still going on: on one machine, the
            driver's imports take cores from the first steps. The time to the first step is measured separately.
        steps: timed steps, in all or of each spell.
    """

    model: str = "mlp"
    batch: int = 64
    warmup: int = 50
    settle_s: float = 0.0
    steps: int = 300


@dataclass(frozen=True)
class Timing:
    """What one worker saw.

    Attributes:
        seconds: of each timed step.
        entered: Unix time at which the loop began.
        first_step: Unix time at which its first step, which is not timed, was done.
        gradient_bytes: bytes that the ranks exchange per step.
    """

    seconds: list[float]
    entered: float
    first_step: float
    gradient_bytes: int


class Decoder(nn.Module):
    """A causal transformer with 124 million weights, as the smallest GPT-2: (N, T) tokens -> (N * T, 50304) logits."""

    TOKENS, LENGTH = 50304, 1024

    def __init__(self, width: int = 768, depth: int = 12) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(self.TOKENS, width), nn.Embedding(self.LENGTH, width)
        one = nn.TransformerEncoderLayer(
            width, width // 64, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(one, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, self.TOKENS, bias=False)
        self.head.weight = self.tokens.weight
        for embedding in (self.tokens, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the token after each token."""
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        with torch.autocast(tokens.device.type, torch.bfloat16):
            hidden = self.tokens(tokens) + self.places(torch.arange(length, device=tokens.device))
            logits: Tensor = self.head(self.layers(hidden, mask, is_causal=True))
        return logits.flatten(0, 1)


def data(name: str, batch: int, shape: tuple[int, ...], place: torch.device) -> tuple[Tensor, Tensor]:
    """Return random inputs and labels for one batch."""
    if name == "decoder":
        tokens = torch.randint(Decoder.TOKENS, (batch, Decoder.LENGTH + 1), device=place)
        return tokens[:, :-1], tokens[:, 1:].flatten()
    return torch.randn(batch, *shape, device=place), torch.randint(10, (batch,), device=place)


def network(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a network, and the shape of one of its inputs."""
    if name == "decoder":
        return Decoder(), (Decoder.LENGTH,)
    if name == "cnn":
        layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, 10)), (1, 16, 16)
    widths = (16, 16) if name == "tiny" else (256, 256, 256)
    pairs = itertools.pairwise(widths)
    hidden = [layer for low, high in pairs for layer in (nn.Linear(low, high), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(widths[-1], 10)), (widths[0],)


def nothing(metrics: dict[str, Any]) -> None:
    """Do nothing after a step: the lower bound."""
    del metrics


def idle() -> None:
    """Do nothing at the end of a spell."""


def timed_steps(work: Work, on_step: OnStep, device: torch.device | None = None) -> Timing:
    """Train on random data and time each step: forward, backward, optimizer, and then `on_step`.

    A step ends when `on_step` has returned, so the time that it takes on this thread is part of the step.
    """
    entered = time.time()
    place = device or torch.device("cpu")
    step_once, size = _trainer(work, place)
    seconds, first_step = [], 0.0
    for step in range(work.warmup + work.steps):
        start = time.perf_counter()
        on_step({"step": step, "loss": step_once()})
        _wait_for(place)
        seconds.append(time.perf_counter() - start)
        first_step = first_step or time.time()
        if step == work.warmup // 2:
            time.sleep(work.settle_s)
    return Timing(seconds[work.warmup :], entered, first_step, size)


def relayed_steps(work: Work, on_step: OnStep, turns: Iterable[int], device: torch.device | None = None) -> list[float]:
    """Train in spells, one for each turn; return the seconds of each step, as :func:`timed_steps` counts it.

    The first turn is for the warm-up. The first step of a spell is not counted: it finds cold caches, and the other
    ranks already waiting.
    """
    place = device or torch.device("cpu")
    step_once, _ = _trainer(work, place)
    seconds: list[float] = []
    steps = itertools.count()
    for number, _ in enumerate(turns):
        spell = []
        for _ in range(work.steps if number else work.warmup):
            start = time.perf_counter()
            on_step({"step": next(steps), "loss": step_once()})
            _wait_for(place)
            spell.append(time.perf_counter() - start)
        seconds += spell[1:] if number else []
    return seconds


def turns(
    work: Work, arms: Mapping[str, tuple[OnStep, AtEnd]], rounds: int, device: torch.device | None = None
) -> dict[str, float]:
    """Train, with a short spell for each arm in turn; return each arm's median seconds per step.

    Two processes differ by more than an arm may add, and so do two seconds on a shared machine. A spell has as many
    steps as take about 50 ms.

    Args:
        work: what is trained.
        arms: three of them: what to do after each step, and after about half a second of steps, which counts as well.
        rounds: number of spells of each arm.
        device: where to train; within a spell the loop runs ahead of a GPU, and waits for it at the spell's end.
    """
    place = device or torch.device("cpu")
    step_once, _ = _trainer(work, place)
    steps = itertools.count()

    def spell(length: int, on_step: OnStep = nothing) -> float:
        start = time.perf_counter()
        for _ in range(length):
            on_step({"step": next(steps), "loss": step_once()})
        _wait_for(place)
        return (time.perf_counter() - start) / length

    spell(work.warmup)
    time.sleep(work.settle_s)
    length = max(1, round(_SPELL_S / spell(work.warmup)))
    spells: dict[str, list[float]] = {arm: [] for arm in arms}
    ends: dict[str, list[float]] = {arm: [] for arm in arms}
    for turn in range(rounds):
        for arm in map([*arms].__getitem__, _ORDERS[turn % len(_ORDERS)]):
            spells[arm].append(spell(length, arms[arm][0]))
            if turn % _SPELLS_AN_END == 0:
                start = time.perf_counter()
                arms[arm][1]()
                ends[arm].append((time.perf_counter() - start) / (length * _SPELLS_AN_END))
    # The first end is left out: it comes after one spell only.
    return {arm: statistics.median(spells[arm]) + statistics.median(ends[arm][1:]) for arm in arms}


def _trainer(work: Work, place: torch.device) -> tuple[Callable[[], Tensor], int]:
    """Return a function that takes one step and returns its loss, and the size of the gradients in bytes."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bare, shape = network(work.model)
    bare = bare.to(place)
    model = DistributedDataParallel(bare) if world() > 1 else bare
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    inputs, labels = data(work.model, work.batch, shape, place)
    size = sum(weight.numel() * weight.element_size() for weight in bare.parameters())
    return lambda: _optimize(model, optimizer, inputs, labels), size


def _optimize(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor) -> Tensor:
    loss = nn.functional.cross_entropy(model(inputs), labels)
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    return loss.detach()


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def world() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank."""
    return dist.get_rank() if dist.is_initialized() else 0


def all_reduce_seconds(size: int, device: torch.device | None = None, repeats: int = 50) -> list[float]:
    """Return the seconds of `repeats` all-reduces of `size` bytes, which the ranks cannot avoid; none for one rank."""
    if world() < 2:
        return []
    place = device or torch.device("cpu")
    values = torch.ones(size // 4, device=place)
    seconds = []
    for _ in range(repeats):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(values)
        _wait_for(place)
        seconds.append(time.perf_counter() - start)
    return seconds


def bus_bandwidth(size: int, seconds: float, ranks: int) -> float:
    """Return the bus bandwidth in bytes per second, as nccl-tests defines it: S / t * 2 (n - 1) / n."""
    return size / seconds * 2 * (ranks - 1) / ranks if ranks > 1 else 0.0


def settings() -> dict[str, Any]:
    """Return what must be the same in every arm: thread counts and CPUs of this process."""
    return {
        "torch_threads": torch.get_num_threads(),
        "worker_omp": os.environ.get("OMP_NUM_THREADS", "unset"),
        "worker_affinity": ",".join(map(str, sorted(os.sched_getaffinity(0)))),
    }
