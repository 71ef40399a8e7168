"""Why training failed: Ray's nested exceptions read back to the one that a person needs to see."""

from __future__ import annotations

from collections.abc import Mapping

from raykube.errors import ConfigError, Failure

_TAIL = 20
_TRACEBACK = "raykube_traceback"
# Exceptions that the same code on the same data raises again. Torch, NCCL, gloo and CUDA speak RuntimeError.
_BUGS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ConfigError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
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


def mark(error: BaseException, text: str) -> None:
    """Note on an exception of a loop the traceback `text`, which pickle would lose on its way to the driver."""
    error.__dict__[_TRACEBACK] = text


def is_bug(failure: BaseException) -> bool:
    """Tell an exception that would come again on a retry from a worker or a device that died."""
    return isinstance(failure, _BUGS)


def is_loss(failure: BaseException) -> bool:
    """Tell a worker that went away, of which Ray speaks, from one that raised."""
    return type(failure).__module__.startswith("ray.") and _TRACEBACK not in failure.__dict__


def worst(failures: Mapping[int, BaseException]) -> tuple[int, BaseException]:
    """Return (rank, failure) of the exception that explains the others.

    A rank that raises leaves the rest with broken connections, so a bug comes before a RuntimeError,
    and both before a lost worker.
    """

    def order(item: tuple[int, BaseException]) -> tuple[bool, bool, int]:
        rank, failure = item
        return (not is_bug(failure), is_loss(failure), rank)

    return min(failures.items(), key=order)


def explain(error: BaseException) -> tuple[Failure, BaseException]:
    """Return why a ``TrainingFailedError`` happened, and the exception to chain it to."""
    inner = getattr(error, "controller_failure", error)
    failures = getattr(inner, "failures", None) or getattr(inner, "worker_failures", None)
    if not failures:
        return Failure("TrainingFailed", str(inner) or type(inner).__name__, tail=_tail(str(error))), inner
    rank, cause = worst(failures)
    if is_loss(cause):
        step = "look for an out-of-memory kill or a lost node in the logs; raise RAYKUBE_MAX_FAILURES to try more often"
        return Failure("WorkerDied", f"worker {rank}: {_death(cause)}", next_step=step), cause
    message = f"{type(cause).__name__}: {cause} (worker {rank})"
    step = "read the traceback below; it is the loop's own"
    return Failure("LoopFailed", message, tail=_tail(cause.__dict__.get(_TRACEBACK, "")), next_step=step), cause


def _tail(text: str) -> list[str]:
    return text.strip().splitlines()[-_TAIL:]


def _death(failure: BaseException) -> str:
    lines = str(failure).strip().splitlines() or [type(failure).__name__]
    return next((line for line in lines if "is dead because" in line), lines[0])
