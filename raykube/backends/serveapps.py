"""The state of Ray Serve's applications, and what keeps them from running, on every backend. Pure functions."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from raykube import wire
from raykube.backends import endings
from raykube.differences import of_objects
from raykube.errors import Failure
from raykube.shapes import entries, mapping

Apps = Mapping[str, Mapping[str, Any]]

#: The reason of a failed update after which the former deployment still serves.
UPDATE_FAILED = "UpdateFailed"
#: That of a replica which finds no room, or is not ready to be placed: Serve waits for as long as it takes.
UNSCHEDULABLE = "ReplicaUnschedulable"
#: That of replicas that were up and then crashed, or fail their health check.
UNHEALTHY = "ReplicaUnhealthy"
GOES_ON = "what was deployed before goes on serving"
#: Said where Serve does not tell: of code that it cannot load it has begun nothing, and reports no replicas.
MAY_GO_ON = "what was deployed before may still answer"
#: Said where it does not go on: Serve stops a single replica before it starts the new one.
_STOPPED = "what was deployed before was stopped, and comes back when its code is deployed again"

#: Said of an update, with the service's name and what it changes.
CHANGES = "%s changes: %s"

_UNSAID = "as the application says"
_UNDONE = ("DEPLOY_FAILED", "UNHEALTHY")
_MARK = "Error:\n"  # in a deployment's message, before the error of a replica that did not start
_UPDATE = "rolling update"  # before that mark: there were replicas of another version
_UNPLACED = re.compile(r"have taken more than \S+ to be scheduled\.")
_RESOURCES = re.compile(r"Resources required for each replica: (\{.*?\}), total resources available: (\{.*?\})")
_UNKNOWN = re.compile(r"Deployment '[^']*' does not exist\. Available: \[(.*)\]")


def is_undone(app: Mapping[str, Any]) -> bool:
    """Whether an application has failed to deploy, or has become unhealthy."""
    return app["status"] in _UNDONE


def is_of(app: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether Serve's state is of this configuration; assumed if Serve does not say."""
    return "deployed_app_config" not in app or not any(of_objects(config, app["deployed_app_config"], ""))


def retried(
    wanted: Iterable[Mapping[str, Any]], before: Iterable[Mapping[str, Any]], undone: Collection[str]
) -> list[dict[str, Any]]:
    """Return configurations with which Serve builds the undone applications again, and only those.

    Serve builds a failed application again only if its runtime environment has changed, so the attempt's number is put
    there. Applications that are well keep their numbers of `before`: without them Serve would rebuild these too.
    """
    numbers = {name_of(app): int(_variables(app).get(wire.ATTEMPT, "1")) + (name_of(app) in undone) for app in before}
    return [_numbered(app, numbers.get(name_of(app), 1)) for app in wanted]


def _numbered(app: Mapping[str, Any], attempt: int) -> dict[str, Any]:
    if attempt == 1:
        return dict(app)
    variables = {**_variables(app), wire.ATTEMPT: str(attempt)}
    return {**app, "runtime_env": {**(app.get("runtime_env") or {}), "env_vars": variables}}


def _variables(app: Mapping[str, Any]) -> Mapping[str, Any]:
    return mapping(mapping(app.get("runtime_env")).get("env_vars"))


def name_of(app: Mapping[str, Any]) -> str:
    """Return the name of an application, as its configuration gives it."""
    return str(app.get("name") or "default")


def logs_apart(app: Mapping[str, Any], environment: Mapping[str, str]) -> bool:
    """Whether an application's replicas log and print only to Serve's own files.

    Serve writes these lines to standard error as well, unless it is told not to, or to be as fast as it can: by the
    environment of the pods, or by the application's own.
    """
    said = {**environment, **_variables(app)}
    default = "0" if said.get("RAY_SERVE_THROUGHPUT_OPTIMIZED") == "1" else "1"
    return bool(said.get("RAY_SERVE_LOG_TO_STDERR", default) != "1")


def resized(before: Iterable[Mapping[str, Any]], after: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the numbers that an update changes: ``replicas 2 -> 1``; of applications that it adds or removes, none."""
    old, new = ({name_of(app): app for app in apps} for apps in (before, after))
    then, now = (_numbers(apps[name] for name in apps if name in old and name in new) for apps in (old, new))
    keys = [*then, *(key for key in now if key not in then)]
    several = len({key[:2] for key in keys}) > 1
    for app, deployment, what in keys:
        was, will = (told.get((app, deployment, what), _UNSAID) for told in (then, now))
        if was != will:
            of = f" of {app}'s {deployment}" if several else ""
            yield f"{what}{of} {was} -> {will}"


def _numbers(configs: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str, str], str]:
    """Return what configurations say of numbers, by application, deployment and what is counted."""
    found: dict[tuple[str, str, str], str] = {}
    for config in configs:
        for said in map(mapping, entries(config.get("deployments"))):
            bounds, options = mapping(said.get("autoscaling_config")), mapping(said.get("ray_actor_options"))
            scaled = f"{bounds.get('min_replicas', 1)}..{bounds.get('max_replicas', 1)}" if bounds else None
            numbers = {"replicas": said.get("num_replicas", scaled), "GPUs of a replica": options.get("num_gpus")}
            key = name_of(config), str(said.get("name"))
            found |= {(*key, what): _written(number) for what, number in numbers.items() if number is not None}
    return found


def _written(number: Any) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)


def described(configs: Iterable[Mapping[str, Any]]) -> str:
    """Return what applications are to serve: ``jobs.digits_app:app, model run:digits-a1, code efebcd45873c``."""
    return "; ".join(map(_described, configs))


def _described(app: Mapping[str, Any]) -> str:
    model = mapping(app.get("args")).get("model")
    code = str(mapping(app.get("runtime_env")).get("working_dir") or "")
    version = f"code {PurePosixPath(code).stem}" if code.endswith(".zip") else code
    return ", ".join(filter(None, (app.get("import_path"), model and f"model {model}", version)))


def failure(service: str, apps: Apps, *, goes_on: bool = False) -> Failure | None:
    """Return why a service's applications are not up, in Serve's words; None while it reports no fault.

    Args:
        service: its name.
        apps: its applications, as Serve reports them.
        goes_on: whether what was deployed before still serves.
    """
    failed = {name: app for name, app in apps.items() if is_undone(app)}
    if failed:
        # Serve calls unhealthy only what was up.
        was_up = all(app["status"] == "UNHEALTHY" for app in failed.values())
        reason = UPDATE_FAILED if goes_on else UNHEALTHY if was_up else "DeployFailed"
        found = _failure_from(reason, [words(*each) for each in failed.items()])
        if was_up:  # else the message has what kept its replicas from starting
            return replace(found, next_step=f"raykube service logs {service}")
        is_lost = not goes_on and any(map(_has_lost_all, failed.values()))
        return replace(found, next_step=f"{found.next_step}; {_STOPPED}") if is_lost else found
    said = [_of_deployments(app) for app in apps.values() if app["status"] == "DEPLOYING"]
    if tries := [text for text in said if _MARK in text]:
        return _failure_from("ReplicaFailed", tries)
    if waits := [text for text in said if _UNPLACED.search(text)]:
        return Failure(UNSCHEDULABLE, "\n".join(waits), next_step=_to_fit(waits))
    return None


def words(name: str, app: Mapping[str, Any]) -> str:
    """Return what Serve says of an application's deployments, else of the application, else just its status."""
    return _of_deployments(app) or str(app.get("message") or "").strip() or f"{name} is {app['status']}"


def has_deployments(app: Mapping[str, Any]) -> bool:
    """Whether Serve reports deployments of an application: none if it cannot load the code."""
    return bool(app.get("deployments") or app.get("serveDeploymentStatuses"))


def runs_of_before(app: Mapping[str, Any], since: float) -> bool:
    """Whether each deployment of an application that failed to deploy has a replica from before `since`."""
    deployments = (app.get("deployments") or {}).values()
    return (
        bool(deployments) and app["status"] == "DEPLOY_FAILED" and all(_has_older(each, since) for each in deployments)
    )


def _has_lost_all(app: Mapping[str, Any]) -> bool:
    """Whether a failed update has left a deployment of an application without a running replica."""
    deployments = (app.get("deployments") or {}).values()
    return any(_UPDATE in str(each.get("message")).partition(_MARK)[0] and not _running(each) for each in deployments)


def line(apps: Apps) -> str:
    """Return the state of each application, and how many of its replicas run."""
    return ", ".join(f"{name} {app['status']}{_replicas(app)}" for name, app in apps.items())


def _replicas(app: Mapping[str, Any]) -> str:
    count = sum(len(_running(each)) for each in (app.get("deployments") or {}).values())
    return f" ({count} replica{'s' if count != 1 else ''})" if count else ""


def _has_older(deployment: Mapping[str, Any], since: float) -> bool:
    return any((each.get("start_time_s") or since) < since for each in _running(deployment))


def _running(deployment: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [each for each in deployment.get("replicas") or [] if each.get("state") == "RUNNING"]


def _of_deployments(app: Mapping[str, Any]) -> str:
    """Return the messages of unwell deployments; others' tell of no fault, but e.g. of a number of replicas."""
    deployments = (app.get("deployments") or app.get("serveDeploymentStatuses") or {}).values()
    unwell = [each for each in deployments if each.get("status") in (*_UNDONE, "UPDATING")]
    return "\n".join(text for each in unwell if (text := str(each.get("message") or "").strip()))


def _failure_from(reason: str, said: Sequence[str]) -> Failure:
    """Return the failure with the exceptions' own words in `said` as its message, and what led to them as its tail."""
    plain = [endings.COLOUR.sub("", text) for text in said]
    parts = [_parted(text) for text in plain]
    message = "\n".join(own for _, own in parts)
    tail = endings.tail_of("\n".join(led for led, _ in parts))
    return Failure(reason, message, tail=tail, next_step=_next_step(plain))


def _parted(text: str) -> tuple[str, str]:
    """Split a text where an exception's own words begin: at the first unindented line after a traceback."""
    lines = text.strip().splitlines()
    frames = max((number for number, line in enumerate(lines) if line.lstrip().startswith('File "')), default=-1)
    begin = next((number for number in range(frames + 1, len(lines)) if lines[number][:1].strip()), 0)
    return "\n".join(lines[:begin]), "\n".join(lines[begin:])


def _to_fit(said: Iterable[str]) -> str:
    """Return what to do about replicas that are not placed, by what Serve says that each needs and what is free."""
    pairs = [[*map(json.loads, found.groups())] for text in said if (found := _RESOURCES.search(text))]
    lacking = {
        name: f"{amount:g} {name}"
        for required, free in pairs
        for name, amount in required.items()
        if amount > free.get(name, 0)
    }
    if lacking:
        what = f"the cluster does not have {' and '.join(lacking.values())} free for a replica"
        more = "or give it more (on Kubernetes, --workers N)"
        return f"{what}: ask for less (--num-gpus, --replicas, ray_actor_options), {more}"
    return "wait if its packages are being installed; else ask for less (ray_actor_options): no node may have that much"


def _next_step(said: Sequence[str]) -> str:
    if found := next((match[1] for text in said if (match := _UNKNOWN.search(text))), ""):
        names = " or ".join(re.findall(r"'([^']+)'", found))
        return f"say whose replicas are set: --deployment {names}; in Python: App(deployment=...)"
    return "correct the application as the message says and deploy again"
