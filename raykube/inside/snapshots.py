"""Has Ray Train write its list of checkpoints whole or not at all. Imported only where Ray is.

Ray 2.60 empties the file before it writes it. A controller that is killed just then, or a disk that is full, leaves a
list that no later attempt can read, and with it the checkpoints that lie there.
"""

from __future__ import annotations

from typing import Any

from raykube.inside import storage


def write_whole() -> None:
    """Replace how the controller in this process writes its list; where Ray's inner parts have moved, it stays."""
    try:
        from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
    except ImportError:
        return
    before = getattr(CheckpointManager, "_write_state_to_storage", None)
    if before is None or before is _write or not hasattr(CheckpointManager, "_save_state"):
        return
    CheckpointManager._write_state_to_storage = _write  # noqa: SLF001 # there is no other way to it


def _write(manager: Any) -> None:
    place, text = manager._storage_context, manager._save_state()  # noqa: SLF001
    if place.storage_filesystem.type_name == "local":
        storage.write_text(place.checkpoint_manager_snapshot_path, text)
        return
    with place.storage_filesystem.open_output_stream(place.checkpoint_manager_snapshot_path) as file:
        file.write(text.encode())
