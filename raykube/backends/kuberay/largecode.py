"""Brings code to its cluster that is too large for a ConfigMap: to the cluster's storage, or to a head that lives."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import yaml

from raykube import bodies, package
from raykube.backends.kuberay import storage
from raykube.backends.kuberay.rayhead import RayHead, head_of
from raykube.backends.kubernetes.kubeapi import Kube
from raykube.errors import BackendError, Conflict, Unreachable
from raykube.package import Package
from raykube.plans import Plan

_POLL_S = 0.5
_HELD = "gcs://"


def before(kube: Kube, plan: Plan) -> None:
    """Put the code where the pods of the plan will look for it, unless the plan itself carries it."""
    work, uri = plan.body[-1], _working_dir(plan.body[-1])
    if plan.package is None or len(plan.body) > 1 or not uri:
        return
    if uri.startswith(_HELD):
        _give(_selected(kube, work), uri, plan.package)
    else:
        storage.write(kube, work, uri.removeprefix("file://"), package.zipped(plan.package))


def after(kube: Kube, plan: Plan) -> None:
    """Submit the job of a plan that uploads its code (InteractiveMode), as soon as its head answers.

    Raises:
        BackendError: the head did not come up in the job's ``pending_timeout_s``.
    """
    spec = plan.body[-1].get("spec", {})
    if spec.get("submissionMode") != "InteractiveMode" or plan.package is None:
        return
    head = _answering(kube, plan.name, float(spec["preRunningDeadlineSeconds"]))
    if head.details():
        return
    uri = bodies.held_uri(plan.package)
    _give(head, uri, plan.package)
    environment = yaml.safe_load(spec["runtimeEnvYAML"]) | {"working_dir": uri}
    body = {"entrypoint": spec["entrypoint"], "submission_id": spec["jobId"], "runtime_env": environment}
    try:
        head.api.submit(body | {"metadata": spec.get("metadata", {})} | _reserved(spec))
    except Conflict:  # another client was faster
        return


def _reserved(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a RayJob has its driver reserve, as Ray's Job API takes it: KubeRay itself would hand it on."""
    said = {
        "entrypoint_num_cpus": spec.get("entrypointNumCpus"),
        "entrypoint_num_gpus": spec.get("entrypointNumGpus"),
        "entrypoint_resources": json.loads(spec.get("entrypointResources") or "{}"),
    }
    return {key: value for key, value in said.items() if value}


def _working_dir(work: Mapping[str, Any]) -> str:
    spec = work["spec"]
    if "serveConfigV2" in spec:
        applications = yaml.safe_load(spec["serveConfigV2"])["applications"]
        return str(applications[0].get("runtime_env", {}).get("working_dir", ""))
    return str((yaml.safe_load(spec.get("runtimeEnvYAML") or "") or {}).get("working_dir", ""))


def _give(head: RayHead, uri: str, code: Package) -> None:
    # Ray does not unpack the top folder of what it holds itself.
    head.api.upload(uri, package.zipped(code, top=""))


def _selected(kube: Kube, work: Mapping[str, Any]) -> RayHead:
    """Return the head of the cluster that a job selects."""
    name = work["spec"]["clusterSelector"]["ray.io/cluster"]
    cluster = kube.get("RayCluster", name)
    service = ((cluster.get("status") or {}).get("head") or {}).get("serviceName")
    if not service:
        step = f"wait for it: raykube cluster status {name}"
        raise BackendError(f"cluster {name} has no head yet", next_step=step)
    status = {"rayClusterName": name, "dashboardURL": f"{service}."}
    return RayHead(kube, {"status": status, "spec": {"rayClusterSpec": cluster["spec"]}})


def _answering(kube: Kube, name: str, limit_s: float) -> RayHead:
    """Wait for the head of a job's cluster."""
    deadline = time.monotonic() + limit_s
    while True:
        head, why = _asked(kube, name)
        if head:
            return head
        if time.monotonic() > deadline:
            step = f"see: raykube job why {name}"
            raise BackendError(f"the head of {name} did not answer within {limit_s:g} s", why=why, next_step=step)
        time.sleep(_POLL_S)


def _asked(kube: Kube, name: str) -> tuple[RayHead | None, str]:
    """Return the head of a job's cluster if it answers, else why not."""
    try:
        head = head_of(kube, kube.get("RayJob", name))
    except Unreachable as error:  # the API server; it may be back in time
        return None, error.why
    if head is None:
        return None, "KubeRay has not made it"
    try:
        head.api.version()
    except BackendError as error:
        return None, error.why
    return head, ""
