"""The tree of errors, for both planes; modules subclass these for errors that they must tell apart.

::

    RaykubeError                   what, why, next_step
     + ConfigError(ValueError)     wrong input, found before anything is started; lists every problem
     |   + ManifestError           refused by the API server's strict validation
     + BackendError                the place answered no, or not at all; its own words in ``why``
     |   + NotFound                no run or service of that name
     |   + Conflict                the name is taken by something else
     |   + Forbidden               refused for lack of rights
     |   + Unreachable             no answer
     |   + ServiceFailed           the place took a service, but it did not come up
     + RunError                    a run did not end well
         + RunFailed               reason, exit_code, evidence, tail
         + RunStopped              somebody stopped it
         + WaitTimeout             the wait ended; the run is alive

A message says *what* happened, *why* in the words of whoever refused, and *next*: one thing to do.
Fields carry all of it, so nobody has to parse the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an input: ``path`` says where, as in ``workerGroupSpecs[0].replicas``."""

    path: str
    what: str
    next_step: str = ""

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        step = f" ({self.next_step})" if self.next_step else ""
        return f"{where}{self.what}{step}"


class RaykubeError(Exception):
    """Base of all errors of raykube."""

    def __init__(self, what: str, *, why: str = "", next_step: str = "") -> None:
        # args holds just `what`: an exception that crosses a Ray process boundary is rebuilt from
        # args and __dict__, and keyword-only arguments would make that rebuild fail.
        super().__init__(what)
        self.what = what
        self.why = why
        self.next_step = next_step

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append("  why:  " + self.why.replace("\n", "\n        "))
        if self.next_step:
            lines.append(f"  next: {self.next_step}")
        return "\n".join(lines)


class ConfigError(RaykubeError, ValueError):
    """Wrong input. ``problems`` holds every problem found, not just the first."""

    problems: tuple[Problem, ...] = ()

    @classmethod
    def of(cls, what: str, problems: Iterable[Problem], *, why: str = "", next_step: str = "") -> Self:
        """Make one error that lists all `problems` below the headline `what`."""
        error = cls(what, why=why, next_step=next_step)
        error.problems = tuple(problems)
        return error

    def __str__(self) -> str:
        head = super().__str__()
        return "\n".join([head, *(f"  - {problem}" for problem in self.problems)])


class ManifestError(ConfigError):
    """The API server's strict validation refused what was sent; nothing was made of it."""


class BackendError(RaykubeError):
    """The place (a local head, an API server) refused or failed; ``why`` holds its own words."""


class NotFound(BackendError):
    """No run or service of that name."""


class Conflict(BackendError):
    """The name is in use by something that differs from what was sent."""


class Forbidden(BackendError):
    """Refused for lack of rights."""


class Unreachable(BackendError):
    """No answer from the place."""


class ServiceFailed(BackendError):
    """A service was deployed but is not up, like a run that failed; ``why`` holds Serve's own words."""


@dataclass(frozen=True)
class Failure:
    """Why a run ended badly.

    Attributes:
        reason: one CamelCase word, as in ``EntrypointFailed`` or ``HeadDied``.
        message: the words of whoever saw it.
        exit_code: of the entrypoint; None when it never ended by itself.
        tail: the last lines of the driver's log, oldest first.
        next_step: one thing to do.
        where: the object and field that say so, as in ``pod/x-head-1: status.conditions[PodScheduled]``.
    """

    reason: str
    message: str
    exit_code: int | None = None
    tail: Sequence[str] = field(default_factory=tuple)
    next_step: str = ""
    where: str = ""


class RunError(RaykubeError):
    """A run did not end well."""


def install(extra: str) -> str:
    """Return the next step when an extra's packages are missing; raykube is on no package index yet."""
    return f"in a clone of raykube: pip install '.[{extra}]'"


def tail_title(tail: Sequence[str]) -> str:
    """Return the heading above the last lines of a log."""
    return f"last {len(tail)} lines of its log:" if len(tail) > 1 else "last line of its log:"


class RunFailed(RunError):
    """The run ended in FAILED. ``reason``, ``exit_code``, ``evidence``, ``where`` and ``tail`` say why."""

    reason: str = ""
    exit_code: int | None = None
    evidence: str = ""
    where: str = ""
    tail: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, failure: Failure) -> RunFailed:
        """Make the error of run `name` from its `failure`."""
        error = cls(f"run {name} failed: {failure.reason}", why=failure.message, next_step=failure.next_step)
        error.reason = failure.reason
        error.exit_code = failure.exit_code
        error.evidence = failure.message
        error.where = failure.where
        error.tail = tuple(failure.tail)
        return error

    def __str__(self) -> str:
        tail = [f"  {tail_title(self.tail)}", *(f"    {line}" for line in self.tail)] if self.tail else []
        seen = [f"  seen: {self.where}"] if self.where else []
        return "\n".join([super().__str__(), *seen, *tail])


class RunStopped(RunError):
    """The run was stopped before it ended."""


class WaitTimeout(RunError):
    """The wait ran out of time; the run itself is alive."""
