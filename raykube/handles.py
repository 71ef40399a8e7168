"""The handles: a `Run` of a job, an `Endpoint` of a service. Each is made again from its name alone."""

from __future__ import annotations

import contextlib
import math
import numbers
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, ClassVar

from raykube.backends import Backend, Kind, State, Status, serveapps, sources
from raykube.errors import ConfigError, Failure, NotFound, RunFailed, RunStopped, ServiceFailed, WaitTimeout
from raykube.wire import Result

__all__ = ["Endpoint", "Event", "Run", "State", "Status"]

_NOT_YET = ("WAITING", "PENDING")
#: So many are asked for their state at once: each takes several answers, of the API server and of its head.
_AT_ONCE = 8


@dataclass(frozen=True)
class Event:
    """A change that a wait saw.

    Attributes:
        time: Unix time in seconds.
        status: the new status.
    """

    time: float
    status: Status


OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class _Handle:
    """What a run and an endpoint have in common: a name and the place that knows it. Every call asks the place anew."""

    _kind: ClassVar[Kind]
    name: str
    backend: Backend

    @property
    def url(self) -> str:
        """Where to look: Ray's dashboard for a run, the HTTP address of its first application for a service."""
        return self.status().url

    def status(self) -> Status:
        """Return the state now. A service is RUNNING when every application answers.

        Raises:
            NotFound: it was deleted.
        """
        return self.backend.status(self.name, self._kind)

    def why(self) -> Failure:
        """Say in one cause and one next step why it is where it is."""
        return _cause(self.status())

    def _watch(self, done: Callable[[Status], bool], timeout_s: float | None, on_event: OnEvent | None) -> Status:
        """Follow the changes until `done` or the time is over; return the last status seen."""
        check_time(timeout_s)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        seen: Any = None
        for status in self.backend.changes(self.name, self._kind):
            reported = dict(status.progress), status.quiet_s
            change = (status.state, status.attempt, status.detail, status.failure, reported)
            if on_event and change != seen:
                on_event(Event(time.time(), status))
            seen = change
            if done(status) or (deadline is not None and time.monotonic() >= deadline):
                return status
        raise AssertionError("a backend's changes never end by themselves")


@dataclass(frozen=True)
class Run(_Handle):
    """A job that was submitted."""

    _kind = "job"

    def wait(self, *, timeout_s: float | None = None, on_event: OnEvent | None = None) -> Run:
        """Wait until the run has ended well, and return it.

        Args:
            timeout_s: seconds after which to give up waiting; the run itself goes on. A request that has been sent by
                then is waited for, up to a minute where the place takes it and is silent.
            on_event: called with every change of state, attempt or metrics, and each minute without new metrics.

        Raises:
            ConfigError: `timeout_s` is no time.
            RunFailed: it ended in FAILED; the error says why and what to do.
            RunStopped: somebody stopped it.
            WaitTimeout: it has not ended in time.
            NotFound: somebody deleted it meanwhile.
            Forbidden, Unreachable: the place refuses to tell, or did not answer for long (on this machine 30 s, on
                Kubernetes ten minutes).
        """
        last = self._watch(lambda status: status.is_terminal, timeout_s, on_event)
        if last.state == "FAILED":
            raise RunFailed.of(self.name, _cause(last))
        if last.state == "STOPPED":
            raise RunStopped(f"run {self.name} was stopped", next_step="submit it again under the same name to resume")
        if not last.is_terminal:
            raise WaitTimeout(
                f"run {self.name} is still {last.state} after {timeout_s:g} s",
                why=last.detail,
                next_step=f"it goes on; wait again with: raykube job wait {self.name}",
            )
        return self

    def logs(self, *, follow: bool = False, source: str = sources.DRIVER) -> Generator[str, None, None]:
        """Yield the lines of a log; with `follow` until the run has ended.

        Args:
            follow: whether to go on with what is to come.
            source: ``"driver"``: what the script printed, and what Ray shows there of its workers; ``"rank-N"``: all
                that this training worker printed, of the training that began last; ``"autoscaler"``, ``"events"``:
                on Kubernetes, the log of Ray's autoscaler, and what is noted about the run's objects.

        Raises:
            ConfigError: there is no such source, or not on this place.
            NotFound: this run has none, or not yet, and is not followed.
            BackendError: it was, and ended with its head, its node or its cluster, and no storage has kept it.
        """
        sources.rank_of(source)
        return self.backend.logs(self.name, self._kind, follow=follow, source=source)

    def result(self) -> Result | None:
        """Return what the script's last ``train`` or ``sweep`` returned; None when it called neither.

        Raises:
            BackendError: it cannot be read, or is gone with a cluster that had no storage.
        """
        return self.backend.result(self.name)

    def stop(self) -> None:
        """Stop the run and wait until it has. Its logs, checkpoints and metrics stay where ``status().storage`` says.

        Raises:
            BackendError: it did not stop within half a minute.
        """
        self.backend.stop(self.name, self._kind)

    def delete(self) -> None:
        """Stop the run and remove all that was kept of it, checkpoints too. Registered models stay.

        Raises:
            NotFound: there is none, or somebody deleted it or sent it again meanwhile; what has its name since is left
                alone.
        """
        self.backend.delete(self.name, self._kind)


@dataclass(frozen=True)
class Endpoint(_Handle):
    """A service that was deployed."""

    _kind = "service"

    def wait_ready(self, *, timeout_s: float = 600, on_event: OnEvent | None = None) -> Endpoint:
        """Wait until every application of the service answers, and return the endpoint.

        Raises:
            ConfigError: `timeout_s` is no time.
            ServiceFailed: an application failed to deploy; Serve's own words are in ``why``. After an update of a
                service it says so where what was deployed before goes on serving.
            WaitTimeout: not ready in time; Serve goes on trying.
        """
        last = self._watch(lambda status: status.state not in _NOT_YET, timeout_s, on_event)
        if last.state == "RUNNING":
            return self
        if last.state in _NOT_YET:
            next_step = f"raykube service status {self.name}"
            raise WaitTimeout(
                f"service {self.name} is not ready after {timeout_s:g} s", why=last.detail, next_step=next_step
            )
        raise _not_up(self.name, _cause(last))

    def logs(self, *, follow: bool = False) -> Generator[str, None, None]:
        """Yield the lines of the replicas' log; with `follow` until the service is taken down."""
        return self.backend.logs(self.name, self._kind, follow=follow)

    def delete(self) -> None:
        """Take the service down and forget it.

        Raises:
            NotFound: there is none, or somebody deleted it meanwhile; what has its name since is left alone.
        """
        self.backend.delete(self.name, self._kind)


def _cause(status: Status) -> Failure:
    # Before it runs there is no log.
    verb = "status" if status.state in _NOT_YET else "logs"
    next_step = f"raykube {status.kind} {verb} {status.name}"
    reason = "JobFailed" if (status.kind, status.state) == ("job", "FAILED") else status.state
    return status.failure or Failure(reason, status.detail, next_step=next_step)


def _not_up(name: str, why: Failure) -> ServiceFailed:
    what = f"service {name} is not up: {why.reason}"
    if why.reason == serveapps.UPDATE_FAILED:
        what = f"the update of {name} failed; {serveapps.GOES_ON}"
    # An error has no room for the lines that led to it.
    more = f"; all that Serve says: raykube service why {name}" if why.tail else ""
    return ServiceFailed(what, why=why.message, next_step=f"{why.next_step}{more}")


def check_time(timeout_s: float | None) -> None:
    """Refuse what is no time to wait; None is without an end.

    Raises:
        ConfigError: it is no number, or below 0.
    """
    # NaN, which is never over, is not above anything.
    if timeout_s is not None and not (isinstance(timeout_s, numbers.Real) and timeout_s >= 0):
        raise ConfigError(
            f"timeout_s is {timeout_s!r}, which is no time", next_step="give seconds: a number of 0 or more"
        )


def left(timeout_s: float | None, begun: float) -> float:
    """Return how much is left of a time that began then, by the monotonic clock; as it is told, in whole seconds."""
    rest = max(0.0, (math.inf if timeout_s is None else timeout_s) - (time.monotonic() - begun))
    return float(round(rest)) if 1 < rest < math.inf else rest


def statuses(handles: Iterable[Run | Endpoint]) -> list[Status]:
    """Return the states of runs or services, several asked for at once, without those that were deleted meanwhile.

    Raises:
        Forbidden, Unreachable: a place refuses to tell, or does not answer.
    """
    asked: list[tuple[Run | Endpoint, Future[Status | None]]] = [(each, Future()) for each in handles]
    todo = deque(asked)
    # Not those of concurrent.futures, whose end the interpreter waits for: a head may be silent when Ctrl-C is pressed.
    for _ in range(min(_AT_ONCE, len(asked))):
        threading.Thread(target=_ask, args=(todo,), daemon=True, name="raykube-status").start()
    try:
        return [status for _, answer in asked if (status := answer.result())]
    finally:
        todo.clear()


def _ask(todo: deque[tuple[Run | Endpoint, Future[Status | None]]]) -> None:
    with contextlib.suppress(IndexError):
        while True:
            handle, answer = todo.popleft()
            _tell(handle, answer)


def _tell(handle: Run | Endpoint, answer: Future[Status | None]) -> None:
    try:
        answer.set_result(handle.status())
    except NotFound:
        answer.set_result(None)
    except BaseException as error:  # noqa: BLE001 - raised again by whoever asks the future
        answer.set_exception(error)
