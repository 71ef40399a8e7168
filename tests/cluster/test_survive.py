"""Runs that go on: after each fault the job ends with exactly the optimizer steps that were planned."""

import json

import pytest
import yaml

import raykube as rk
from tests.cluster import faults, kubectl, workloads
from tests.cluster.shell import until

pytestmark = [pytest.mark.cluster, pytest.mark.long]
EPOCHS, STEPS = 200, 5
# How far each attempt may come before it is lost; the last one does the rest, in no time.
LIMITS = {1: 60, 2: 120, 3: 190}
TRAIN = f"""
import os, tempfile, time
import ray.train, torch
import raykube
from raykube.inside import checkpoints

def loop(config):
    attempt = int(os.environ["RAYKUBE_ATTEMPT"])
    limit = {LIMITS}.get(attempt)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    state = checkpoints.latest() or {{"epoch": 0, "steps": 0}}
    steps = state["steps"]
    for epoch in range(state["epoch"], {EPOCHS}):
        while limit and epoch >= limit:
            time.sleep(0.1)
        for _ in range({STEPS}):
            optimizer.zero_grad(); (-weight).backward(); optimizer.step(); steps += 1
        time.sleep(0.3 if limit else 0)
        with tempfile.TemporaryDirectory() as folder:
            checkpoints.save({{"epoch": epoch + 1, "steps": steps}}, folder)
            told = {{"epoch": epoch + 1, "steps": steps, "attempt": attempt}}
            raykube.report(told, checkpoint=ray.train.Checkpoint(folder))

if __name__ == "__main__":
    result = raykube.train(loop, {{}})
    print("steps", result.metrics["steps"], flush=True)
"""


@pytest.fixture
def place(namespace, tmp_path, least):  # noqa: ARG001
    """Give a cluster of a head and one worker, with a volume, in a namespace of the least rights."""
    kubectl.apply(workloads.manifest("claim"), namespace=namespace)
    manifest = yaml.safe_load(workloads.manifest("house"))
    path = tmp_path / "house.yaml"
    path.write_text(yaml.safe_dump(manifest))
    return rk.Cluster.load(path).sized(workers=1)


@pytest.fixture
def code(tmp_path):
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "train.py").write_text(TRAIN)
    return folder


def epoch_beyond(run, epoch):
    """Wait until the run has reported an epoch beyond this one, and return it."""
    reached = run.status().progress.get("epoch", 0)
    return until(lambda: max(run.status().progress.get("epoch", 0), 0) > max(epoch, reached), "the run goes on", 150)


def attempt_is(run, number):
    """Wait until the run is in this attempt: the one before it may have reported more than was seen of it."""
    until(lambda: run.status().attempt == number, f"attempt {number}", 150)


def pod(namespace, node_type):
    return workloads.pods(namespace, node_type)[0]["metadata"]["name"]


def test_run_survives_driver_worker_head_and_cluster_lost_in_turn(place, code, namespace):
    run = rk.submit(rk.Job(entrypoint="python train.py", name="survivor", working_dir=code, max_retries=3), place)
    epoch_beyond(run, 2)
    faults.kill_in_pod(namespace, pod(namespace, "head"), r"^python train\.py")
    attempt_is(run, 2)
    epoch_beyond(run, 2)
    faults.delete_pod(namespace, pod(namespace, "worker"))
    epoch_beyond(run, 2)
    faults.delete_pod(namespace, pod(namespace, "head"))
    attempt_is(run, 3)
    epoch_beyond(run, 2)
    kubectl.kubectl("delete", "rayclusters", "--all", "--wait=false", namespace=namespace)
    status = run.wait(timeout_s=240).status()
    assert (status.state, status.attempt) == ("SUCCEEDED", 4)
    result = run.result()
    assert (result.metrics["steps"], result.metrics["epoch"]) == (EPOCHS * STEPS, EPOCHS)
    told = [row["metrics"] for row in rows(run, namespace)]
    # The third may be lost before it has done an epoch.
    assert {1, 2, 4} <= {each["attempt"] for each in told} <= {1, 2, 3, 4}
    epochs = [each["epoch"] for each in told]
    # Each attempt goes on from the last checkpoint, so at most that one epoch is done a second time.
    assert sorted(set(epochs)) == list(range(1, EPOCHS + 1))
    assert len(epochs) <= EPOCHS + 5
    assert [line.split()[2] for line in status.earlier] == ["EntrypointFailed", "HeadLost", "HeadLost"]
    assert f"steps {EPOCHS * STEPS}" in list(run.logs())


def rows(run, namespace):
    head = workloads.ready_head(namespace)
    text = kubectl.kubectl("exec", head, "--", "cat", f"/shared/{run.name}/train-1/metrics.jsonl", namespace=namespace)
    return [json.loads(line) for line in text.splitlines()]
