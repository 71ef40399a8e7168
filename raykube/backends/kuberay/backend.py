"""The KubeRay backend: jobs as RayJobs, services as RayServices.

A client creates objects and may then die: KubeRay and the run's own pod go on. Another machine can ask for everything
by name, because all state is in the objects, in Ray and in the run's storage.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from raykube import manifests, marks, package, plans
from raykube.backends import Kind, Status, sources
from raykube.backends.kuberay import clusters, dryrun, objects, storage
from raykube.backends.kuberay.logs import autoscalerlogs, driverlogs, eventlogs, ranklogs, servelogs
from raykube.backends.kuberay.runs import jobs, rayjobs, results
from raykube.backends.kuberay.runs.look import Look
from raykube.backends.kuberay.serve import servelook, services
from raykube.backends.kubernetes import shared
from raykube.backends.kubernetes.fields import annotations_of, name_of, spec_of
from raykube.backends.kubernetes.kubeapi import Kube, Object
from raykube.cluster import Cluster
from raykube.entrypoints import check_code
from raykube.errors import BackendError, ConfigError, NotFound, RaykubeError
from raykube.plans import Plan
from raykube.specs import Job, Service
from raykube.wire import Result

_STOP_S = 30.0
_LOGS = {sources.DRIVER: driverlogs, sources.AUTOSCALER: autoscalerlogs, sources.EVENTS: eventlogs}


@dataclass(frozen=True)
class KubeRay:
    """Runs plans on KubeRay. See :class:`raykube.backends.Backend` for the methods."""

    context: str = ""
    namespace: str = ""

    def __reduce__(self) -> tuple[type[KubeRay], tuple[str, str]]:
        # Leaves out the connections, which no other process could use.
        return KubeRay, (self.context, self.namespace)

    def __repr__(self) -> str:
        """Return both names, once it is connected those that the kubeconfig or the pod gave."""
        known = self.__dict__.get("kube", self)
        return f"KubeRay(context={known.context!r}, namespace={known.namespace!r})"

    @functools.cached_property
    def kube(self) -> Kube:
        """The API server; connected on first use, because a plan needs none."""
        return shared.kube(self.context, self.namespace)

    def plan(self, work: Job | Service, on: Cluster) -> Plan:
        """Return the plan: the objects that the API server will get."""
        on.check_manifest()
        code = package.collect(work.working_dir, work.excludes)
        newer = manifests.python(on.manifest["spec"]) > sys.version_info[:2]
        check_code(work, code, here=False, newer=newer)
        return plans.rayjob(work, on, code) if isinstance(work, Job) else plans.rayservice(work, on, code)

    def cluster(self, name: str) -> Cluster:
        """Return the long-lived cluster of that name, for jobs to run on.

        Raises:
            NotFound: there is none of that name.
            ConfigError: its RayCluster has no head group, so nothing can run on it.
        """
        found = clusters.found(self.kube, name)
        _check_head(found)
        said = annotations_of(found)
        # Only these: all others would go into each job and its plan, even kubectl's copy with all variables.
        annotations = {key: said[key] for key in (marks.STORAGE, marks.TRACKING) if key in said}
        metadata = {"annotations": annotations, "name": name, "namespace": self.kube.namespace}
        manifest = {"apiVersion": found["apiVersion"], "kind": "RayCluster", "metadata": metadata}
        where = f"RayCluster {name}"
        return Cluster(manifest | {"spec": found["spec"]}, where, name, self.context, selected=True)

    def check(self, plan: Plan) -> None:
        """Have the API server check every object, and pods like those that KubeRay makes from them."""
        dryrun.check(self.kube, plan)

    def start(self, plan: Plan) -> str:
        """Create the plan's objects, or join the run that already has this name and plan."""
        (services.deploy if plan.is_service else jobs.start)(self.kube, plan)
        return plan.name

    def kind_of(self, name: str, kind: Kind | None = None) -> Kind:
        """Return whether this name is a job or a service on the API server."""
        if kind == "service":
            objects.found(self.kube, "RayService", name)
        return "job" if self._run(name, kind) else "service"

    def status(self, name: str, kind: Kind | None = None) -> Status:
        """Return the current state."""
        look = self._run(name, kind)
        return look.status() if look else servelook.status(self.kube, name)

    def changes(self, name: str, kind: Kind | None = None) -> Iterator[Status]:
        """Yield each status, from watching the run's objects and asking Ray for the state of its job."""
        look = self._run(name, kind)
        yield from look.changes() if look else servelook.changes(self.kube, name)

    def logs(
        self, name: str, kind: Kind | None = None, *, follow: bool, source: str = sources.DRIVER
    ) -> Generator[str, None, None]:
        """Yield a source's log lines; the driver's come from its head while that lives, else from the run's storage."""
        rank, look = sources.rank_of(source), self._run(name, kind)
        if look is None:
            yield from servelogs.lines(self.kube, name, follow=follow)
        elif rank is not None:
            yield from ranklogs.lines(look, rank, follow=follow)
        else:
            yield from _LOGS[source].lines(look, follow=follow)

    def result(self, name: str) -> Result | None:
        """Return the run's result, from its head or, once that is gone, from its storage."""
        return results.result(Look(self.kube, name))

    def stop(self, name: str, kind: Kind | None = None) -> None:
        """Stop a run and wait until it has stopped; take a service down."""
        look = self._run(name, kind)
        if look is None:
            services.take_down(self.kube, name)
        else:
            self._stop(look)

    def _stop(self, look: Look) -> None:
        if look.status().is_terminal:
            return
        jobs.stop(look)
        deadline = time.monotonic() + _STOP_S
        for status in look.changes():
            if status.is_terminal:
                return
            if time.monotonic() > deadline:
                raise BackendError(
                    f"run {look.name} has not stopped within {_STOP_S:g} s",
                    why=f"it is {status.state}: {status.detail}",
                    next_step=f"look again: raykube job status {look.name}; or end all: raykube job delete {look.name}",
                )

    def delete(self, name: str, kind: Kind | None = None) -> None:
        """Remove a run's objects, which ends it, and its files in the storage; take a service down."""
        if (look := self._run(name, kind)) is None:
            services.take_down(self.kube, name)
            return
        uid, keeps_nothing = look.job["metadata"]["uid"], rayjobs.keeps_nothing(look.job)
        # A run that does not stop ends with its RayJob: the operator tells Ray, and takes the cluster down. No operator
        # has seen a RayJob without a status, so there is nothing to stop.
        if look.job.get("status"):
            with contextlib.suppress(RaykubeError):
                jobs.announce_deletion(look)
            with contextlib.suppress(RaykubeError):
                self._stop(look)
        job = Look(self.kube, name).job
        if job["metadata"]["uid"] != uid:  # the files that would be removed first are another run's
            raise NotFound(
                f"run {name} was deleted meanwhile, and another one was submitted by that name: it is left alone",
                next_step=f"see: raykube job status {name}",
            )
        # The job may have reached Ray while it was being stopped.
        is_empty = keeps_nothing and not rayjobs.was_in_ray(job)
        with contextlib.nullcontext() if is_empty else storage.files_removed_with(self.kube, job):
            jobs.forget(self.kube, job)

    def names(self, kind: Kind) -> list[str]:
        """Return the names of all runs or services that raykube made, oldest first."""
        found = self.kube.listed({"job": "RayJob", "service": "RayService"}[kind], labelSelector=marks.OURS)
        return [each["metadata"]["name"] for each in sorted(found, key=_age)]

    def _run(self, name: str, kind: Kind | None) -> Look | None:
        """Return the run of this name; None when a service is meant, or only a service has the name."""
        if kind == "service":
            return None
        try:
            return Look(self.kube, name)
        except NotFound:
            if kind == "job" or self.kube.find("RayService", name) is None:
                raise
            return None


def _check_head(cluster: Object) -> None:
    if not spec_of(cluster).get("headGroupSpec"):
        raise ConfigError(
            f"no job can run on cluster {name_of(cluster)}",
            why="its RayCluster has no spec.headGroupSpec, of which KubeRay makes the head",
            next_step="name another one: raykube cluster list",
        )


def _age(thing: Object) -> tuple[str, str]:
    return thing["metadata"]["creationTimestamp"], thing["metadata"]["name"]
