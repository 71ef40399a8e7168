"""``train``: a plain Ray Train loop, run with the scale and the storage of the place where it runs."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

from raykube import wire
from raykube.errors import ConfigError, RunFailed
from raykube.inside import joining, storage, tracking, uncaught
from raykube.inside.failures import explain
from raykube.inside.history import Narrator, Row, following
from raykube.inside.loops import Loop
from raykube.inside.mlflowrun import Subject
from raykube.inside.room import require
from raykube.inside.scores import as_reported
from raykube.inside.stages import Stage, work
from raykube.inside.tasks import Task, as_dict, published, sent_by_pickle, wrong_arguments
from raykube.inside.tries import Tries

log = logging.getLogger("raykube")
#: How often a training on a range of workers looks whether it can grow. The look is only at what Ray has reserved for
#: it; growing is a restart from the last checkpoint. Ray's default is 60 s.
_RESIZE_S = 5.0


def train(
    loop: Callable[..., Any],
    config: Mapping[str, Any] | None = None,
    *,
    experiment: str = "default",
    metric: str | None = None,
    mode: Literal["min", "max"] = "min",
    model: tracking.Loader | None = None,
) -> wire.Result:
    """Train with PyTorch on as many workers as the place gives, and return how it ended.

    A run that was killed goes on from its last complete checkpoint when it is started again under the
    same name. Workers that die are replaced, at most ``RAYKUBE_MAX_FAILURES`` times. An error of the loop that a
    retry raises again, at the same line, ends the training.

    Args:
        loop: a Ray Train loop: a function of its config, or of nothing, that each worker calls.
        config: passed to the loop, unless it is empty and the loop can do without; recorded as parameters.
        experiment: groups runs, and is the registered model's name, with _ for / and colons.
        metric: by which the best checkpoint is chosen; None means the last one.
        mode: whether a small (``"min"``) or large (``"max"``) metric is good.
        model: makes a ``torch.nn.Module`` from a checkpoint's folder; if given, the best model is
            logged and registered in MLflow.

    Raises:
        ConfigError: wrong arguments or environment, no Ray, or more workers than the cluster fits.
        Conflict: a run of this name has finished, or another script of this run trains, too.
        RunFailed: the loop raised, or workers died too often; chained to the loop's own exception. Or `model` raised
            (``ModelFailed``) once the training was complete; the error names the checkpoint, which is kept.
    """
    joining.check_installed()
    joining.show_progress()
    task = Task(loop, as_dict(config or {}), metric, mode)
    if problems := wrong_arguments(experiment, metric, model):
        raise ConfigError.of("this training cannot be run", problems)
    stage = Stage.next("train", experiment)
    place = stage.place
    if done := stage.begin(work("train", loop, metric, mode)):
        return done
    log_start(stage)
    with uncaught.kept(place), joining.connected():
        require(place.scale, place.scale.workers, stage.troubles.wait)
        subject = Subject(experiment, stage.path, task.config, files=stage.files)
        with tracking.record(place, subject) as tracker:
            result = fit(stage, task, [Narrator(), tracker.rows])
            return stage.conclude(_judged(stage, task, result), tracker, model)


def log_start(stage: Stage) -> None:
    """Say what starts and where its files lie."""
    log.info("run %s, %s, files in %s", stage.place.run, stage.name, stage.path)


def fit(stage: Stage, task: Task, sinks: Sequence[Callable[[list[Row]], None]]) -> wire.Result:
    """Run one Ray Train run in the connected cluster, and hand its rows to `sinks` as they arrive.

    Raises:
        ConfigError: pickle does not take the config.
        KeyboardInterrupt: Ctrl-C ended the training.
        RunFailed: the training did not end well.
    """
    from ray.exceptions import RayActorError
    from ray.train import TrainingFailedError

    trainer = _trainer(stage, task)
    try:
        follows = following(stage.files, sinks)
        with follows as follower, own_signals(), sent_by_pickle(task.config), _interrupts(trainer):
            outcome = trainer.fit()
    except (TrainingFailedError, RayActorError) as error:
        failure, cause = explain(error)
        raise RunFailed.of(stage.place.run, failure) from cause
    result = _result(stage, task, outcome)
    return replace(result, notes=(*result.notes, *follower.troubles))


@contextmanager
def _interrupts(trainer: Any) -> Iterator[None]:
    """Raise KeyboardInterrupt for a Ctrl-C within the block: Ray Train handles it, and then exits the script.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    seen: list[int] = []
    register: Any = getattr(trainer, "_register_sigint_handler", None)  # an inner part of Ray, which may move

    def registered(controller: Any) -> None:
        register(controller)
        of_ray: Any = signal.getsignal(signal.SIGINT)

        def note(number: int, frame: Any) -> None:
            seen.append(number)
            of_ray(number, frame)

        signal.signal(signal.SIGINT, note)

    if register:
        trainer._register_sigint_handler = registered  # noqa: SLF001
    try:
        yield
    except BaseException:
        if seen:
            raise KeyboardInterrupt from None
        raise
    if seen:  # the training had just ended
        raise KeyboardInterrupt


def _trainer(stage: Stage, task: Task) -> Any:
    from ray.train import FailureConfig, LoggingConfig, RunConfig
    from ray.train.torch import TorchTrainer

    from raykube.inside.controller import Controller, Ranks, WorkerWatch

    place = stage.place
    tries = Tries(stage.path, stage.troubles.name, place.max_failures, stage.ended)
    controller = Controller(stage.path, place.attempt, stage.troubles, tries, task.metric)
    return TorchTrainer(
        Loop(task.loop, stage.path, place.attempt, task.metric, task.mode),
        train_loop_config=task.config,
        torch_config=_backend(place.scale),
        scaling_config=_scaling(place.scale),
        run_config=RunConfig(
            name=stage.name,
            storage_path=stage.parent,
            failure_config=FailureConfig(max_failures=place.max_failures),
            checkpoint_config=_keep(task),
            callbacks=[
                controller,
                Ranks(storage.join(place.path, wire.RANKS_FILE)),
                WorkerWatch(stage.troubles, tries),
            ],
            # Ray's own lines, several per checkpoint, would bury what a person looks for.
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


def _keep(task: Task) -> Any:
    from ray.train import CheckpointConfig

    # Ray keeps the last one besides the best, whatever the number.
    if task.metric is None:
        return CheckpointConfig(num_to_keep=2)
    return CheckpointConfig(num_to_keep=1, checkpoint_score_attribute=task.metric, checkpoint_score_order=task.mode)


def _backend(scale: wire.Scale) -> Any:
    from ray.train.torch import TorchConfig

    # Two ranks may get parts of one GPU, which NCCL refuses. Otherwise Ray chooses: NCCL on GPUs, gloo without.
    return TorchConfig(backend="gloo" if 0 < scale.gpus < 1 else None)


def _scaling(scale: wire.Scale) -> Any:
    from ray.train import ScalingConfig

    resources = {"CPU": scale.cpus} | ({"GPU": scale.gpus} if scale.gpus else {})
    return ScalingConfig(
        elastic_resize_monitor_interval_s=_RESIZE_S,
        num_workers=scale.workers,
        use_gpu=scale.gpus > 0,
        resources_per_worker=resources,
        accelerator_type=scale.accelerator or None,
    )


def _result(stage: Stage, task: Task, outcome: Any) -> wire.Result:
    result = wire.Result("train", stage.place.run, stage.path, params=published(task.config))
    kept = [(checkpoint, dict(metrics)) for checkpoint, metrics in outcome.best_checkpoints or []]
    if outcome.checkpoint is None:
        return replace(result, metrics=last_metrics(stage))
    best = task.best(kept) if task.metric else None
    chosen, metrics = best or (outcome.checkpoint, as_reported(dict(outcome.metrics or {}), task.metric))
    return replace(
        result,
        metrics=dict(metrics),
        checkpoint=storage.join(stage.path, chosen.path.rpartition("/")[2]),
    )


def _judged(stage: Stage, task: Task, result: wire.Result) -> wire.Result:
    """Return the result; if the metric did not choose its checkpoint, log that and add it to the notes."""
    if not task.metric or not result.checkpoint or task.best([(result, result.metrics)]):
        return result
    names = {name: None for row in stage.rows() if row["checkpoint"] for name in row["metrics"]}
    note = f"{task.without_metric}; the metrics of checkpoints are: {', '.join(names) or 'none'}"
    log.warning("%s", note)
    return replace(result, notes=(*result.notes, note))


def last_metrics(stage: Stage) -> dict[str, Any]:
    """Return the metrics of the last row of a stage; empty without rows."""
    found = stage.rows()
    return dict(found[-1]["metrics"]) if found else {}


@contextmanager
def own_signals() -> Iterator[Mapping[int, Any]]:
    """Restore the signal handlers that Ray Train and Tune would replace for good; yield those from before."""
    if threading.current_thread() is not threading.main_thread():
        yield {}
        return
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        yield handlers
    finally:
        for number, handler in handlers.items():
            # Only if it was replaced, and Python knows it: None is a handler set in C, as by faulthandler.
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
