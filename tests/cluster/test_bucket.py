"""Runs whose storage is a bucket of a real S3 server keep there what others keep on a volume."""

import json

import pytest
import yaml

import raykube as rk
from tests.cluster import addons, bucket, faults, workloads
from tests.cluster.shell import until

#: Among the tests of the add-ons, which `make test-rig` runs: it takes minutes, and a program more to build.
pytestmark = [pytest.mark.cluster, pytest.mark.rig]
EPOCHS = 20
SCRIPT = f"""
import os, time
import ray.train, torch
import raykube
from ray import tune
from raykube.inside import checkpoints, serving

def train(config):
    first = os.environ["RAYKUBE_ATTEMPT"] == "1"
    state = checkpoints.latest() or {{"epoch": 0, "weight": torch.zeros(100_000)}}
    for epoch in range(state["epoch"], {EPOCHS}):
        while first and epoch == {EPOCHS} // 2:
            time.sleep(0.1)
        time.sleep(0.2)
        print("epoch", epoch + 1, flush=True)
        told = {{"epoch": epoch + 1, "loss": 1 / (epoch + 1), "attempt": 1 if first else 2}}
        raykube.report(told, {{"epoch": epoch + 1, "weight": torch.full((100_000,), float(epoch))}})

def search(config):
    print("trial of", config["x"], flush=True)
    for epoch in range(2):
        raykube.report({{"loss": config["x"] + 1 / (epoch + 1)}}, {{"x": config["x"]}})
        ray.train.report({{"loss": config["x"] + 1 / (epoch + 1), "plain": epoch}})

if __name__ == "__main__":
    trained = raykube.train(train, {{}}, metric="loss")
    print("kept", checkpoints.load(trained.checkpoint)["weight"][0].item(), flush=True)
    raykube.sweep(search, {{"x": tune.uniform(1, 3)}}, trials=2, metric="loss", mode="min")
    print("best", checkpoints.load(serving.resolve("run:lost"))["x"], flush=True)
"""


@pytest.fixture
def storage(request):
    """Give the URI of a bucket on this machine's own cluster."""
    request.getfixturevalue("own_cluster")
    addons.start("bucket")
    with bucket.made("runs") as uri:
        yield uri


@pytest.fixture
def place(storage, namespace, tmp_path, least):  # noqa: ARG001
    """Give a cluster of a head and a worker that have the keys of the bucket and no volume, for the least rights."""
    bucket.keys(namespace)
    manifest = yaml.safe_load(workloads.manifest("house"))
    manifest["metadata"]["annotations"]["raykube.io/storage"] = storage
    for group in (manifest["spec"]["headGroupSpec"], *manifest["spec"]["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        del pod["volumes"]
        pod["containers"][0] = {k: v for k, v in pod["containers"][0].items() if k != "volumeMounts"}
        pod["containers"][0]["envFrom"] = [{"secretRef": {"name": bucket.KEYS}}]
    path = tmp_path / "house.yaml"
    path.write_text(yaml.safe_dump(manifest))
    return rk.Cluster.load(path).sized(workers=1)


def rows():
    with bucket.store().open_input_file("runs/lost/train-1/metrics.jsonl") as file:
        return [json.loads(line)["metrics"] for line in file.read().splitlines()]


def test_run_whose_head_is_lost_trains_on_and_searches_on_a_bucket(place, tmp_path, namespace):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "script.py").write_text(SCRIPT)
    job = {"entrypoint": "python script.py", "working_dir": tmp_path / "code", "max_retries": 1, "keep_cluster_s": 0}
    run = rk.submit(rk.Job(name="lost", **job), place)
    until(lambda: run.status().progress.get("epoch") == EPOCHS // 2, "the first attempt is half through", 200)
    faults.delete_pod(namespace, workloads.pods(namespace, "head")[0]["metadata"]["name"])
    status = run.wait(timeout_s=300).status()
    assert status.state == "SUCCEEDED", "\n".join(run.logs())
    until(lambda: not workloads.pods(namespace), "its cluster is gone", 60)
    assert_trained(list(run.logs()))
    assert_found_best(run)
    run.delete()
    assert bucket.names("runs/lost") == []


def assert_trained(log):
    """See that the second attempt went on from a checkpoint of the first."""
    assert f"kept {EPOCHS - 1:.1f}" in log
    again = [row["epoch"] for row in rows() if row["attempt"] == 2]
    assert again == list(range(again[0], EPOCHS + 1))
    assert EPOCHS // 2 - 4 <= again[0] <= EPOCHS // 2 + 1


def assert_found_best(run):
    """See the best of all trials in the result, and what the worker of the last one printed."""
    result = run.result()
    tried = [trial["params"]["x"] for trial in result.trials]
    assert (len(tried), result.params["x"]) == (2, min(tried))
    assert f"best {result.params['x']}" in list(run.logs())
    assert list(run.logs(source="rank-0"))[-1] in [f"trial of {x}" for x in tried]
    stage = result.checkpoint.removeprefix("s3://").rpartition("/")[0]
    assert {"metrics.jsonl", "metrics.jsonl.plain", "rank-0.log"} <= set(bucket.names(stage))
