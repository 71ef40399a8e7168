"""Runs whose storage is a bucket of a real S3 server keep there what others keep on a volume."""

import json

import pytest
import yaml

import raykube as rk
from tests.cluster import addons, bucket, faults, namespaces, workloads
from tests.cluster.shell import until

pytestmark = pytest.mark.cluster
EPOCHS = 40
TRAIN = f"""
import os, time
import ray.train, torch
import raykube
from raykube.inside import checkpoints

def loop(config):
    first = os.environ["RAYKUBE_ATTEMPT"] == "1"
    state = checkpoints.latest() or {{"epoch": 0, "weight": torch.zeros(100_000)}}
    for epoch in range(state["epoch"], {EPOCHS}):
        while first and epoch == {EPOCHS} // 2:
            time.sleep(0.1)
        time.sleep(0.2)
        print("epoch", epoch + 1, flush=True)
        told = {{"epoch": epoch + 1, "loss": 1 / (epoch + 1), "attempt": 1 if first else 2}}
        raykube.report(told, {{"epoch": epoch + 1, "weight": torch.full((100_000,), float(epoch))}})

if __name__ == "__main__":
    result = raykube.train(loop, {{}}, metric="loss")
    print("kept", checkpoints.load(result.checkpoint)["weight"][0].item(), flush=True)
"""
SEARCH = """
import ray.train
import raykube
from raykube.inside import checkpoints, serving

def loop(config):
    for epoch in range(3):
        raykube.report({"loss": config["x"] + 1 / (epoch + 1)}, {"x": config["x"]})
        ray.train.report({"loss": config["x"] + 1 / (epoch + 1), "plain": epoch})

if __name__ == "__main__":
    from ray import tune
    raykube.sweep(loop, {"x": tune.uniform(1, 3)}, trials=2, metric="loss", mode="min")
    print("best", checkpoints.load(serving.resolve("run:search"))["x"], flush=True)
"""


@pytest.fixture
def storage(request):
    """Give the URI of a bucket on this machine's own cluster."""
    request.getfixturevalue("own_cluster")
    addons.start("bucket")
    with bucket.made("runs") as uri:
        yield uri


@pytest.fixture
def place(storage, namespace, tmp_path, monkeypatch):
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
    monkeypatch.setenv("KUBECONFIG", namespaces.least(namespace))
    return rk.Cluster.load(path).sized(workers=1)


@pytest.fixture
def submitted(place, tmp_path):
    """Return a function that submits a script under a name."""

    def submit(name, text, **fields):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "script.py").write_text(text)
        return rk.submit(rk.Job(entrypoint="python script.py", name=name, working_dir=folder, **fields), place)

    return submit


def rows(name):
    with bucket.store().open_input_file(f"runs/{name}/train-1/metrics.jsonl") as file:
        return [json.loads(line)["metrics"] for line in file.read().splitlines()]


def test_run_whose_head_is_lost_goes_on_from_its_checkpoint_in_the_bucket(submitted, namespace):
    run = submitted("survivor", TRAIN, max_retries=1, keep_cluster_s=0)
    until(lambda: run.status().progress.get("epoch") == EPOCHS // 2, "the first attempt is half through", 200)
    faults.delete_pod(namespace, workloads.pods(namespace, "head")[0]["metadata"]["name"])
    status = run.wait(timeout_s=240).status()
    assert (status.state, [line.split()[2] for line in status.earlier]) == ("SUCCEEDED", ["HeadLost"])
    until(lambda: not workloads.pods(namespace), "its cluster is gone", 60)
    result = run.result()
    assert (result.metrics["epoch"], result.checkpoint.rpartition("/")[0]) == (EPOCHS, "s3://runs/survivor/train-1")
    assert f"kept {EPOCHS - 1:.1f}" in list(run.logs())
    assert list(run.logs(source="rank-0"))[-1] == f"epoch {EPOCHS}"
    again = [row["epoch"] for row in rows("survivor") if row["attempt"] == 2]
    assert again == list(range(again[0], EPOCHS + 1))
    assert EPOCHS // 2 - 4 <= again[0] <= EPOCHS // 2 + 1
    run.delete()
    assert bucket.names("runs/survivor") == []


def test_search_finds_the_best_of_its_trials_in_the_bucket(submitted):
    run = submitted("search", SEARCH).wait(timeout_s=240)
    assert run.status().state == "SUCCEEDED", "\n".join(run.logs())
    result = run.result()
    assert (len(result.trials), result.params["x"]) == (2, min(trial["params"]["x"] for trial in result.trials))
    assert f"best {result.params['x']}" in list(run.logs())
    trial = result.checkpoint.removeprefix("s3://").rpartition("/")[0]
    assert {"config.json", "metrics.jsonl", "metrics.jsonl.plain"} <= set(bucket.names(trial))
