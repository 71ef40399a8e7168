"""The worker's side of ``train``: what surrounds a loop, and ``report``."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raykube import wire
from raykube.errors import ConfigError
from raykube.inside import checkpoints, outputs, storage
from raykube.inside.failures import brought, mark
from raykube.inside.history import Recorder
from raykube.inside.scalars import scalars
from raykube.inside.scores import scored

_ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
#: In a stage's folder once the loop has returned.
RETURNED_FILE = "returned"
_NAMED = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)


@dataclass
class _Session:
    """One worker's running loop, and whether it has reported yet. Only rank 0 has a recorder."""

    recorder: Recorder | None
    path: str
    has_reported: bool = False


_session: _Session | None = None


def report(metrics: Mapping[str, Any], checkpoint: Any = None) -> None:
    """Report metrics from a loop, at every step if you like; with a checkpoint, save that too.

    Without a checkpoint this appends to a buffer: no file, no network, no wait for other workers.
    Rank 0's metrics count. With a checkpoint, every rank has to call this equally often, as with
    ``ray.train.report``, and has to pass one: with ``checkpoint if rank == 0 else None``, as is usual there,
    rank 0 would wait for the others in vain.

    Args:
        metrics: names to numbers, strings, booleans; numpy and torch scalars are fine.
        checkpoint: a dict of states, which rank 0 saves (directly if the storage is a folder; to a URI,
            the upload goes on beside the training); or a folder or a ``ray.train.Checkpoint``, which is
            in the storage when this returns.

    Raises:
        ConfigError: this is called outside of a loop; a metric is not a single number or string, or its
            name is not text; or the checkpoint is none of these, or its tensors are spread over the workers.
    """
    session = _session
    if session is None:
        raise ConfigError(
            "raykube.report was called outside of a training loop",
            why="there is no run that the metrics could belong to",
            next_step="call it in the function that you pass to raykube.train or raykube.sweep",
        )
    session.has_reported = True
    if checkpoint is None:
        if session.recorder is not None:  # the other ranks' rows are dropped: not worth a copy of a tensor
            session.recorder.add(scalars(metrics, defer=True))
        return
    _report_saved(session, scalars(metrics), checkpoint)


def refuse_within(verb: str) -> None:
    """Refuse `verb` within a loop, where it would take the files of the loop's stage for its own.

    Raises:
        ConfigError: this is a worker that runs a loop.
    """
    if _session is not None:
        raise ConfigError(
            f"raykube.{verb} was called within a training loop",
            why="every worker would start it, and it would take the files of this training for its own",
            next_step="call it in the script, before or after the training; for a search over it, raykube.sweep",
        )


def _report_saved(session: _Session, metrics: dict[str, Any], checkpoint: Any) -> None:
    import ray.train

    name = checkpoints.new_name(time.time())
    sent = _report_arguments(checkpoint, storage.join(session.path, name), saves=session.recorder is not None)
    if session.recorder is not None:
        session.recorder.add(metrics, name)  # only now: the checkpoint might not have been saved
        session.recorder.flush()  # rows up to a checkpoint must survive a worker that dies after it
    ray.train.report(metrics, checkpoint_dir_name=name, **sent)


def _report_arguments(checkpoint: Any, target: str, *, saves: bool) -> dict[str, Any]:
    """Return a checkpoint as arguments of ``ray.train.report``; rank 0 first saves one that is a dict of states.

    Raises:
        ConfigError: it is no checkpoint, or its tensors are spread over the workers.
    """
    import ray.train

    if isinstance(checkpoint, ray.train.Checkpoint):
        return {"checkpoint": checkpoint}
    if not isinstance(checkpoint, Mapping):
        # The caller's folder may be gone as soon as report returns, so this waits for the copy.
        return {"checkpoint": ray.train.Checkpoint(_folder(checkpoint, saves=saves))}
    checkpoints.require_whole(checkpoint)  # on every rank: the others would wait for the one that refuses
    uploads = storage.is_uri(target)
    mode = ray.train.CheckpointUploadMode
    own = None
    if saves:
        folder = tempfile.mkdtemp(prefix="raykube-checkpoint-") if uploads else target
        checkpoints.save(checkpoint, folder)
        own = ray.train.Checkpoint(folder)
    return {
        "checkpoint": own,
        # In a folder, the checkpoint is in its place already. Ray then holds one report back until the controller has
        # taken the one before, so that a loop cannot run far ahead of what would survive its death.
        "checkpoint_upload_mode": mode.ASYNC if uploads else mode.NO_UPLOAD,
        "delete_local_checkpoint_after_upload": uploads,
    }


def _folder(given: Any, *, saves: bool) -> str:
    """Return a checkpoint folder's path, checked on rank 0: others may have it only once Ray has waited for rank 0."""
    step = 'report a dict of states, as {"model": model.state_dict()}, or the folder that holds the files'
    if not isinstance(given, str | os.PathLike):
        raise ConfigError(f"a checkpoint is a dict of states or a folder, not {type(given).__name__}", next_step=step)
    path = os.fspath(given)
    if saves and not storage.is_uri(path) and not Path(path).is_dir():
        found = "is a file" if Path(path).exists() else "is not there"
        raise ConfigError(f"the checkpoint {path} {found}", why="a checkpoint is a folder", next_step=step)
    return path


@dataclass(frozen=True)
class Loop:
    """A loop with what raykube puts around it, as sent to each worker.

    Attributes:
        body: the user's function, of no or one argument.
        stage: the stage's folder or URI.
        attempt: the run's attempt.
        metric, mode: by which the best checkpoint is chosen, if any.
    """

    body: Callable[..., Any]
    stage: str
    attempt: int
    metric: str | None = None
    mode: str = "min"

    def __call__(self, config: dict[str, Any]) -> None:
        """Run the loop; its rows are recorded to the last one, however it ends.

        What the loop returns stays here: Ray would pickle it, and if it cannot, as with some models or data, take the
        worker for dead.
        """
        # Ray gives its workers the submission's environment; only the driver has the number of a later attempt.
        os.environ[wire.ATTEMPT] = str(self.attempt)
        with _recording(self.stage, self.attempt), _clean_reports(self.metric, self.mode), _equal_reports():
            try:
                call(self.body, config)
            except BaseException as error:
                mark(error, traceback.format_exc())
                if (told := brought(error)) is not error:
                    raise told from error
                raise


def call(body: Callable[..., Any], config: dict[str, Any]) -> None:
    """Call a loop, with `config` if it takes one.

    Raises:
        ConfigError: it cannot be called so, or the call did not run it; for a wrapped loop, only the call shows that.
    """
    done = body(config) if takes_config(body, config) else body()
    if inspect.iscoroutine(done):
        done.close()  # Python would warn
    if _session is not None and _session.has_reported:  # it ran, and may return what it likes
        return
    # Not every awaitable: a loop may return a Ray ObjectRef.
    if inspect.iscoroutine(done) or inspect.isgenerator(done) or inspect.isasyncgen(done):
        raise _not_run(body)


def takes_config(body: Callable[..., Any], config: Mapping[Any, Any]) -> bool:
    """Whether a loop is called with `config`; one that can do without is not called with an empty one.

    Raises:
        ConfigError: it needs more than one argument, takes no positional one although there is a config, or has several
            optional ones for it; or it is no function, or one that a call does not run.
    """
    _runs_when_called(body)
    parameters = _signature(body).parameters.values()
    needed = [each for each in parameters if each.default is each.empty and each.kind not in _ANY]
    placed = [each for each in parameters if each.kind not in _NAMED]
    if len(needed) > 1:
        raise ConfigError(
            f"the loop takes {len(needed)} arguments ({', '.join(each.name for each in needed)})",
            why="a loop is called with its config, or with nothing",
            next_step="put all settings into the config",
        )
    if not placed and (needed or config):
        raise ConfigError(
            f"the loop takes no config: {getattr(body, '__name__', body)}{_signature(body)}",
            why="a loop is called with its config as its one argument, not by a name",
            next_step="write def loop(config), or leave the config out",
        )
    if config and not needed and len(placed) > 1:
        raise ConfigError(
            f"the loop has {len(placed)} arguments to do without, and a config is one: {_signature(body)}",
            why="which of them it is meant for cannot be known",
            next_step="write def loop(config), and put the rest into the config",
        )
    return bool(needed or (config and placed))


def _runs_when_called(body: Any) -> None:
    if not callable(body):
        raise ConfigError(f"the loop must be a function, not {type(body).__name__}")
    kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    if any(kind(each) for kind in kinds for each in (body, type(body).__call__)):
        raise _not_run(body)


def _not_run(body: Any) -> ConfigError:
    return ConfigError(
        f"the loop {getattr(body, '__name__', body)} is a generator or a coroutine",
        why="to call it does not run it: the training would end at once, and as if it had gone well",
        next_step="write it without yield and async; within it, asyncio.run(...) runs a coroutine",
    )


def _signature(body: Callable[..., Any]) -> inspect.Signature:
    """Return a loop's signature: that of its wrapper if it is decorated, unless the wrapper takes any arguments."""
    own = inspect.signature(body, follow_wrapped=False)
    any_at_all = own.parameters and all(each.kind in _ANY for each in own.parameters.values())
    return inspect.signature(body) if any_at_all else own


@contextmanager
def _recording(stage: str, attempt: int) -> Iterator[None]:
    global _session  # noqa: PLW0603 # report() has no other way to find the loop it was called from
    import ray.train

    recorder = None
    rank = ray.train.get_context().get_world_rank()
    if rank == 0:
        recorder = Recorder(storage.join(stage, wire.METRICS_FILE), attempt)
        checkpoints.remove_drafts(stage)
        if goes_on := ray.train.get_checkpoint():
            checkpoints.remove_unheard(stage, goes_on.path.rpartition("/")[2])
    _session = _Session(recorder, stage)
    try:
        with outputs.kept(storage.join(stage, wire.rank_log(rank))):
            yield
        if recorder is not None:
            with contextlib.suppress(OSError):  # it only tells that a trial which Tune then ends was not cut short
                storage.write_text(storage.join(stage, RETURNED_FILE), "")
    finally:
        _session = None
        if recorder is not None:
            recorder.close()


@contextmanager
def _clean_reports(metric: str | None, mode: str) -> Iterator[None]:
    """Convert the arguments of ``ray.train.report``, which ours calls too, to what Ray's controller can take.

    The controller dies of numpy and torch scalars, and misjudges checkpoints without `metric`.
    """
    try:
        from ray.train.v2._internal.execution import context
        from ray.train.v2._internal.execution.train_fn_utils import get_train_fn_utils
    except ImportError:  # an internal module of Ray, which may move; loops then have to convert by themselves
        yield
        return
    # Named by its file instead of ray.train, this logger escapes Ray Train's own log level.
    logging.getLogger(context.__file__).setLevel(logging.WARNING)
    utils = get_train_fn_utils()
    send = utils.report

    def clean(metrics: Mapping[str, Any], checkpoint: Any = None, *args: Any, **kwargs: Any) -> None:
        plain = scalars(metrics)
        if _session is not None:
            _session.has_reported = True
        send(scored(plain, metric, mode) if checkpoint else plain, checkpoint, *args, **kwargs)

    utils.report = clean
    try:
        yield
    finally:
        del utils.report


@contextmanager
def _equal_reports() -> Iterator[None]:
    """Turn Ray's timeout of ranks that waited for each other into an error in plain words.

    Raises:
        ConfigError: the ranks waited in vain.
    """
    import ray.exceptions

    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if "CollectiveTimeout" not in type(error.cause).__name__:
            raise
        missing = getattr(error.cause, "_missing_ranks", "some")
        raise ConfigError(
            f"the workers reported unequally often: {missing} did not join",
            why="report with a checkpoint, and ray.train.report, wait for all workers",
            next_step="call it on every rank, without `if rank == 0` around it; "
            "set RAY_TRAIN_COLLECTIVE_TIMEOUT_S if a worker is only slow",
        ) from error
