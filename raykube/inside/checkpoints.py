"""Checkpoints as plain dictionaries of states: save, load, and the last one of the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raykube.errors import ConfigError, NotFound
from raykube.inside import storage

STATE_FILE = "state.pt"


def save(state: Mapping[str, Any], directory: str | Path) -> Path:
    """Write `state` (names to tensors, ``state_dict()``s, numbers) into `directory` and return the file."""
    import torch

    path = Path(directory) / STATE_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state), path)
    return path


def load(checkpoint: Any, map_location: str = "cpu", *, trusted: bool = False) -> dict[str, Any]:
    """Read what :func:`save` wrote.

    Args:
        checkpoint: a folder, a URI, or a ``ray.train.Checkpoint``.
        map_location: the device on which tensors are put.
        trusted: also read pickled objects other than tensors and plain values. They can run code, so
            say this only of checkpoints of your own.

    Raises:
        NotFound: there is no such checkpoint, or it was not written by :func:`save`.
        ConfigError: it holds other objects and is not `trusted`.
    """
    if hasattr(checkpoint, "as_directory"):
        with checkpoint.as_directory() as folder:
            return _read(Path(folder), map_location, trusted=trusted)
    return _read(Path(storage.local_copy(storage.plain(str(checkpoint)))), map_location, trusted=trusted)


def latest(map_location: str = "cpu") -> dict[str, Any] | None:
    """Return the state of the run's last complete checkpoint, inside a loop; None on a fresh start."""
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    return None if checkpoint is None else load(checkpoint, map_location, trusted=True)


def _read(folder: Path, map_location: str, *, trusted: bool) -> dict[str, Any]:
    import pickle

    import torch

    path = folder / STATE_FILE
    if not path.exists():
        raise NotFound(
            f"no state in the checkpoint {folder}",
            why=f"it has no file {STATE_FILE}",
            next_step="read it with what wrote it, or write it by raykube.report(metrics, {...})",
        )
    try:
        state: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=not trusted)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"the checkpoint {folder} holds more than tensors and plain values",
            why=str(error).splitlines()[0],
            next_step="load(..., trusted=True) if it is your own",
        ) from error
    return state
