"""Checkpoints as plain dictionaries of states: save, load, and the last one of the run."""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raykube.errors import ConfigError, NotFound
from raykube.inside import storage
from raykube.inside.scalars import PLAIN, is_spread

__all__ = ["latest", "load", "save"]

log = logging.getLogger("raykube")
STATE_FILE = "state.pt"
_DRAFT = ".draft"
_OURS = re.compile(r"checkpoint_\d{8}-\d{6}-\d{6}$")
_LIST = "checkpoint_manager_snapshot.json"  # Ray's list of checkpoints, in the stage


def new_name(now: float) -> str:
    """Return a new name for a checkpoint of a stage; its form says that the checkpoint's row is recorded."""
    return f"checkpoint_{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{int(now % 1 * 1e6):06d}"


def is_ours(name: str) -> bool:
    """Whether ``raykube.report`` named this checkpoint folder."""
    return bool(_OURS.match(name))


def require_whole(state: Mapping[str, Any]) -> None:
    """Refuse a state with tensors that are spread over the workers: rank 0 would save only its own part.

    Raises:
        ConfigError: the state holds such tensors.
    """
    if parts := list(_spread(state, "", set())):
        more = f" and {len(parts) - 1} more" if parts[1:] else ""
        raise ConfigError(
            f"the checkpoint holds tensors that are spread over the workers: {parts[0]}{more}",
            why="rank 0 saves it, which has a part of each; a training would go on with wrong weights",
            next_step="gather it: get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)), "
            "which every worker calls; or report a folder",
        )


def _spread(state: Any, path: str, seen: set[int]) -> Iterator[str]:
    """Yield the paths of tensors that are spread over the workers."""
    if is_spread(state):
        yield path
    if id(state) in seen or not isinstance(state, Mapping | list | tuple):
        return
    seen.add(id(state))  # a state may contain itself
    for name, value in state.items() if isinstance(state, Mapping) else enumerate(state):
        if type(value) in PLAIN:  # there may be very many of these
            continue
        yield from _spread(value, f"{path}.{name}".lstrip("."), seen)


def save(state: Mapping[str, Any], directory: str | Path) -> Path:
    """Write `state` (names to tensors, ``state_dict()``s, numbers) into `directory` and return the file.

    A killed writer leaves no half checkpoint: the file, and a new folder, get their names only when
    they are complete.
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
    """Remove the unfinished checkpoints that a killed writer left in a stage."""
    if not storage.is_uri(stage):
        for draft in Path(stage).glob(f".checkpoint_*{_DRAFT}"):
            shutil.rmtree(draft, ignore_errors=True)


def remove_unheard(stage: str, goes_on: str) -> None:
    """Remove checkpoints that Ray's controller never heard of, because the worker was killed after it wrote them.

    Nobody would remove them later. If a training begins again without a checkpoint, they stay. All checkpoints that are
    there when rank 0 starts are from an earlier start, since this one has named none yet.

    Args:
        stage: the stage's folder or URI.
        goes_on: the name of the checkpoint that this start goes on from, the last in the list of Ray's controller. A
            list without it is unreadable, or an old one as a network file system may show; then nothing is removed.
    """
    try:
        listed = storage.read_from(storage.join(stage, _LIST)).decode()
        if goes_on not in listed or "checkpoint_results" not in json.loads(listed):
            return
        for name in storage.folders(stage):
            if is_ours(name) and name not in listed:
                storage.remove(storage.join(stage, name))
    except (OSError, ValueError) as error:  # they only take up room: the training goes on
        log.warning("checkpoints of killed workers may be left in %s: %s", stage, error)


def last_listed(stage: str) -> str:
    """Return the name of the checkpoint that the next start goes on from; "" where Ray's list tells of none."""
    try:
        listed = json.loads(storage.read_from(storage.join(stage, _LIST)) or "{}")
        return str(listed["latest_checkpoint_result"]["checkpoint_dir_name"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def load(checkpoint: Any, map_location: str = "cpu", *, trusted: bool = False) -> dict[str, Any]:
    """Read what :func:`save` wrote.

    Args:
        checkpoint: a folder, a URI, or a ``ray.train.Checkpoint``.
        map_location: the device on which tensors are put.
        trusted: also read pickled objects other than tensors and plain values. They can run code, so
            set this only for checkpoints of your own.

    Raises:
        NotFound: there is no such checkpoint, or it was not written by :func:`save`.
        ConfigError: it holds such objects, and is not `trusted`.
    """
    if hasattr(checkpoint, "as_directory"):
        with checkpoint.as_directory() as folder:
            return _read(Path(folder), map_location, trusted=trusted)
    with storage.local_copy(storage.plain(str(checkpoint))) as folder:
        return _read(Path(folder), map_location, trusted=trusted)


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
