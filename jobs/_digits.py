"""What the digits jobs share: the data as Parquet, the network, the training loop, loading a checkpoint."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import raykube
from raykube.inside import checkpoints

CONFIG: dict[str, Any] = {"epochs": 12, "lr": 2e-3, "batch_size": 64, "width": 16, "seed": 0, "data": ""}


class Net(nn.Module):
    """A small CNN: (N, 1, 8, 8) float in 0..1 -> (N, 10) logits."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * width, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of `images`."""
        logits: Tensor = self.layers(images)
        return logits


def write_data(folder: str | Path = "") -> str:
    """Write scikit-learn's digits (1,797 images of 8x8) as Parquet files unless they exist; return their folder.

    Args:
        folder: a folder that all workers can read; by default a folder beside the runs if the storage is a path, else
            one in this machine's temporary folder.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from sklearn.datasets import load_digits

    storage = os.environ.get("RAYKUBE_STORAGE", "")
    shared = Path(storage, ".data", "digits") if storage and "://" not in storage else None
    target = Path(folder) if folder else shared or Path(tempfile.gettempdir(), f"digits-{os.getuid()}")
    target.mkdir(parents=True, exist_ok=True)
    images, labels = load_digits(return_X_y=True)
    # Every seventh image is for testing, so the split is the same everywhere.
    for name, rows in (("train", [i for i in range(len(labels)) if i % 7]), ("test", range(0, len(labels), 7))):
        path = target / f"{name}.parquet"
        if path.exists():
            continue
        table = pa.table({"image": [(images[i] / 16).tolist() for i in rows], "label": [int(labels[i]) for i in rows]})
        draft = path.with_suffix(f".{os.getpid()}")
        pq.write_table(table, draft)
        draft.replace(path)  # atomic: another job may be reading it
    return str(target)


def read_data(folder: str, name: str) -> tuple[Tensor, Tensor]:
    """Return (images (N, 1, 8, 8) float32 in 0..1, labels (N,) int64) of ``"train"`` or ``"test"``."""
    import pyarrow.parquet as pq

    table = pq.read_table(Path(folder) / f"{name}.parquet")
    images = torch.tensor(table["image"].to_pylist(), dtype=torch.float32).reshape(-1, 1, 8, 8)
    return images, torch.tensor(table["label"].to_pylist())


def loop(config: dict[str, Any]) -> None:
    """Train the network: a plain Ray Train loop that runs on every worker.

    The config sets the global batch, which is split among the workers, so the number of workers does not change what
    is learned.
    """
    import ray.train
    import ray.train.torch

    config = CONFIG | config
    world, rank = ray.train.get_context().get_world_size(), ray.train.get_context().get_world_rank()
    torch.manual_seed(config["seed"])
    model = ray.train.torch.prepare_model(Net(config["width"]))
    device = ray.train.torch.get_device()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"])
    first = 1
    if state := checkpoints.latest():
        bare(model).load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"] + 1
    images, labels = (part.to(device) for part in read_data(config["data"], "train"))
    test = [part.to(device) for part in read_data(config["data"], "test")]
    for epoch in range(first, config["epochs"] + 1):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(config["seed"] * 1000 + epoch))
        batches = torch.split(order, config["batch_size"])
        for step, batch in enumerate(batches, start=(epoch - 1) * len(batches) + 1):
            mine = batch[rank::world] if len(batch) >= world else batch
            loss = nn.functional.cross_entropy(model(images[mine]), labels[mine])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            raykube.report({"epoch": epoch, "step": step, "loss": loss})
        metrics = {"epoch": epoch, "loss": loss, "accuracy": accuracy(bare(model), *test)}
        state = {"model": bare(model).state_dict(), "optimizer": optimizer.state_dict()}
        raykube.report(metrics, state | {"epoch": epoch, "width": config["width"]})


def bare(model: nn.Module) -> nn.Module:
    """Return the module itself if DistributedDataParallel wraps it, else `model`."""
    module = getattr(model, "module", model)
    return module if isinstance(module, nn.Module) else model


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of `images` (N, 1, 8, 8) for which `model` predicts `labels` (N,)."""
    model.eval()
    with torch.inference_mode():
        share = (model(images).argmax(1) == labels).double().mean()
    model.train()
    return float(share)


def load(checkpoint: str) -> Net:
    """Return the trained network from a checkpoint's folder, ready to predict."""
    state = checkpoints.load(checkpoint)
    net = Net(state["width"])
    net.load_state_dict(state["model"])
    return net.eval()


def predict(net: nn.Module, instances: list[Any]) -> list[int]:
    """Return the digit of each instance: 64 numbers, or 8 rows of 8, in 0..1.

    Raises:
        ValueError: an instance does not have 64 numbers.
    """
    images = torch.tensor(instances, dtype=torch.float32)
    if images.numel() != 64 * len(instances):
        raise ValueError(f"an image is 64 numbers, or 8 rows of 8; this has the shape {tuple(images.shape[1:])}")
    images = images.reshape(-1, 1, 8, 8)
    with torch.inference_mode():
        digits: list[int] = net(images).argmax(1).tolist()
    return digits


def fingerprint(checkpoint: str) -> str:
    """Return the SHA-256 of a checkpoint's weights, which is equal only if all bits are."""
    digest = hashlib.sha256()
    for name, weights in sorted(load(checkpoint).state_dict().items()):
        digest.update(name.encode() + weights.contiguous().numpy().tobytes())
    return digest.hexdigest()
