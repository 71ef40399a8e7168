"""What Ray leaves undone after a process of a run is killed. Imported only where Ray is.

Three flaws of Ray 2.60, each of which leaves CPUs reserved for nobody, so that a search waits for them for ever:

- A call to an actor that the memory monitor killed raises an error that is no ``RayActorError``. Train's controller
  then gives up without returning its placement group, and Tune ends with all trials: ``heed_memory_kills``.
- A worker that dies while its group starts leaves the group's placement group behind, or is replaced without a
  limit: ``clean_up_failed_starts``.
- The placement group of a killed controller stays as long as the job, unless an actor that Ray starts beside the
  controller knows of it, and lives; our trainings start none (``spared``): ``orphans_removed``.

This uses internals of Ray, which may move; if they have, Ray is left as it is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError

from raykube.inside.failures import STARTING

log = logging.getLogger("raykube")
_LOOK_S = 2.0


class MemoryKill(OutOfMemoryError, RayActorError):  # type: ignore[misc] # Ray's base classes have no types
    """The memory monitor killed the process; unlike Ray's own error, this also counts as an actor's death."""

    def __init__(self, message: str) -> None:
        RayActorError.__init__(self, None, message)
        self.message = message


def heed_memory_kills() -> None:
    """Make the memory monitor's kills raise ``MemoryKill`` in this process."""
    from ray._private import serialization

    if hasattr(serialization, "OutOfMemoryError"):
        serialization.OutOfMemoryError = MemoryKill


def clean_up_failed_starts(note: Callable[[Mapping[int, BaseException]], None]) -> None:
    """Make the controller in this process release all that a group of workers holds when it cannot start.

    A death at the start then counts as one that a run survives ``RAYKUBE_MAX_FAILURES`` times, and `note` is told.
    """
    try:
        from ray.train import WorkerGroupError
        from ray.train.v2._internal.execution.controller.controller import TrainController
        from ray.train.v2._internal.execution.worker_group import WorkerGroup
    except ImportError:
        return

    class CleaningWorkerGroup(WorkerGroup):  # type: ignore[misc] # see above
        def _start(self) -> None:
            try:
                super()._start()
            except Exception as error:
                if self.has_started():  # before that, Ray cleans up itself
                    self.get_worker_group_state().shutdown()
                if (death := _death_in(error)) is None:
                    raise
                note({STARTING: death})
                raise WorkerGroupError(str(death), {STARTING: death}) from error

    TrainController.worker_group_cls = CleaningWorkerGroup


def _death_in(error: BaseException | None) -> BaseException | None:
    while error is not None and not isinstance(error, RayActorError):
        error = error.__cause__
    return error


@contextmanager
def orphans_removed() -> Iterator[None]:
    """While the block runs, remove placement groups of this job whose controller is dead."""
    end = threading.Event()

    def run() -> None:
        while not end.wait(_LOOK_S):
            _remove_orphans()

    thread = threading.Thread(target=run, daemon=True, name="raykube-orphans")
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def _remove_orphans() -> None:
    try:
        from ray._private.state import state
        from ray.core.generated.gcs_pb2 import ActorTableData, PlacementGroupTableData

        gcs = state._connect_and_get_accessor()  # noqa: SLF001 # no public call tells who made a placement group
        for group in map(PlacementGroupTableData.FromString, gcs.get_placement_group_table()):
            if _is_ours(group) and (made_by := gcs.get_actor_info(ray.ActorID(group.creator_actor_id))):
                controller = ActorTableData.FromString(made_by)
                # The group itself does not say so if it was registered while its controller was being ended.
                if controller.class_name == "TrainController" and controller.state == ActorTableData.DEAD:
                    _remove(group.placement_group_id)
    except Exception:  # whatever moved internals raise, or Ray when it ends: the training goes on
        log.debug("no look at placement groups now", exc_info=True)


def _is_ours(group: Any) -> bool:
    """Whether a placement group is of this job, not detached, and not removed yet."""
    ours: bool = group.creator_job_id == bytes.fromhex(ray.get_runtime_context().get_job_id())
    return ours and not group.is_detached and group.state != group.REMOVED


def _remove(group: bytes) -> None:
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    log.info("what the workers of a training had reserved is free again, for its controller has ended")
    remove_placement_group(PlacementGroup(ray.PlacementGroupID(group)))
