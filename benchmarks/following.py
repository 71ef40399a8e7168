"""How late a waiter hears of a run on KubeRay: of a change of its objects, and of the end of Ray's job.

Run: raykube cluster create demo --on MANIFEST; python -m benchmarks.following --cluster demo --runs 20 --changes 600

The end of a job is the time that Ray itself reports, on the head's clock, which is assumed to agree with this one. In
parallel with raykube's waiter, a watch of the RayJob finds when its status says the end, as ``kubectl wait`` would.
"""

from __future__ import annotations

import argparse
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import raykube as rk
from benchmarks import rows, stats, tables
from raykube import api
from raykube.backends.kuberay.runs.look import Look
from raykube.backends.kubernetes.kubeapi import Kube, Stop
from raykube.cluster import Cluster

_MARK = "raykube.io/benchmark"
_ENDED = ("Complete", "Failed", "ValidationFailed")
_PAUSE_S = 0.05  # between two changes, so that each wakes the waiter separately


def submit(on: Cluster, folder: Path, entrypoint: str) -> rk.Run:
    """Start a job under a new name on the cluster."""
    job = rk.Job(entrypoint=entrypoint, name=f"follow-{secrets.token_hex(3)}", working_dir=folder)
    return api.start(rk.plan(job, on))


def end_s(kube: Kube, on: Cluster, folder: Path) -> dict[str, float]:
    """Run a short job; return how long after its end raykube's waiter and the RayJob's status knew of it."""
    run = submit(on, folder, "sleep 1")
    heard: dict[str, float] = {}
    watcher = threading.Thread(target=lambda: heard.update(rayjob=_ended_in_its_status(kube, run.name)))
    watcher.start()
    run.wait()
    heard["raykube"] = time.time()
    watcher.join()
    ended = run.status().ended
    assert ended is not None
    run.delete()
    return {arm: at - ended for arm, at in heard.items()}


def _ended_in_its_status(kube: Kube, name: str) -> float:
    selector = {"fieldSelector": f"metadata.name={name}"}
    _, version = kube.snapshot("RayJob", **selector)
    for change in kube.watch("RayJob", version, Stop(), **selector):
        if (change["object"].get("status") or {}).get("jobDeploymentStatus") in _ENDED:
            return time.time()
    raise SystemExit(f"the watch of {name} ended before it did")


def changes_ms(kube: Kube, on: Cluster, folder: Path, count: int) -> Iterator[float]:
    """Change a running job's object `count` times; yield how long a waiter takes to see each change, in ms."""
    run = submit(on, folder, "sleep 3600")
    look = Look(Kube(kube.context, kube.namespace), run.name)
    looks = look.changes()
    while next(looks).state != "RUNNING":
        pass
    for number in range(count):
        began = _marked(kube, run.name, str(number))
        while (look.job["metadata"].get("annotations") or {}).get(_MARK) != str(number):
            next(looks)
        yield (time.perf_counter() - began[0]) * 1000
    run.delete()


def _marked(kube: Kube, name: str, mark: str) -> list[float]:
    """Change the object a moment later, from another thread; return a list that will hold the time of the change."""
    began: list[float] = [0.0]

    def patch() -> None:
        time.sleep(_PAUSE_S)
        began[0] = time.perf_counter()
        kube.patch("RayJob", name, {"metadata": {"annotations": {_MARK: mark}}})

    threading.Thread(target=patch, daemon=True).start()
    return began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cluster", required=True, help="a long-lived cluster")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--changes", type=int, default=600)
    given = parser.parse_args()
    kube = Kube()
    on = api.running(given.cluster, Cluster.load("kubernetes"))
    session = rows.Session.start("following", quick=given.runs < stats.MIN_PAIRS)
    taken: list[rows.Row] = []
    with TemporaryDirectory() as name:
        for pair in range(given.runs):
            for arm, after in end_s(kube, on, Path(name)).items():
                taken.append(session.add("end_s", arm, pair, {}, {"values": {"end_s": after}}))
        changes = list(changes_ms(kube, on, Path(name), given.changes))
    taken.append(session.add("changes_ms", "raykube", 0, {}, {"values": {"ms": changes}}))
    print("\n".join(tables.following(taken)))


if __name__ == "__main__":
    main()
