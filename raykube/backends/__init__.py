"""What a place must be able to do, and the values it answers with.

A backend sends plans and reads states. It is chosen by name from a lazy table, so that a place that
is not used costs no import.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol

from raykube.errors import Failure

# Only for the annotations: the keeper of a head imports this module too, and need not know of specs.
if TYPE_CHECKING:
    from raykube.cluster import Cluster
    from raykube.plans import Plan
    from raykube.specs import Job, Service
    from raykube.wire import Result

Kind = Literal["job", "service"]

#: Ray's five words, and WAITING: the cluster is not up yet.
State = Literal["WAITING", "PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
TERMINAL: frozenset[State] = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})


@dataclass(frozen=True)
class Status:
    """The state of a run or service at one moment.

    Attributes:
        name: of the run or service.
        kind: ``"job"`` or ``"service"``.
        state: one of Ray's five words, or WAITING.
        detail: one line on what is going on.
        failure: why it ended badly or, before it runs, what keeps it from running; None when all is well.
        submitted, started, ended: Unix times in seconds; None while unknown.
        attempt: which attempt of the run this is, from 1.
        progress: the metrics reported last.
        quiet_s: for how long nothing was reported since, in whole minutes; 0 below one, and while it does not run.
        url: where to look: the dashboard for a job, the HTTP address for a service.
        earlier: a line on each attempt before this that is known to have ended, oldest first; none on this machine.
        workers: how many training workers it may have: ``"8"``, or ``"2..8"``; empty for a service, and for a RayJob
            that somebody has written.
        storage: folder or URI that keeps its checkpoints, metrics and logs; empty where they end with its cluster.
    """

    name: str
    kind: Kind
    state: State
    detail: str = ""
    failure: Failure | None = None
    submitted: float | None = None
    started: float | None = None
    ended: float | None = None
    attempt: int = 1
    progress: Mapping[str, Any] = field(default_factory=dict)
    quiet_s: float = 0.0
    url: str = ""
    earlier: tuple[str, ...] = ()
    workers: str = ""
    storage: str = ""

    @property
    def is_terminal(self) -> bool:
        """Whether the run has ended for good."""
        return self.state in TERMINAL


class Backend(Protocol):
    """A place. Each method may raise BackendError with the place's own words.

    A value: equal ones are the same place, and it can be pickled, as the handles that hold it.

    A run and a service may come to have one name: on Kubernetes kubectl, or two clients at once, can make both. So
    `kind` says which is meant, and NotFound is raised where only the other has the name. None takes what there is.
    """

    def plan(self, work: Job | Service, on: Cluster) -> Plan:
        """Return exactly what :meth:`start` would send. No network; ConfigError for what cannot work."""

    def check(self, plan: Plan) -> None:
        """Ask the place whether it would take the plan. Raises ManifestError, or ConfigError where none can say."""

    def start(self, plan: Plan) -> str:
        """Send the plan and return the name. The same name with the same plan is the same run.

        Raises:
            Conflict: a run of that name came from another plan.
        """

    def kind_of(self, name: str, kind: Kind | None = None) -> Kind:
        """Return what has this name, with no more questions than that takes. Raises NotFound."""

    def status(self, name: str, kind: Kind | None = None) -> Status:
        """Return the state now. Raises NotFound."""

    def changes(self, name: str, kind: Kind | None = None) -> Iterator[Status]:
        """Yield the status now, after each change, and now and then without one, so that a waiter sees its clock.

        It never ends by itself. An answer that stays out is waited for; Unreachable when it does for long.
        """

    def logs(
        self, name: str, kind: Kind | None = None, *, follow: bool, source: str = "driver"
    ) -> Generator[str, None, None]:
        """Yield log lines without their newlines; with `follow` until the run has ended.

        Sources (of a run) are ``driver``, ``rank-N``, ``autoscaler`` and ``events``.

        Raises:
            ConfigError: this place has no such source.
            NotFound: this run has not, or not yet, and is not followed.
        """

    def result(self, name: str) -> Result | None:
        """Return what the run's ``train`` or ``sweep`` returned; None when it recorded nothing."""

    def stop(self, name: str, kind: Kind | None = None) -> None:
        """Stop it and keep what it made."""

    def delete(self, name: str, kind: Kind | None = None) -> None:
        """Stop it and remove all that was made for it."""

    def names(self, kind: Kind) -> list[str]:
        """Return the names of all runs or services, oldest first."""


_BACKENDS = {"local": "raykube.backends.local.backend:Local", "kuberay": "raykube.backends.kuberay.backend:KubeRay"}


def _made(name: str, **where: str) -> Backend:
    module, _, attribute = _BACKENDS[name].partition(":")
    backend: Backend = getattr(import_module(module), attribute)(**where)
    return backend


def backend_of(plan: Plan) -> Backend:
    """Return the backend that a plan was made for."""
    where = {} if plan.backend == "local" else {"context": plan.context, "namespace": plan.namespace}
    return _made(plan.backend, **where)


def backend_for(cluster: Cluster) -> Backend:
    """Return the backend that runs things on `cluster`."""
    if cluster.is_local:
        return _made("local")
    return _made("kuberay", context=cluster.context, namespace=cluster.namespace)
