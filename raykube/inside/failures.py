"""Why training failed: finds in Ray's nested exceptions the one that a person needs to see."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping

from raykube.errors import ConfigError, Failure
from raykube.inside.traces import own_line

#: Stands for the rank of a worker that died before it had one.
STARTING = -1
_TAIL = 20
_TRACEBACK = "raykube_traceback"
_WHERE = "raykube_where"
_OUT_OF_MEMORY = "running low on memory"
# Ray's words for a dead process and for a dead node.
_DEAD = ("is dead because", "died because its node has died")
#: What to do about a bug in a loop, when the error is shown with its traceback.
TRACEBACK_STEP = "read the traceback below; it is the loop's own"
#: What to do about the memory monitor's kills.
MEMORY_STEP = "load less at a time, run fewer workers at once, or give their machine or pod more memory"
#: What to do about a GPU whose memory does not suffice.
GPU_MEMORY_STEP = "use a smaller batch or model, or a GPU with more memory"
# Words of errors of a device, or of a connection to another worker. A retry may survive them.
_PASSING = re.compile(
    r"CUDA|CUDNN|cuDNN|CUBLAS|cuBLAS|\bHIP\b|NCCL|[Gg]loo|[Cc]onnection|[Ss]ocket|[Tt]ime(d |-)?out|Dist[A-Z]\w+Error"
)
# Exceptions that the same code on the same data raises again. RuntimeError is not one of them: Torch, NCCL, gloo and
# CUDA raise it for failures that a retry may survive.
_BUGS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ConfigError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    pickle.PicklingError,
    SyntaxError,
    SystemExit,
    TypeError,
    ValueError,
)


class LoopError(Exception):
    """A bug in a loop, on its way from Ray's controller to the driver."""

    def __init__(self, failures: Mapping[int, BaseException]) -> None:
        super().__init__(failures)
        self.failures = dict(failures)


class StandIn(Exception):
    """Stands in, with the same words, for a loop's exception that pickle cannot bring to the driver."""

    def __init__(self, said: str, *, bug: bool = False) -> None:
        super().__init__(said)
        self.bug = bug


def brought(error: BaseException) -> BaseException:
    """Return a loop's marked exception, or a :class:`StandIn` if pickle cannot bring it to the driver.

    Ray takes a worker for dead if it cannot read the worker's exception.
    """
    from ray import cloudpickle

    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:  # noqa: BLE001 # whatever the exception's own methods raise
        stand_in = StandIn(said(error), bug=is_bug(error))
        mark(stand_in, error.__dict__[_TRACEBACK])
        return stand_in
    return error


def said(failure: BaseException) -> str:
    """Return the type and the message of an exception; for a failed Ray task, those of the exception in the task."""
    own = _task_exception(failure)
    return str(own) if isinstance(own, StandIn) else f"{type(own).__name__}: {own}"


def _task_exception(failure: BaseException) -> BaseException:
    """Return the exception that a Ray task called by a loop raised, else the exception itself."""
    while _is_of_task(failure) and isinstance(cause := getattr(failure, "cause", None), BaseException):
        failure = cause
    return failure


def _is_of_task(failure: BaseException) -> bool:
    return any((base.__module__, base.__name__) == ("ray.exceptions", "RayTaskError") for base in type(failure).__mro__)


def mark(error: BaseException, text: str) -> None:
    """Attach its traceback `text` to a loop's exception: pickle would lose it on the way to the driver.

    The line of the user's code in it is attached, too: only the worker knows the working directory of the paths.
    """
    error.__dict__[_TRACEBACK] = text
    error.__dict__[_WHERE] = own_line(text)


def is_bug(failure: BaseException) -> bool:
    """Whether an exception would come again on a retry, unlike one from a worker or a device that died."""
    own = _task_exception(failure)
    return isinstance(own, _BUGS) or (isinstance(own, StandIn) and own.bug)


def is_device_full(failure: BaseException) -> bool:
    """Whether a GPU had no memory left; that is no bug, since what a killed worker held there may not be free yet."""
    kind = type(failure)
    of_torch = kind.__name__ == "OutOfMemoryError" and kind.__module__.partition(".")[0] == "torch"
    return of_torch or is_gpu_memory(str(failure))


def is_gpu_memory(words: str) -> bool:
    """Whether PyTorch's words say that a GPU had no memory left, for a tensor or to be used at all."""
    return "CUDA out of memory" in words or "CUDA error: out of memory" in words


def memory_step(words: str) -> str:
    """Return what to do if a machine or a GPU ran out of memory; "" if the words tell of neither."""
    if is_memory_kill(words):
        return MEMORY_STEP
    return GPU_MEMORY_STEP if is_gpu_memory(words) else ""


def is_loss(failure: BaseException) -> bool:
    """Whether Ray reports that a worker went away, and not that the worker, or a task that it called, raised."""
    of_ray = any(base.__module__.startswith("ray.") for base in type(failure).__mro__)
    return of_ray and not _is_of_task(failure) and _TRACEBACK not in failure.__dict__


def worst(failures: Mapping[int, BaseException]) -> tuple[int, BaseException]:
    """Return (rank, failure) of the exception that explains the others.

    A rank that raises leaves the rest with broken connections, so a bug comes before a RuntimeError, that
    before an error of a connection, and all of them before a lost worker. A worker that the memory monitor killed,
    or whose GPU is full, did not fail because of another one, so it comes right after a bug.
    """

    def order(item: tuple[int, BaseException]) -> tuple[bool, bool, bool, bool, int]:
        rank, failure = item
        lost = is_loss(failure)
        full = is_device_full(failure) or (lost and is_memory_kill(str(failure)))
        return (not is_bug(failure), not full, lost, _may_pass(failure), rank)

    return min(failures.items(), key=order)


def recurring(failures: Mapping[int, BaseException]) -> str:
    """Return the loop's error with its line, as text that is the same when a retry raises it again.

    It is "" if a retry may succeed: a worker was lost, or the error is of a device, a connection or the system.
    """
    _, cause = worst(failures)
    if any(map(is_loss, failures.values())) or is_device_full(cause) or _may_pass(cause):
        return ""
    return f"{cause.__dict__.get(_WHERE, '')}: {said(cause)}"


def _may_pass(failure: BaseException) -> bool:
    """Whether an error is of a device, a connection or the system; a missing file stays missing."""
    own = _task_exception(failure)
    of_system = isinstance(own, OSError) and not isinstance(own, FileNotFoundError)
    return of_system or bool(_PASSING.search(said(failure)))


def is_of_taken_node(failures: Mapping[int, BaseException]) -> bool:
    """Whether a worker was lost because its node was taken away, which Ray does not count as a failure."""
    own = (getattr(failure, "health_check_failure", failure) for failure in failures.values())
    return any(getattr(failure, "preempted", False) is True for failure in own)


def explain(error: BaseException) -> tuple[Failure, BaseException]:
    """Return why a ``TrainingFailedError`` happened, and the exception to chain it to."""
    inner = getattr(error, "controller_failure", error)
    failures = getattr(inner, "failures", None) or getattr(inner, "worker_failures", None)
    if not failures and (words := death(str(inner))):
        return _loss("ControllerDied", f"the controller of the training: {words}"), inner
    if not failures:
        return Failure("TrainingFailed", str(inner) or type(inner).__name__, tail=_tail(str(error))), inner
    rank, cause = worst(failures)
    if is_loss(cause):
        return _loss("WorkerDied", describe(rank, cause)), cause
    told = cause.__dict__.get(_TRACEBACK) or (str(cause) if _is_of_task(cause) else "")  # with the task's traceback
    words, step = _advice(cause, TRACEBACK_STEP if told else "")
    reason = "LoopFailed"
    if is_device_full(cause):
        # CUDA's advice on finding errors, in the lines after the first, does not help here.
        reason, step, words = "GpuOutOfMemory", GPU_MEMORY_STEP, words.partition("\n")[0]
    return Failure(reason, f"{words} ({_who(rank, cause)})", tail=_tail(told), next_step=step), cause


def _who(rank: int, error: BaseException) -> str:
    """Return which worker raised an error, and in which line of the user's code."""
    where = error.__dict__.get(_WHERE)
    return f"worker {rank}, {where}" if where else f"worker {rank}"


def _advice(cause: BaseException, otherwise: str) -> tuple[str, str]:
    """Return what a loop's exception said, and what to do: a ConfigError's own next step, else `otherwise`."""
    own = _task_exception(cause)
    if isinstance(own, ConfigError) and own.next_step:
        return ": ".join(filter(None, (own.what, own.why))), own.next_step
    return said(cause), otherwise


def _tail(text: str) -> list[str]:
    return text.strip().splitlines()[-_TAIL:]


def _loss(reason: str, words: str) -> Failure:
    if is_memory_kill(words):
        return Failure("OutOfMemory", words, next_step=MEMORY_STEP)
    step = "look for an out-of-memory kill or a lost node in the logs; raise RAYKUBE_MAX_FAILURES to try more often"
    return Failure(reason, words, next_step=step)


def describe(rank: int, failure: BaseException) -> str:
    """Return one line that says which worker was lost, and how; or which one raised, and what."""
    if not is_loss(failure):
        return f"{_who(rank, failure)}: {said(failure).strip().splitlines()[0]}"
    lines = str(failure).strip().splitlines() or [type(failure).__name__]
    who = f"worker {rank}" if rank != STARTING else "a worker, at its start"
    return f"{who}: {death(str(failure)) or lines[0]}"


def death(text: str) -> str:
    """Return the line in which Ray says how a process died; empty if there is none."""
    told = next((line.strip() for line in text.splitlines() if is_memory_kill(line) or _is_death(line)), "")
    return f"Ray's memory monitor killed it: {told}" if is_memory_kill(told) else told


def _is_death(line: str) -> bool:
    return any(words in line for words in _DEAD)


def is_memory_kill(words: str) -> bool:
    """Whether Ray's words say that its memory monitor killed a process."""
    return _OUT_OF_MEMORY in words
