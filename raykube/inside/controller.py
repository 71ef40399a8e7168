"""What raykube adds to Ray Train's controller process. Imported only where Ray is."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from ray.train import UserCallback

from raykube import wire
from raykube.inside import checkpoints, deaths, snapshots, spared, storage
from raykube.inside.failures import LoopError, describe, is_bug, is_loss, worst
from raykube.inside.history import Recorder
from raykube.inside.scalars import scalars
from raykube.inside.scores import as_reported
from raykube.inside.tries import Tries
from raykube.inside.troubles import Troubles

try:
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback
except ImportError:  # an internal module of Ray, which may move; then nobody knows where a rank's output is
    WorkerGroupCallback = UserCallback

log = logging.getLogger("raykube")


class Controller(UserCallback):  # type: ignore[misc] # Ray's base class has no types
    """Records rows of plain ``ray.train.report``, notes lost workers, and ends a run whose loop has a bug.

    Args:
        stage: the stage's folder or URI. Rows go to a file beside its metrics file, because two writers of one object
            overwrite each other, as may two machines that append to one file on a network file system.
        attempt: the run's attempt.
        troubles: where lost workers are noted.
        tries: the training's; `WorkerWatch` has the same object.
        metric: by which the best checkpoint is chosen, if any.
    """

    def __init__(self, stage: str, attempt: int, troubles: Troubles, tries: Tries, metric: str | None = None) -> None:
        self._stage = stage
        self._attempt = attempt
        self._troubles = troubles
        self._tries = tries
        self._metric = metric
        self._recorder: Recorder | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        # This runs in the controller.
        self.__dict__.update(state)
        deaths.heed_memory_kills()
        deaths.clean_up_failed_starts(self._not_started)
        spared.spare_actors()
        snapshots.write_whole()

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Record what rank 0 reported, unless ``raykube.report`` has recorded it in the worker."""
        del run_context
        name = checkpoint.path.rpartition("/")[2] if checkpoint else None
        if name:
            self._tries.save()
        if name and checkpoints.is_ours(name):
            return
        # Made here, not in the constructor: this object travels to the controller by pickle.
        path = storage.join(self._stage, wire.PLAIN_METRICS_FILE)
        self._recorder = self._recorder or Recorder(path, self._attempt)
        self._recorder.add(as_reported(scalars(metrics[0]), self._metric), name)
        self._recorder.flush()

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """End the run at once when a retry would only raise the same again.

        Raises:
            LoopError: in that case; Ray does not retry after an error in a callback.
        """
        del run_context
        if self._is_over():
            return
        self._note(worker_exceptions)
        if any(map(is_bug, worker_exceptions.values())) or self._tries.end(worker_exceptions):
            raise LoopError(worker_exceptions)

    def _not_started(self, failures: Mapping[int, BaseException]) -> None:
        if self._is_over():
            return
        self._note(failures)
        self._tries.fail(failures)

    def _is_over(self) -> bool:
        """Whether Tune has ended this trial; if so, silence Ray until this process, too, is ended."""
        if over := self._tries.are_over:
            # Not earlier: when it starts, Ray sets its loggers anew. It would show a traceback for each dead worker.
            logging.getLogger("ray.train").setLevel(logging.CRITICAL)
        return over

    def _note(self, failures: Mapping[int, BaseException]) -> None:
        """Note a lost worker, for whoever asks for the status of the run while it goes on."""
        if losses := {rank: error for rank, error in failures.items() if is_loss(error)}:
            self._troubles.note(describe(*worst(losses)))


class WorkerWatch(WorkerGroupCallback):  # type: ignore[misc] # Ray's base class has no types
    """Notes workers whose node is taken away, and removes the note of a wait for workers once they start."""

    def __init__(self, troubles: Troubles, tries: Tries) -> None:
        self._troubles = troubles
        self._tries = tries
        self._told: list[int] = []

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Remove the note of a wait, and count a new try."""
        del worker_group
        self._told = []
        self._tries.begin()
        self._troubles.wait_is_over()

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Note workers that Ray is about to end and replace: often no exception reports them later."""
        try:
            leaving = worker_group_status.get_preemption_info()
            ranks = leaving.preempted_ranks if leaving else []
        except AttributeError:  # internals of Ray, which may move
            return
        if ranks and ranks != self._told:
            self._told = ranks
            who = f"worker{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
            self._troubles.note(f"{who}: on a node that is taken away, as by an eviction or the deletion of its pod")


class Ranks(WorkerGroupCallback):  # type: ignore[misc] # Ray's base class has no types
    """Notes where Ray keeps the output of each rank, whenever workers are started.

    Args:
        path: the file, which each start overwrites.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Ask the workers and write their answers; a failure to do so must not end the training."""
        import ray

        try:
            found = ray.get([worker.execute_async(_whereabouts) for worker in worker_group.get_workers()])
            storage.write_text(self._path, json.dumps([where for _, *where in sorted(found)]))
        except (AttributeError, OSError) as error:  # Ray's internals have moved, or the disk fails
            log.warning("the output of single ranks will not be found: %s", error)


def _whereabouts() -> tuple[int, str, str]:
    """Return this worker's rank, its node id and its worker id; the last is in the names of its log files."""
    import ray.train

    context = ray.get_runtime_context()
    return ray.train.get_context().get_world_rank(), context.get_node_id(), context.get_worker_id()
