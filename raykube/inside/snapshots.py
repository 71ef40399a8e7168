"""Makes Ray Train write its list of checkpoints whole or not at all. Imported only where Ray is.

Ray 2.60 empties the file before it writes it. If the controller is killed just then, or the disk is full, no later
attempt can read the list, nor find the checkpoints in it.
"""

from __future__ import annotations

from typing import Any

from raykube.inside import storage


def write_whole() -> None:
    """Replace how the controller in this process writes its list, unless Ray's internals have moved."""
    try:
        from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
    except ImportError:
        return
    rays = getattr(CheckpointManager, "_write_state_to_storage", None)
    if rays is None or rays.__module__ == __name__ or not hasattr(CheckpointManager, "_save_state"):
        return

    def write(manager: Any) -> None:
        place = manager._storage_context  # noqa: SLF001 # there is no other way to it
        if place.storage_filesystem.type_name == "local":
            storage.write_text(place.checkpoint_manager_snapshot_path, manager._save_state())  # noqa: SLF001
        else:  # an object store replaces the whole object by itself
            rays(manager)

    CheckpointManager._write_state_to_storage = write  # noqa: SLF001
