"""The state of a service on KubeRay. Pure functions of what Kubernetes and Ray Serve say of it.

Serve's own report takes precedence. The RayService copies it every two seconds, and a copy made at the moment of a
change still describes the old code: by the copy alone, an update that has not begun would seem done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import yaml

from raykube import marks
from raykube.backends import State, Status, endings, serveapps
from raykube.backends.kuberay.causes import diagnosis
from raykube.backends.kuberay.causes.observed import Observed
from raykube.backends.kubernetes.fields import (
    Object,
    changed,
    conditions,
    is_current,
    is_leaving,
    is_ready,
    is_true,
    labels_of,
    seconds,
    spec_of,
    status_of,
)
from raykube.bodies import serve_port
from raykube.errors import Failure, Unreachable
from raykube.shapes import entries, mapping

Apps = serveapps.Apps


def service_status(seen: Observed, serve: Apps | None) -> Status:
    """Return a service's status.

    Args:
        seen: its RayService, the cluster that it will be on, and what belongs to them.
        serve: the applications as the head's Serve reports them: empty while it does not answer; None if it may not be
            asked, so that the RayService's copy must do.
    """
    apps = applications(seen.owner, serve)
    state = state_of(seen, apps)
    failure = _failure(seen, apps, state)
    return Status(
        name=seen.name,
        kind="service",
        state=state,
        detail=_detail(seen, apps, state, failure),
        failure=failure,
        submitted=seconds(seen.owner["metadata"].get("creationTimestamp")) or None,
        started=changed(seen.owner) or None,
        url=url_of(seen.owner),
        plan=str(labels_of(seen.owner).get(marks.PLAN) or ""),
        deployed=serveapps.described(apps_of(seen.owner).values()),
    )


def state_of(seen: Observed, apps: Apps) -> State:
    """Return the state: RUNNING when all applications answer with the latest code on the latest cluster."""
    if is_leaving(seen.owner) or _is_suspended(seen.owner):
        return "STOPPED"
    given_up = has_timed_out(seen.owner) or diagnosis.is_invalid(seen.owner)
    if given_up or any(map(serveapps.is_undone, apps.values())):
        return "FAILED"
    if not is_true(seen.cluster, "HeadPodReady") and not all(clusters_of(seen.owner)):
        return "WAITING"
    serves = apps and all(app["status"] == "RUNNING" for app in apps.values())
    return "RUNNING" if serves and _is_settled(seen.owner) else "PENDING"


def has_timed_out(service: Object) -> bool:
    """Whether KubeRay has given up on a service: it ignores the service from then on, whatever is changed."""
    return bool(conditions(service).get("Ready", {}).get("reason") == "InitializingTimeout")


def clusters_of(service: Object) -> tuple[str, str]:
    """Return the names of the cluster that serves, and of the one that will serve once it is ready; "" for none."""
    told = (status_of(service).get(place) or {} for place in ("activeServiceStatus", "pendingServiceStatus"))
    active, pending = (str(each.get("rayClusterName") or "") for each in told)
    return active, pending


def has_one_cluster(service: Object) -> bool:
    """Whether KubeRay has seen a service's latest version, and no second cluster is to replace the first."""
    return is_current(service) and not all(clusters_of(service))


def cluster_of(service: Object) -> str:
    """Return the name of the cluster that a service will be on: the new one if there are two; "" if there is none."""
    active, pending = clusters_of(service)
    return pending or active


def serving_cluster(service: Object) -> str:
    """Return the name of the cluster that answers requests now.

    Raises:
        Unreachable: there is none yet.
    """
    if cluster := clusters_of(service)[0]:
        return cluster
    name = service["metadata"]["name"]
    raise Unreachable(
        f"no cluster of service {name} answers yet",
        why="its RayService has no status.activeServiceStatus.rayClusterName",
        next_step=f"raykube service why {name}",
    )


def applications(service: Object, serve: Apps | None) -> dict[str, dict[str, Any]]:
    """Return the states of a service's applications; NOT_STARTED for one that does not have the latest code yet."""
    found = _copied(service) if serve is None else serve
    return {
        name: dict(found[name]) if name in found and serveapps.is_of(found[name], config) else {"status": "NOT_STARTED"}
        for name, config in apps_of(service).items()
    }


def lacks(app: Mapping[str, Any], file: str) -> bool:
    """Whether an application failed because a file had not reached its pod yet."""
    words = serveapps.words("", app)
    return serveapps.is_undone(app) and file in words and "No such file" in words


def has_begun(app: Mapping[str, Any]) -> bool:
    """Whether Serve has loaded an application's code, or has failed to."""
    busy = any(each.get("status") != "HEALTHY" for each in (app.get("deployments") or {}).values())
    return busy or app["status"] not in ("NOT_STARTED", "DEPLOYING")


def apps_of(service: Object) -> dict[str, dict[str, Any]]:
    """Return the configurations of a service's applications by name; empty when they cannot be parsed."""
    try:
        config = mapping(yaml.safe_load(spec_of(service).get("serveConfigV2") or ""))
    except yaml.YAMLError:
        return {}
    apps = [dict(app) for app in entries(config.get("applications")) if isinstance(app, Mapping)]
    return {serveapps.name_of(app): app for app in apps}


def url_of(service: Object) -> str:
    """Return the address of a service's first application, inside its Kubernetes."""
    spec, metadata = spec_of(service), service["metadata"]
    named = ((spec.get("serveService") or {}).get("metadata") or {}).get("name")
    host = named or f"{metadata['name']}-serve-svc"
    return f"http://{host}.{metadata['namespace']}:{serve_port(spec.get('rayClusterConfig') or {})}{route_of(service)}"


def route_of(service: Object) -> str:
    """Return the path of a service's first application."""
    return next((app.get("route_prefix") for app in apps_of(service).values()), None) or "/"


def _copied(service: Object) -> dict[str, Any]:
    """Return the applications as the RayService copies them; empty when the copy is of another version of it."""
    if not is_current(service):
        return {}
    place = "pendingServiceStatus" if clusters_of(service)[1] else "activeServiceStatus"
    return dict((status_of(service).get(place) or {}).get("applicationStatuses") or {})


def _is_settled(service: Object) -> bool:
    """Whether KubeRay has seen the latest version, sends requests to its pods, and prepares no other cluster."""
    return is_current(service) and not clusters_of(service)[1] and is_true(service, "Ready")


def _is_suspended(service: Object) -> bool:
    """Whether a service has no cluster until it is resumed; no longer so if it was, but KubeRay has yet to see that."""
    resumes = not spec_of(service).get("suspend") and not is_current(service)
    return is_true(service, "Suspended") and not resumes


def _failure(seen: Observed, apps: Apps, state: State) -> Failure | None:
    """Return why the service is FAILED, or what keeps it from running."""
    if state == "RUNNING" or is_leaving(seen.owner):
        return None
    cause = diagnosis.cause(seen)
    if cause and cause.reason == diagnosis.UNAPPLIED and any(app["status"] != "NOT_STARTED" for app in apps.values()):
        cause = None  # KubeRay has been able to since
    undone = any(map(serveapps.is_undone, apps.values()))
    # The service is suspended; or KubeRay has given up on it, or refuses it.
    if state == "STOPPED" or (cause and state == "FAILED" and not undone):
        return cause
    goes_on = state == "FAILED" and _goes_on(seen.owner, apps)
    found = serveapps.failure(seen.name, apps, goes_on=goes_on) or cause
    # That a pod cannot come up explains why its replica finds no room.
    found = cause if cause and found and found.reason == serveapps.UNSCHEDULABLE else found
    if found and _is_replaced(seen.owner, state):
        return replace(found, next_step="; ".join(filter(None, [found.next_step, f"meanwhile {serveapps.GOES_ON}"])))
    if found and undone and not goes_on and _may_go_on(seen.owner, apps):
        return replace(found, next_step=f"{found.next_step}; {serveapps.MAY_GO_ON}")
    return found


def _is_replaced(service: Object, state: State) -> bool:
    """Whether a new cluster is to replace the service's current one, which answers requests until then."""
    return state == "PENDING" and all(clusters_of(service)) and is_true(service, "Ready")


def _goes_on(service: Object, apps: Apps) -> bool:
    """Whether the previous version still serves after a failed update: on its own cluster, or on the same one."""
    failed = [app for app in apps.values() if serveapps.is_undone(app)]
    return all(clusters_of(service)) or all(
        serveapps.runs_of_before(app, app.get("last_deployed_time_s") or 0.0) for app in failed
    )


def _may_go_on(service: Object, apps: Apps) -> bool:
    """Whether the previous version may serve after an update whose code cannot be loaded.

    A service has a cluster of its own once all its applications have answered there. That KubeRay still finds pods
    which take requests does not say that a replica is left.
    """
    failed = [app for app in apps.values() if serveapps.is_undone(app)]
    unbuilt = all(app["status"] == "DEPLOY_FAILED" and not serveapps.has_deployments(app) for app in failed)
    return unbuilt and bool(clusters_of(service)[0]) and is_true(service, "Ready")


def _detail(seen: Observed, apps: Apps, state: State, failure: Failure | None) -> str:
    if is_leaving(seen.owner):
        return endings.BEING_DELETED
    if failure and failure.reason == serveapps.UPDATE_FAILED:
        return f"the update failed; {serveapps.GOES_ON}: {endings.summary(failure.message)}"
    if failure and _is_replaced(seen.owner, state):
        return f"the update waits; {serveapps.GOES_ON}: {failure.reason}: {endings.summary(failure.message)}"
    if failure:
        return f"{failure.reason}: {endings.summary(failure.message)}"
    if state == "WAITING" or (state == "PENDING" and all(clusters_of(seen.owner))):
        return f"{_waiting(seen)}; {serveapps.GOES_ON}" if _is_replaced(seen.owner, state) else _waiting(seen)
    return serveapps.line(apps) or "no application"


def _waiting(seen: Observed) -> str:
    which = "its new cluster" if all(clusters_of(seen.owner)) else "its cluster"
    if not seen.pods:
        return f"KubeRay makes {which}"
    ready = sum(map(is_ready, seen.pods))
    return f"{ready} of {len(seen.pods)} pods of {which} ready"
