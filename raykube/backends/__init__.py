"""What a place must be able to do, and the values it answers with.

A backend sends plans and reads states. It is chosen by name from a lazy table, so that a place that
is not used costs no import.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from raykube.errors import ConfigError, Failure

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
        failure: why it ended badly; None unless FAILED.
        submitted, started, ended: Unix times in seconds; None while unknown.
        attempt: which attempt of the run this is, from 1.
        progress: the metrics reported last.
        url: where to look: the dashboard for a job, the HTTP address for a service.
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
    progress: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    url: str = ""

    @property
    def is_terminal(self) -> bool:
        """Whether the run has ended for good."""
        return self.state in TERMINAL


class Backend(Protocol):
    """A place. Each method may raise BackendError with the place's own words."""

    def plan(self, work: Job | Service, on: Cluster) -> Plan:
        """Return exactly what :meth:`start` would send. No network; ConfigError for what cannot work."""

    def start(self, plan: Plan) -> str:
        """Send the plan and return the name. The same name with the same plan is the same run.

        Raises:
            Conflict: a run of that name came from another plan.
        """

    def status(self, name: str) -> Status:
        """Return the state now. Raises NotFound."""

    def logs(self, name: str, *, follow: bool) -> Iterator[str]:
        """Yield log lines without their newlines; with `follow` until the run has ended."""

    def result(self, name: str) -> Result | None:
        """Return what the run's ``train`` or ``sweep`` returned; None when it recorded nothing."""

    def stop(self, name: str) -> None:
        """Stop it and keep what it made."""

    def delete(self, name: str) -> None:
        """Stop it and remove all that was made for it."""

    def names(self, kind: Kind) -> list[str]:
        """Return the names of all runs or services, oldest first."""


_BACKENDS = {"local": "raykube.backends.local:Local"}


def backend(name: str) -> Backend:
    """Return the backend called `name`, as in ``Plan.backend``.

    Raises:
        ConfigError: nothing here can send to that kind of place.
    """
    if name not in _BACKENDS:
        raise ConfigError(
            f"raykube plans for {name} but does not talk to a cluster yet",
            next_step="pipe what --dry-run=client -o yaml prints into: kubectl apply --server-side -f -",
        )
    module, _, attribute = _BACKENDS[name].partition(":")
    made: Backend = getattr(import_module(module), attribute)()
    return made


def backend_for(cluster: Cluster) -> Backend:
    """Return the backend that runs things on `cluster`."""
    return backend("local" if cluster.is_local else "kuberay")
