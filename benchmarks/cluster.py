"""What raykube costs and saves on KubeRay: creating a job's objects, and the time until its entrypoint runs.

Run: python -m benchmarks.cluster --on cluster-configs/cpu-small.yaml --pairs 6
     python -m benchmarks.cluster --on cluster-configs/cpu-small.yaml --pairs 6 --tune ray-system

The base is the same RayJob without what raykube adds: it has KubeRay's own probes and the bare entrypoint, and its
state is read from the RayJob. This is what ``kubectl apply`` and ``kubectl get`` give. The arms run in turn; each pair
measures the base twice, and these two give the noise floor.

With --tune, each pair also measures raykube under an operator with the setting that docs/kubernetes.md recommends. The
operator is changed for that, and changed back: do this on a cluster that nobody else uses.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import raykube as rk
from benchmarks import rows, stats, tables
from raykube import api
from raykube.backends.kubernetes.kubeapi import Kube, Stop
from raykube.plans import Plan

BASE, AGAIN, OURS, TUNED = "kubectl", "kubectl again", "raykube", "raykube, tuned"
ADDED = ("readinessProbe", "livenessProbe", "terminationMessagePolicy")
_SETTING = "ENABLE_INIT_CONTAINER_INJECTION"


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
    if arm in (BASE, AGAIN):
        kube.delete("ConfigMap", planned.body[0]["metadata"]["name"])


def running_s(kube: Kube, on: rk.Cluster, folder: Path, arm: str) -> float:
    """Run one job until its entrypoint is seen to run, and remove it; return the seconds that this took."""
    planned = plan(on, folder)
    began = time.perf_counter()
    if arm in (OURS, TUNED):
        run = api.start(planned)
        for status in run.backend.changes(run.name):
            if status.state not in ("WAITING", "PENDING"):
                break
    else:
        for part in bare(planned):
            kube.create(part)
        _until(kube, planned.name, _runs)
    took = time.perf_counter() - began
    _remove(kube, planned, arm)
    _until_gone(kube, planned.name)
    return took


def _until(kube: Kube, name: str, fact: Callable[[Mapping[str, Any]], bool]) -> None:
    """Watch a RayJob until its status shows the fact."""
    selector = {"fieldSelector": f"metadata.name={name}"}
    found, version = kube.snapshot("RayJob", **selector)
    if any(fact(job.get("status") or {}) for job in found):
        return
    changes = kube.watch("RayJob", version, Stop(), **selector)
    if not any(fact(change["object"].get("status") or {}) for change in changes):
        raise SystemExit(f"the watch of {name} ended too early")


def _runs(status: Mapping[str, Any]) -> bool:
    return status.get("jobStatus") in ("RUNNING", "SUCCEEDED", "FAILED")


def _until_gone(kube: Kube, name: str) -> None:
    """Wait until the RayJob and its pods are gone: the next sample must not run beside them."""
    while kube.find("RayJob", name) or _pods(kube, name):
        time.sleep(0.2)


def _pods(kube: Kube, name: str) -> bool:
    found = kube.listed("Pod", labelSelector="ray.io/is-ray-node=yes")
    return any(pod["metadata"]["name"].startswith(f"{name}-") for pod in found)


@contextmanager
def operator(kube: Kube, on: rk.Cluster, folder: Path, namespace: str) -> Iterator[None]:
    """Have KubeRay's operator, in this namespace, leave out the init container of workers; afterwards as before."""
    try:
        _set(namespace, f"{_SETTING}=false")
        _until_it_acts(kube, on, folder)
        yield
    finally:
        _set(namespace, f"{_SETTING}-")
        _until_it_acts(kube, on, folder)


def _set(namespace: str, setting: str) -> None:
    """Change the operator's environment and wait until its new pod is up; kubectl says why when it cannot."""
    deployment = ["deployment/kuberay-operator", "-n", namespace]
    for words in (["set", "env", *deployment, setting], ["rollout", "status", *deployment]):
        subprocess.run(["kubectl", *words], check=True, stdout=subprocess.DEVNULL)


def _until_it_acts(kube: Kube, on: rk.Cluster, folder: Path) -> None:
    """Wait for the operator to act on a job: a new one waits until it leads, for some 15 s."""
    planned = suspended(plan(on, folder))
    api.start(planned)
    _until(kube, planned.name, lambda status: bool(status.get("jobDeploymentStatus")))
    _remove(kube, planned, OURS)


def post_samples(kube: Kube, on: rk.Cluster, folder: Path, pair: int) -> Iterator[tuple[str, float]]:
    """Yield the arms of a pair with how long creating the objects took, in ms."""
    for arm in rows.in_turn((BASE, OURS, AGAIN), pair):
        yield arm, post_ms(kube, on, folder, arm)


def start_samples(kube: Kube, on: rk.Cluster, folder: Path, pair: int, tune: str) -> Iterator[tuple[str, float]]:
    """Yield the arms of a pair with the seconds from created to RUNNING; the tuned one comes first or last."""
    for tuned in rows.in_turn((False, True), pair):
        if not tuned:
            for arm in rows.in_turn((BASE, OURS, AGAIN), pair):
                yield arm, running_s(kube, on, folder, arm)
        elif tune:
            with operator(kube, on, folder, tune):
                yield TUNED, running_s(kube, on, folder, TUNED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", required=True, help="preset or manifest")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument(
        "--tune", default="", metavar="NAMESPACE", help="where KubeRay's operator is that may be changed"
    )
    given = parser.parse_args()
    on = rk.Cluster.load(given.on)
    kube = Kube(on.context, on.namespace)
    session = rows.Session.start("cluster", quick=given.pairs < stats.MIN_PAIRS)
    taken: list[rows.Row] = []

    def add(what: str, pair: int, samples: Iterator[tuple[str, float]]) -> None:
        for arm, value in samples:
            taken.append(session.add(what, arm, pair, {}, {"values": {what: value}}))
            print(f"  {what} {arm} {value:.2f}", file=sys.stderr, flush=True)

    with TemporaryDirectory() as name:
        for pair in range(5 * given.pairs):
            add("post_ms", pair, post_samples(kube, on, Path(name), pair))
        for pair in range(given.pairs):
            add("running_s", pair, start_samples(kube, on, Path(name), pair, given.tune))
    print("\n\n".join("\n".join(part) for part in (tables.posts(taken), tables.cluster_starts(taken))))


if __name__ == "__main__":
    main()
