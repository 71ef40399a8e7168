"""Why training failed: Ray's nested exceptions read back to the one that a person needs to see."""

from __future__ import annotations

from collections.abc import Mapping

from raykube.errors import ConfigError, Failure

_TAIL = 20
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


def raised(failure: BaseException) -> BaseException:
    """Return what the loop itself raised: Ray hands it over in a wrapper that holds the traceback."""
    inner = getattr(failure, "_base_exc", None)
    return inner if isinstance(inner, BaseException) else failure


def is_bug(failure: BaseException) -> bool:
    """Tell an exception that would come again on a retry from a worker or a device that died."""
    return isinstance(raised(failure), _BUGS)


def worst(failures: Mapping[int, BaseException]) -> tuple[int, BaseException]:
    """Return (rank, failure) of the exception that explains the others.

    A rank that raises leaves the rest with broken connections, so a bug comes before a RuntimeError,
    and both before a lost actor.
    """

    def order(item: tuple[int, BaseException]) -> tuple[bool, bool, int]:
        rank, failure = item
        return (not is_bug(failure), not hasattr(failure, "_base_exc"), rank)

    return min(failures.items(), key=order)


def explain(error: BaseException) -> tuple[Failure, BaseException]:
    """Return why a ``TrainingFailedError`` happened, and the exception to chain it to."""
    inner = getattr(error, "controller_failure", error)
    failures = getattr(inner, "failures", None) or getattr(inner, "worker_failures", None)
    if not failures:
        return Failure(
            "TrainingFailed", str(inner) or type(inner).__name__, tail=str(error).splitlines()[-_TAIL:]
        ), inner
    rank, failure = worst(failures)
    cause = raised(failure)
    if cause is failure:
        step = "look for an out-of-memory kill or a lost node in the logs; raise RAYKUBE_MAX_FAILURES to try more often"
        return Failure("WorkerDied", f"worker {rank}: {_first_line(failure)}", next_step=step), cause
    message = f"{type(cause).__name__}: {cause} (worker {rank})"
    tail = str(failure).strip().splitlines()[-_TAIL:]
    return Failure("LoopFailed", message, tail=tail, next_step="read the traceback below; it is the loop's own"), cause


def _first_line(failure: BaseException) -> str:
    lines = str(failure).strip().splitlines()
    return lines[0] if lines else type(failure).__name__
