"""What raykube costs and saves on KubeRay: creating a job's objects, and the time until its entrypoint runs.

Run: python -m benchmarks.cluster --on cluster-configs/cpu-small.yaml --pairs 6

The base is the same RayJob without what raykube adds: it has KubeRay's own probes and the bare entrypoint, and its
state is read from the RayJob. This is what ``kubectl apply`` and ``kubectl get`` give. The arms run in turn; each pair
measures the base twice, and these two give the noise floor.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import raykube as rk
from benchmarks import rows, stats
from raykube import api
from raykube.backends.kubernetes.kubeapi import Kube, Stop
from raykube.plans import Plan

BASE, AGAIN, OURS = "kubectl", "again", "raykube"
ADDED = ("readinessProbe", "livenessProbe", "terminationMessagePolicy")
GOALS = {"stock": 0.8, "tuned": 0.45}
POST_GOAL_MS = 10.0


def plan(on: rk.Cluster, folder: Path) -> Plan:
    """Plan a job that prints a line, under a new name."""
    (folder / "hello.py").write_text("print('hello')\n")
    job = rk.Job(entrypoint="python hello.py", name=f"bench-{secrets.token_hex(3)}", working_dir=folder)
    return rk.plan(job, on)


def bare(planned: Plan) -> tuple[dict[str, Any], ...]:
    """Return the objects without what raykube adds to make the job run sooner."""
    body = copy.deepcopy(planned.body)
    spec = body[-1]["spec"]
    spec["entrypoint"] = "python hello.py"
    cluster = spec["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *(cluster.get("workerGroupSpecs") or [])):
        for key in ADDED:
            group["template"]["spec"]["containers"][0].pop(key, None)
    return body


def suspended(planned: Plan) -> Plan:
    """Return the plan as a suspended job, for which KubeRay makes no pod."""
    *parts, job = copy.deepcopy(planned.body)
    job["spec"]["suspend"] = True
    return dataclasses.replace(planned, body=(*parts, job))


def post_ms(kube: Kube, on: rk.Cluster, folder: Path, arm: str) -> float:
    """Create the objects of one job and remove them; return how long creating them took, in ms.

    The time includes opening a connection to the server in either arm, as for every submitted job.
    """
    planned = suspended(plan(on, folder))
    began = time.perf_counter()
    if arm == OURS:
        api.start(planned)
    else:
        own = Kube(on.context, on.namespace)
        for part in reversed(planned.body):
            own.create(part)
    took = (time.perf_counter() - began) * 1000
    _remove(kube, planned, arm)
    return took


def _remove(kube: Kube, planned: Plan, arm: str) -> None:
    """Delete a job's objects; in raykube's arm, the RayJob owns the code, which goes with it."""
    kube.delete("RayJob", planned.name, propagationPolicy="Foreground")
    if arm != OURS:
        kube.delete("ConfigMap", planned.body[0]["metadata"]["name"])


def running_s(kube: Kube, on: rk.Cluster, folder: Path, arm: str) -> float:
    """Run one job until its entrypoint is seen to run, and remove it; return the seconds that this took."""
    planned = plan(on, folder)
    began = time.perf_counter()
    if arm == OURS:
        run = api.start(planned)
        for status in run.backend.changes(run.name):
            if status.state not in ("WAITING", "PENDING"):
                break
    else:
        for part in bare(planned):
            kube.create(part)
        _until_running(kube, planned.name)
    took = time.perf_counter() - began
    _remove(kube, planned, arm)
    _until_gone(kube, planned.name)
    return took


def _until_running(kube: Kube, name: str) -> None:
    selector = {"fieldSelector": f"metadata.name={name}"}
    found, version = kube.snapshot("RayJob", **selector)
    if any(_runs(job) for job in found):
        return
    if not any(_runs(change["object"]) for change in kube.watch("RayJob", version, Stop(), **selector)):
        raise SystemExit(f"the watch of {name} ended before it ran")


def _runs(job: Mapping[str, Any]) -> bool:
    return (job.get("status") or {}).get("jobStatus") in ("RUNNING", "SUCCEEDED", "FAILED")


def _until_gone(kube: Kube, name: str) -> None:
    """Wait until the RayJob and its pods are gone: the next sample must not run beside them."""
    while kube.find("RayJob", name) or _pods(kube, name):
        time.sleep(0.2)


def _pods(kube: Kube, name: str) -> bool:
    found = kube.listed("Pod", labelSelector="ray.io/is-ray-node=yes")
    return any(pod["metadata"]["name"].startswith(f"{name}-") for pod in found)


def measure(session: rows.Session, what: str, pairs: int, sample: Any, case: dict[str, Any]) -> dict[str, list[float]]:
    """Take pairs of samples, in the reverse order for every other pair."""
    taken: dict[str, list[float]] = {arm: [] for arm in (BASE, OURS, AGAIN)}
    for pair in range(pairs):
        for arm in (BASE, OURS, AGAIN)[:: 1 if pair % 2 == 0 else -1]:
            value = sample(arm)
            taken[arm].append(value)
            session.add(what, arm, pair, case, {"values": {what: value}})
            print(f"  {what} {arm} {value:.2f}", file=sys.stderr, flush=True)
    return taken


def tell(name: str, taken: dict[str, list[float]], goal: str) -> None:
    """Print medians, ratio, interval and noise floor."""
    ratio, floor = stats.compare(taken[OURS], taken[BASE]), stats.noise_floor(taken[BASE], taken[AGAIN])
    medians = {arm: stats.median(values).value for arm, values in taken.items()}
    print(f"{name}: " + ", ".join(f"{arm} {value:.2f}" for arm, value in medians.items()))
    interval = f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
    print(f"  ratio {interval}, {ratio.count} pairs, floor {floor:.3f}; {goal}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", required=True, help="preset or manifest")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--operator", choices=sorted(GOALS), default="stock", help="tuned: as docs/kubernetes.md says")
    given = parser.parse_args()
    on = rk.Cluster.load(given.on)
    kube = Kube(on.context, on.namespace)
    session = rows.Session.start("cluster", quick=given.pairs < stats.MIN_PAIRS)
    case = {"operator": given.operator}
    with TemporaryDirectory() as name:
        folder = Path(name)
        posts = measure(session, "post_ms", 5 * given.pairs, lambda arm: post_ms(kube, on, folder, arm), case)
        starts = measure(session, "running_s", given.pairs, lambda arm: running_s(kube, on, folder, arm), case)
    tell("creating a job's objects, ms", posts, f"goal: {POST_GOAL_MS:g} ms above the base")
    goal = GOALS[given.operator]
    tell(f"created to running, s ({given.operator} operator)", starts, f"goal: {goal}")
    ratio, floor = stats.compare(starts[OURS], starts[BASE]), stats.noise_floor(starts[BASE], starts[AGAIN])
    print(f"  verdict: {stats.verdict(ratio, goal, floor)}")


if __name__ == "__main__":
    main()
