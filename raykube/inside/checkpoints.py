"""Checkpoints as plain dictionaries of states: save, load, and the last one of the run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raykube.errors import ConfigError, NotFound
from raykube.inside import storage

STATE_FILE = "state.pt"
_DRAFT = ".draft"


def save(state: Mapping[str, Any], directory: str | Path) -> Path:
    """Write `state` (names to tensors, ``state_dict()``s, numbers) into `directory` and return the file.

    A writer that is killed leaves no half checkpoint: the file, and a folder that is new, get their
    names when they are complete.
    """
    import torch

    folder = Path(directory)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=_DRAFT))
    try:
        torch.save(dict(state), draft / STATE_FILE)
        if folder.exists():
            (draft / STATE_FILE).replace(folder / STATE_FILE)
        else:
            draft.chmod(0o755)  # mkdtemp gives 0700, which another user of a shared storage could not read
            draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder / STATE_FILE


def remove_drafts(stage: str) -> None:
    """Remove the checkpoints of a stage that a killed writer left unfinished."""
    if not storage.is_uri(stage):
        for draft in Path(stage).glob(f".checkpoint_*{_DRAFT}"):
            shutil.rmtree(draft, ignore_errors=True)


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
