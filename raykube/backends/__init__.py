"""What a backend must be able to do, and the values it answers with.

A backend sends plans and reads states. It is imported only when its name is asked for, so an unused one costs nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from raykube.errors import Failure

# Only for annotations: the keeper of a head imports this module too, and does not need the specs.
if TYPE_CHECKING:
    from raykube.cluster import Cluster
    from raykube.plans import Plan
    from raykube.specs import Job, Service
    from raykube.wire import Result

Kind = Literal["job", "service"]

#: Ray's five job states, and WAITING: the cluster is not up yet.
State = Literal["WAITING", "PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
TERMINAL: frozenset[State] = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})


@dataclass(frozen=True)
class Status:
    """The state of a run or service at one moment.

    Attributes:
        name: of the run or service.
        kind: ``"job"`` or ``"service"``.
        state: ``"WAITING"`` until the cluster is up, ``"PENDING"`` until Ray has started the run or every application
            answers, then ``"RUNNING"``. A run ends as ``"SUCCEEDED"``, ``"FAILED"`` or ``"STOPPED"``. A service is
            FAILED if it does not come up, and STOPPED if it is taken down.
        detail: one line on what is going on.
        failure: why it failed or, before it runs, what keeps it from running; None when all is well.
        submitted: Unix time in seconds of its submission, or of a service's first deployment; None while unknown.
        started: the same of a run's start, or of a service's latest deployment or other change.
        ended: the same of a run's end.
        attempt: which attempt of the run this is, from 1.
        progress: the last reported metrics.
        quiet_s: seconds since the last report, cut to whole minutes; 0 below one minute, and while it does not run.
        url: where to look: the dashboard for a run, the HTTP address for a service; empty where there is none, such as
            after a run's end on this machine.
        earlier: a line on each earlier attempt that is known to have ended, oldest first; always empty on this machine.
        workers: how many training workers it may have: ``"8"``, or ``"2..8"``; empty for a service, and for a RayJob
            that raykube did not write.
        storage: folder or URI that keeps its checkpoints, metrics and logs; empty if they are lost with its cluster.
        plan: the hash of the plan that a service was last deployed with; empty for a run.
        deployed: what a service was last asked to serve: import path, model and hash of the code of each application.
            It serves this if it is RUNNING; after a failed update the one before may serve. Empty for a run.
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
    plan: str = ""
    deployed: str = ""

    @property
    def is_terminal(self) -> bool:
        """Whether the run has ended for good."""
        return self.state in TERMINAL


class Backend(Protocol):
    """A place that runs jobs and services. Each method may raise BackendError with the place's own words.

    A backend is a value: equal ones are the same place, and it can be pickled, as can the handles that hold it.

    A run and a service may have the same name: on Kubernetes, kubectl or two clients at once can create both. `kind`
    says which is meant; NotFound is raised if only the other one has the name. None takes whichever exists.
    """

    def plan(self, work: Job | Service, on: Cluster) -> Plan:
        """Return exactly what :meth:`start` would send. Use no network. Raises ConfigError for what cannot work."""

    def check(self, plan: Plan) -> None:
        """Ask the place whether it would take the plan. Raises ManifestError, or ConfigError with no server to ask."""

    def start(self, plan: Plan) -> str:
        """Send the plan and return the name. The same name with the same plan is the same run.

        Raises:
            Conflict: a run of that name was started from another plan.
        """

    def kind_of(self, name: str, kind: Kind | None = None) -> Kind:
        """Return whether a job or a service has this name, with as few requests as possible. Raises NotFound."""

    def status(self, name: str, kind: Kind | None = None) -> Status:
        """Return the state now. Raises NotFound."""

    def changes(self, name: str, kind: Kind | None = None) -> Iterator[Status]:
        """Yield the status now, after each change, and at intervals without one, so that a caller can keep a deadline.

        It never ends by itself. A short silence of the place is waited out; a long one raises Unreachable.
        """

    def logs(
        self, name: str, kind: Kind | None = None, *, follow: bool, source: str = "driver"
    ) -> Generator[str, None, None]:
        """Yield log lines without their newlines; with `follow` until the run has ended.

        Sources (of a run) are ``driver``, ``rank-N``, ``autoscaler`` and ``events``.

        Raises:
            ConfigError: this place has no such source.
            NotFound: this run does not have it; without `follow`, also if it does not have it yet.
        """

    def result(self, name: str) -> Result | None:
        """Return what the run's ``train`` or ``sweep`` returned; None if it recorded nothing."""

    def stop(self, name: str, kind: Kind | None = None) -> None:
        """Stop it and keep what it made."""

    def delete(self, name: str, kind: Kind | None = None) -> None:
        """Stop it and remove everything that was made for it."""

    def names(self, kind: Kind) -> list[str]:
        """Return the names of all runs or services, oldest first."""


def _local() -> Backend:
    from raykube.backends.local.backend import Local

    return Local()


def _kuberay(context: str, namespace: str) -> Backend:
    from raykube.backends.kuberay.backend import KubeRay

    return KubeRay(context, namespace)


def backend_of(plan: Plan) -> Backend:
    """Return the backend that a plan was made for."""
    return _local() if plan.backend == "local" else _kuberay(plan.context, plan.namespace)


def backend_for(cluster: Cluster) -> Backend:
    """Return the backend that runs things on `cluster`."""
    return _local() if cluster.is_local else _kuberay(cluster.context, cluster.namespace)
