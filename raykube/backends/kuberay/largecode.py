"""Brings code that is too large for a ConfigMap to its cluster: to the cluster's storage, or to its running head."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from raykube import bodies, marks, package, runtime_env
from raykube.backends import Status
from raykube.backends.kuberay import rayhead, storage
from raykube.backends.kuberay.causes.observed import head_service
from raykube.backends.kuberay.rayhead import RayHead
from raykube.backends.kuberay.runs.look import Look
from raykube.backends.kuberay.runs.rayjobs import selected
from raykube.backends.kubernetes.fields import annotations_of, name_of, spec_of
from raykube.backends.kubernetes.kubeapi import Kube, Object
from raykube.backends.rayapi import RayApi
from raykube.errors import BackendError, Conflict, NotFound, Unreachable
from raykube.package import Package
from raykube.plans import Plan

_POLL_S = 1.0
_BROUGHT = "the code of %s (%s bytes) goes to %s by a pod, which may have to wait for a node and its image"

_log = logging.getLogger("raykube")


def before(kube: Kube, plan: Plan) -> None:
    """Put the code where the pods of the plan will look for it, unless the plan itself carries it."""
    if plan.package is None or plan.code is None:
        return
    work = plan.body[-1]
    if plan.code.way == "cluster":
        _upload(_api_of_cluster(kube, selected(work)), plan.code.uri, plan.package)
    elif plan.code.way == "storage":
        with contextlib.suppress(Conflict):  # an existing object is dealt with when this one is created
            kube.create(work, dry_run=True)  # so that a refused object leaves no code behind
        path, data = plan.code.uri.removeprefix("file://"), package.zipped(plan.package)
        _log.info(_BROUGHT, plan.name, f"{len(data):,}", path)
        storage.write(kube, work, path, data)


def code_removed_with(kube: Kube, service: Object) -> contextlib.AbstractContextManager[None]:
    """Return a block to delete a service in; it first removes all code that the service ever had in its storage.

    Only code is removed: a run of the same name, deleted or in another namespace, may keep its files beside it.

    Raises:
        Forbidden: this user may not delete the service; its code is left alone.
    """
    if marks.CODE_IN_STORAGE in annotations_of(service):
        with contextlib.suppress(NotFound):
            # The code is removed first, while the service can own the pod that does it and its name is not free. So ask
            # beforehand: a service that stayed without its code could not start any more replicas.
            kube.delete("RayService", name_of(service), dryRun=["All"])
        return storage.files_removed_with(kube, service, bodies.CODE_FOLDER)
    return contextlib.nullcontext()


def after(kube: Kube, plan: Plan, owner: Object) -> None:
    """Upload the code of an InteractiveMode plan and submit its job, as soon as the head of its RayJob answers.

    Raises:
        BackendError: the head did not answer within the job's ``pending_timeout_s``.
    """
    if plan.package is None or plan.code is None or plan.code.way != "upload":
        return
    planned = plan.body[-1]["spec"]
    spec = planned | dict(owner["spec"])  # the spec of a later attempt has the attempt's number
    head = _wait_for_head(kube, plan.name, float(planned["preRunningDeadlineSeconds"]))
    if head is None or head.details():
        return
    _upload(head.api, plan.code.uri, plan.package)
    environment = runtime_env.of_rayjob({"spec": spec}) | {"working_dir": plan.code.uri}
    body = {"entrypoint": spec["entrypoint"], "submission_id": spec["jobId"], "runtime_env": environment}
    try:
        head.api.submit(body | {"metadata": spec.get("metadata", {})} | _reserved(spec))
    except Conflict:  # another client was faster
        return


def _reserved(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a RayJob reserves for its driver, for Ray's Job API: KubeRay does not submit this job for us."""
    said = {
        "entrypoint_num_cpus": spec.get("entrypointNumCpus"),
        "entrypoint_num_gpus": spec.get("entrypointNumGpus"),
        "entrypoint_resources": json.loads(spec.get("entrypointResources") or "{}"),
    }
    return {key: value for key, value in said.items() if value}


def _upload(api: RayApi, uri: str, code: Package) -> None:
    # Ray strips no top folder from a package that it holds itself.
    api.upload(uri, package.zipped(code, top=""))


def _api_of_cluster(kube: Kube, name: str) -> RayApi:
    """Return the Ray API of a long-lived cluster."""
    cluster = kube.get("RayCluster", name)
    if not (service := head_service(cluster)):
        step = f"wait for it: raykube cluster status {name}"
        raise BackendError(f"cluster {name} has no head yet", next_step=step)
    return rayhead.api_of(kube, name, spec_of(cluster), kube.proxy(service))


def _wait_for_head(kube: Kube, name: str, limit_s: float) -> RayHead | None:
    """Wait until the head of a job's cluster answers, and log why it does not; return None if the run has ended."""
    deadline, told = time.monotonic() + limit_s, ""
    while True:
        head, status, why = _head_if_answering(kube, name)
        if head or (status and status.is_terminal):
            return head
        if why != told:
            _log.warning("%s gets its code once its head answers: %s", name, why)
            told = why
        if time.monotonic() > deadline:
            step = "ask for what the cluster can give, or give a longer --pending-timeout-s"
            raise BackendError(f"the head of {name} did not answer within {limit_s:g} s", why=why, next_step=step)
        time.sleep(_POLL_S)


def _head_if_answering(kube: Kube, name: str) -> tuple[RayHead | None, Status | None, str]:
    """Return the head of a job's cluster if it answers, the run's status, and what the head or run waits for."""
    try:
        look = Look(kube, name)
        status, head = look.status(), look.head()
    except Unreachable as error:  # the API server is away, and may be back in time
        return None, None, error.why
    try:
        if head and not status.is_terminal:
            head.api.version()
            return head, status, ""
    except BackendError as error:
        return None, status, error.why
    return None, status, status.detail
