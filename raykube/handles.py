"""The handles: a `Run` for a job, an `Endpoint` for a service. Either can be made again from its name alone."""

from __future__ import annotations

import contextlib
import math
import numbers
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, ClassVar

from raykube.backends import Backend, Kind, State, Status, endings, serveapps, sources
from raykube.backends.lines import Event
from raykube.errors import ConfigError, Failure, NotFound, RunFailed, RunStopped, ServiceFailed, WaitTimeout
from raykube.wire import Result

__all__ = ["Endpoint", "Event", "Run", "State", "Status"]

_NOT_YET = ("WAITING", "PENDING")
#: How many states are asked for at the same time: each takes several requests, to the API server and to a head.
_AT_ONCE = 8


OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class _Handle:
    """What a run and an endpoint share: a name and the place that knows it. Every call asks the place again."""

    _kind: ClassVar[Kind]
    name: str
    backend: Backend

    @property
    def url(self) -> str:
        """Where to look: Ray's dashboard for a run, the HTTP address of its first application for a service.

        It is empty before the head is up, once the run has ended on this machine, and once its cluster is gone.
        """
        return self.status().url

    def status(self) -> Status:
        """Return the state now. A service is RUNNING when every application answers.

        Raises:
            NotFound: it was deleted.
        """
        return self.backend.status(self.name, self._kind)

    def why(self) -> Failure:
        """Explain the current state with one cause and one next step."""
        return _cause(self.status())


@dataclass(frozen=True)
class Run(_Handle):
    """A job that was submitted."""

    _kind = "job"

    def wait(self, *, timeout_s: float | None = None, on_event: OnEvent | None = None) -> Run:
        """Wait until the run has succeeded, and return it.

        Args:
            timeout_s: seconds after which to give up waiting; the run itself goes on. A request that is under way by
                then is still waited for, up to a minute if the place accepts it and stays silent.
            on_event: called on every change of state, attempt or metrics, and each minute without new metrics.

        Raises:
            ConfigError: `timeout_s` is not a valid time.
            RunFailed: the run ended in FAILED; the error says why and what to do.
            RunStopped: somebody stopped the run, or deleted it while it was waited for.
            WaitTimeout: the run has not ended in time.
            NotFound: the run was deleted before.
            Forbidden, Unreachable: the place refuses to tell the state, or has not answered for a long time (30 s on
                this machine, ten minutes on Kubernetes).
        """
        check_time(timeout_s)
        last = self._watch_to_the_end(timeout_s, on_event)
        if last.state == "FAILED":
            raise RunFailed.of(self.name, _cause(last))
        if last.state == "STOPPED":
            to = "resume" if last.storage else "start it anew"
            raise RunStopped(f"run {self.name} was stopped", next_step=f"submit it again under the same name to {to}")
        if not last.is_terminal:
            raise WaitTimeout(
                f"run {self.name} is still {last.state} after {timeout_s:g} s",
                why=last.detail,
                next_step=f"it goes on; wait again with: raykube job wait {self.name}",
            )
        return self

    def _watch_to_the_end(self, timeout_s: float | None, on_event: OnEvent | None) -> Status:
        seen: list[Status] = []

        def heard(event: Event) -> None:
            if not (seen and event.status.is_terminal):
                seen[:] = [event.status]
            if on_event:
                on_event(event)

        changes = self.backend.changes(self.name, self._kind)
        try:
            last = _watch(changes, lambda status: status.is_terminal, timeout_s, heard)
        except NotFound as error:
            if not seen:
                raise
            raise _run_deleted(*seen) from error
        if (last.state, last.detail) == ("STOPPED", endings.BEING_DELETED):
            raise _run_deleted(*seen)
        return last

    def logs(self, *, follow: bool = False, source: str = sources.DRIVER) -> Generator[str, None, None]:
        """Yield the lines of a log; with `follow`, until the run has ended.

        Args:
            follow: whether to go on with lines that are still to come.
            source: ``"driver"``: what the script printed, and what Ray shows there of its workers; ``"rank-N"``: all
                that training worker N printed in the latest training; on Kubernetes also ``"autoscaler"``: the log of
                Ray's autoscaler, and ``"events"``: the events of the run's objects.

        Raises:
            ConfigError: there is no such source, or this place does not have it.
            NotFound: this run has no such log, or does not have it yet and `follow` is false.
            BackendError: the log was lost with its head, node or cluster, and no storage kept it.
        """
        sources.rank_of(source)
        return self.backend.logs(self.name, self._kind, follow=follow, source=source)

    def result(self) -> Result | None:
        """Return what the script's last ``train`` or ``sweep`` returned; None when it called neither.

        Raises:
            BackendError: the result cannot be read, or was lost with a cluster that had no storage.
        """
        return self.backend.result(self.name)

    def stop(self) -> None:
        """Stop the run, and wait until it has stopped. Logs, checkpoints and metrics stay in ``status().storage``.

        Raises:
            BackendError: the run did not stop within half a minute.
        """
        self.backend.stop(self.name, self._kind)

    def delete(self) -> None:
        """Stop the run and remove everything that was kept of it, checkpoints too. Registered models stay.

        Raises:
            NotFound: there is no such run, or somebody deleted or resubmitted it meanwhile; a newer run of that name is
                left alone.
        """
        self.backend.delete(self.name, self._kind)


@dataclass(frozen=True)
class Endpoint(_Handle):
    """A service that was deployed.

    Attributes:
        plan: the hash of the plan, if this handle comes from a deployment; else empty.
    """

    _kind = "service"
    plan: str = field(default="", compare=False, repr=False)

    def wait_ready(self, *, timeout_s: float | None = 600, on_event: OnEvent | None = None) -> Endpoint:
        """Wait until every application of the service answers, and return the endpoint.

        Args:
            timeout_s: seconds after which to give up waiting; the deployment itself goes on. None waits without an end.
            on_event: called with every change that the wait sees.

        Raises:
            ConfigError: `timeout_s` is not a valid time.
            ServiceFailed: an application failed to deploy; Serve's own message is in ``why``. After a failed update,
                the error says so if the previous version goes on serving. Or somebody else has deployed another plan
                under this name meanwhile, or has deleted the service.
            WaitTimeout: the service is not ready in time; Serve goes on trying.
        """
        return ready(self, timeout_s, time.monotonic(), on_event)

    def logs(self, *, follow: bool = False) -> Generator[str, None, None]:
        """Yield the lines that the replicas log and print; with `follow`, until the service is taken down."""
        return self.backend.logs(self.name, self._kind, follow=follow)

    def delete(self) -> None:
        """Take the service down and forget it.

        Raises:
            NotFound: there is no such service, or somebody deleted it meanwhile; a newer service of that name is left
                alone.
        """
        self.backend.delete(self.name, self._kind)


def ready(endpoint: Endpoint, timeout_s: float | None, begun: float, on_event: OnEvent | None = None) -> Endpoint:
    """Do what :meth:`Endpoint.wait_ready` does, with a time that counts from `begun` on (monotonic clock)."""
    check_time(timeout_s)
    name, plan = endpoint.name, endpoint.plan

    def is_anothers(status: Status) -> bool:
        return bool(plan and status.plan) and status.plan != plan

    def is_over(status: Status) -> bool:
        return status.state not in _NOT_YET or is_anothers(status)

    try:
        last = _watch(endpoint.backend.changes(name, "service"), is_over, left(timeout_s, begun), on_event)
    except NotFound as error:
        raise _deleted(name, error.what) from error
    if is_anothers(last):
        raise ServiceFailed(
            f"somebody else deployed other code or configuration as {name} meanwhile",
            why=f"it has plan {last.plan} now, and {plan} was sent",
            next_step="agree on who deploys it, or choose another name; then deploy again",
        )
    if last.state == "RUNNING":
        return endpoint
    if last.state in _NOT_YET:
        raise _not_ready(last, timeout_s or 0.0)
    if last.state == "STOPPED" and not last.failure:
        raise _deleted(name, last.detail)
    raise _service_failed(name, _cause(last))


def _watch(
    changes: Iterator[Status], done: Callable[[Status], bool], timeout_s: float | None, on_event: OnEvent | None
) -> Status:
    """Follow the changes until `done` is true or the time is over; return the last status seen."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    seen: Any = None
    for status in changes:
        reported = dict(status.progress), status.quiet_s
        change = (status.state, status.attempt, status.detail, status.failure, reported)
        if on_event and change != seen:
            on_event(Event(time.time(), status))
        seen = change
        if done(status) or (deadline is not None and time.monotonic() >= deadline):
            return status
    raise AssertionError("a backend's changes never end by themselves")


def _cause(status: Status) -> Failure:
    # There is no log until it runs.
    waits = status.state in _NOT_YET
    next_step = "wait: nothing is known to be wrong" if waits else f"raykube {status.kind} logs {status.name}"
    reason = "JobFailed" if (status.kind, status.state) == ("job", "FAILED") else status.state
    return status.failure or Failure(reason, status.detail, next_step=next_step)


def _run_deleted(before: Status) -> RunStopped:
    what, to = f"somebody deleted run {before.name} while raykube waited for it", " to start it anew"
    if before.storage:
        to = f": it resumes if {before.storage} still has its checkpoints, which raykube removes and kubectl does not"
    return RunStopped(what, why=f"it was {before.state}", next_step=f"submit it again{to}")


def _deleted(name: str, why: str) -> ServiceFailed:
    what = f"somebody deleted service {name} while raykube waited for it"
    return ServiceFailed(what, why=why, next_step="agree on who deploys it; then deploy again")


def _not_ready(last: Status, timeout_s: float) -> WaitTimeout:
    goes_on = serveapps.GOES_ON in last.detail
    what = f"the update of {last.name}" if goes_on else f"service {last.name}"
    what += f" is not ready after {timeout_s:g} s" + (f"; {serveapps.GOES_ON}" if goes_on else "")
    look = f"raykube service status {last.name}"
    cause = last.failure.next_step if last.failure else ""
    return WaitTimeout(what, why=last.detail, next_step=f"{cause}; then see: {look}" if cause else look)


def _service_failed(name: str, why: Failure) -> ServiceFailed:
    what = f"service {name} is not up: {why.reason}"
    if why.reason == serveapps.UPDATE_FAILED:
        what = f"the update of {name} failed; {serveapps.GOES_ON}"
    elif serveapps.MAY_GO_ON in why.next_step:
        what = f"the update of {name} failed: {why.reason}"
    # The error has no room for the log lines behind it.
    more = f"; all that Serve says: raykube service why {name}" if why.tail else ""
    return ServiceFailed(what, why=why.message, next_step=f"{why.next_step}{more}")


def check_time(timeout_s: float | None) -> None:
    """Refuse an invalid waiting time; None means to wait without end.

    Raises:
        ConfigError: `timeout_s` is no number, or is below 0.
    """
    # Written so that NaN is refused, too: a wait for NaN seconds would never end.
    if timeout_s is not None and not (isinstance(timeout_s, numbers.Real) and timeout_s >= 0):
        raise ConfigError(
            f"timeout_s is {timeout_s!r}, which is no time", next_step="give seconds: a number of 0 or more"
        )


def left(timeout_s: float | None, begun: float) -> float:
    """Return the seconds left of `timeout_s` since `begun` (monotonic clock), rounded for messages if above 1 s."""
    rest = max(0.0, (math.inf if timeout_s is None else timeout_s) - (time.monotonic() - begun))
    return float(round(rest)) if 1 < rest < math.inf else rest


def statuses(handles: Iterable[Run | Endpoint]) -> list[Status]:
    """Return the states of runs or services, asking for several at once; leave out those deleted meanwhile.

    Raises:
        Forbidden, Unreachable: a place refuses to tell a state, or does not answer.
    """
    asked: list[tuple[Run | Endpoint, Future[Status | None]]] = [(each, Future()) for each in handles]
    todo = deque(asked)
    # Not concurrent.futures' threads: the interpreter waits for those at exit, and a silent head would hold up Ctrl-C.
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
