"""Which KubeRay is there, whether it works, and which of its settings cost time."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from raykube.backends.kubernetes.fields import seconds, spec_of
from raykube.backends.kubernetes.kubeapi import Kube, Object
from raykube.backends.kubernetes.refusals import Denied
from raykube.doctor.check import Check, looked, refused
from raykube.errors import Forbidden, ManifestError, NotFound

_RAY = "/apis/ray.io/v1"
_KINDS = ("rayjobs", "rayclusters", "rayservices")
_DEPLOYMENTS = "/apis/apps/v1/deployments"
_LEASES = "/apis/coordination.k8s.io/v1/leases"
# The labels of KubeRay's own manifests, and of its Helm chart.
_OPERATOR = {"labelSelector": "app.kubernetes.io/name in (kuberay,kuberay-operator)"}
_LEASE = {"fieldSelector": "metadata.name=ray-operator-leader"}
_NEWEST_FIELD = "preRunningDeadlineSeconds"
_RENEWED_S = 60.0
_NOTICED_S = 30.0
_ASK = "an administrator sees it: kubectl get deployments,leases -A | grep -E 'kuberay|ray-operator'"
_INSTALL = "install KubeRay 1.6 or newer: helm install kuberay-operator kuberay/kuberay-operator"
_COMPLY = "it was about a job of doctor's own; whether it takes yours: raykube job submit --dry-run=server"
_INIT = "ENABLE_INIT_CONTAINER_INJECTION"
_CONCURRENCY = "--reconcile-concurrency"
_WATCHED = "--watch-namespace"


def checks(kube: Kube) -> Iterator[Check]:
    """Look at the kinds that the server knows, and at the operator as far as this user may see it."""
    yield from looked("kuberay kinds", lambda: [kinds(kube.json("GET", _RAY))])
    yield from looked("kuberay schema", lambda: _schema(kube))
    try:
        found = kube.json("GET", _DEPLOYMENTS, params=_OPERATOR)["items"]
    except Forbidden:
        yield Check("operator", None, "you may not see its version and settings", _ASK)
    else:
        yield from installed(found, kube.namespace)
    yield from looked("operator alive", lambda: [_alive(kube)])


def kinds(told: Mapping[str, Any]) -> Check:
    """Look whether the server knows the kinds that raykube makes."""
    known = {each["name"] for each in told["resources"]}
    if missing := [kind for kind in _KINDS if kind not in known]:
        return Check("kuberay kinds", False, f"ray.io/v1 has no {', '.join(missing)}", _INSTALL)
    return Check("kuberay kinds", True, f"ray.io/v1 has {', '.join(_KINDS)}")


def _schema(kube: Kube) -> Iterator[Check]:
    """Have a small RayJob checked by a dry run, then one with a typing error, which must be found."""
    try:
        kube.create(_tiny(**{_NEWEST_FIELD: 60}), dry_run=True)
    except Denied as error:  # a user's own jobs may have what the webhook asks for
        yield dataclasses.replace(refused("kuberay schema", error), ok=None, next_step=_COMPLY)
        return
    except ManifestError as error:
        if _NEWEST_FIELD not in str(error):
            raise
        what = f"it does not know {_NEWEST_FIELD}, which every job of raykube has: it is older than 1.6"
        yield Check("kuberay schema", False, what, "update KubeRay to 1.6 or newer, its definitions too")
        return
    except NotFound as error:
        yield Check("namespace", False, error.why or error.what, f"kubectl create namespace {kube.namespace}")
        return
    try:
        kube.create(_tiny(entrypiont="true"), dry_run=True)
    except ManifestError:
        yield Check("kuberay schema", True, "1.6 or newer; typing errors in a manifest are refused")
        return
    yield Check("kuberay schema", None, "typing errors in a manifest are let through", "use Kubernetes 1.27 or newer")


def _tiny(**spec: Any) -> Object:
    container = {"name": "ray-head", "image": "rayproject/ray:2.60.0-py311"}
    head = {"rayStartParams": {}, "template": {"spec": {"containers": [container]}}}
    cluster = {"rayVersion": "2.60.0", "headGroupSpec": head}
    metadata = {"name": f"raykube-doctor-{secrets.token_hex(3)}"}
    spec = {"entrypoint": "true", "shutdownAfterJobFinishes": True, "rayClusterSpec": cluster} | spec
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec}


def installed(found: list[Object], namespace: str) -> Iterator[Check]:
    """Look which operators there are, whether they run and watch a namespace, and what their settings cost."""
    if not found:
        yield Check("operator", None, "no Deployment of its usual name", _INSTALL)
    for deployment in found:
        metadata, container = deployment["metadata"], deployment["spec"]["template"]["spec"]["containers"][0]
        where = f"deployment/{metadata['name']} -n {metadata['namespace']}"
        ready = (deployment.get("status") or {}).get("readyReplicas", 0)
        image = container.get("image", "").rpartition("/")[2]
        step = f"see why its pod is not ready: kubectl describe {where}"
        yield Check("operator", bool(ready), f"{image} in {metadata['namespace']}, {ready} ready", step)
        yield from settings(container, where, namespace)


def settings(container: Mapping[str, Any], where: str, namespace: str) -> Iterator[Check]:
    """Look what an operator's settings cost. Its probes cost nothing: raykube's jobs and clusters have their own."""
    env = {each["name"]: each.get("value", "") for each in container.get("env") or []}
    args = dict(_options(container.get("args") or []))
    watched = [each for each in args.get(_WATCHED, "").split(",") if each]
    if watched and namespace not in watched:
        step = f"add {namespace} to its argument {_WATCHED}"
        yield Check("operator watches", False, f"only {', '.join(watched)}: nothing here would start", step)
    if env.get(_INIT, "true").lower() != "false":
        cost = f"{_INIT} is on: each start of a cluster with workers takes 3 to 12 s longer"
        yield Check("operator speed", None, cost, f"kubectl set env {where} {_INIT}=false")
    if int(args.get(_CONCURRENCY, "1")) <= 1:
        cost = f"{_CONCURRENCY} is 1: it looks at one object at a time, also when many jobs start at once"
        yield Check("operator speed", None, cost, f"add {_CONCURRENCY}=10 to the arguments: kubectl edit {where}")


def _options(args: list[str]) -> Iterator[tuple[str, str]]:
    """Yield options and their values, from ``--a=b`` and ``--a b``."""
    for word, following in zip(args, [*args[1:], ""], strict=False):
        key, equals, value = word.partition("=")
        if key.startswith("-"):
            yield f"--{key.lstrip('-')}", value if equals else following


def _alive(kube: Kube) -> Check:
    """Look at the lease that a working operator renews every few seconds, or else at what it did here."""
    try:
        found = kube.json("GET", _LEASES, params=_LEASE)["items"]
    except Forbidden:
        return noticed([*kube.listed("RayJob"), *kube.listed("RayCluster")], kube.now())
    if not found:
        return Check("operator alive", None, "no leader lease is found, so whether it runs is not known", _ASK)
    return leased(newest_lease(found), kube.now())


def newest_lease(found: list[Object]) -> Mapping[str, Any]:
    """Return the lease that was renewed last: an operator that was moved leaves an old one behind."""
    return max((dict(lease["spec"]) for lease in found), key=lambda spec: seconds(spec.get("renewTime")))


def leased(lease: Mapping[str, Any], now: float) -> Check:
    """Return whether the operator is alive, by the lease that it holds."""
    silent = now - seconds(lease.get("renewTime"))
    alive = bool(lease.get("holderIdentity")) and silent < _RENEWED_S
    return Check("operator alive", alive, f"it renewed its lease {max(0, silent):.0f} s ago", f"start it; {_ASK}")


def noticed(things: list[Object], now: float) -> Check:
    """Return whether the operator has seen what is in the namespace: it writes a status at once."""
    waits = [each for each in things if not each.get("status") and not spec_of(each).get("suspend")]
    for each in waits:
        age = now - seconds(each["metadata"]["creationTimestamp"])
        if age > _NOTICED_S:
            found = f"{each['metadata']['name']} has waited {age:.0f} s for the operator to look at it"
            return Check("operator alive", False, found, f"have it started, or watch this namespace; {_ASK}")
    if len(things) > len(waits):
        found = "it has worked in this namespace; whether it runs now is not known until a job does"
        return Check("operator alive", None, found, _ASK)
    return Check("operator alive", None, "nothing in this namespace tells; the first job will", _ASK)
