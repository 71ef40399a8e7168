"""A range of workers: KubeRay's autoscaler makes pods as a run asks for them, and what it cannot get is told."""

import copy
import json
import time

import pytest
import yaml

import raykube as rk
from raykube.backends.kubernetes.fields import seconds
from tests.cluster import kubectl, workloads

pytestmark = [pytest.mark.cluster, pytest.mark.long]
WITHIN_S = 5.0
SCRIPT = """
import tempfile, time
import ray
import raykube as rk
from ray import tune
from raykube.inside import checkpoints

def searched(config):
    rk.report({"score": config["x"]})

def loop():
    import ray.train
    size = ray.train.get_context().get_world_size()
    state = checkpoints.latest() or {"epoch": 0, "sizes": []}
    sizes, began = [*state["sizes"], size], state["epoch"]
    for epoch in range(began, began + (3 if size == 2 else 600)):
        time.sleep(0.3)
        with tempfile.TemporaryDirectory() as folder:
            checkpoints.save({"epoch": epoch + 1, "sizes": sizes}, folder)
            rk.report({"epoch": epoch + 1, "size": size}, checkpoint=ray.train.Checkpoint(folder))

class Part:
    def node(self):
        return ray.get_runtime_context().get_node_id()

if __name__ == "__main__":
    ray.init()
    never = ray.remote(num_cpus=0, resources={"big": 1})(Part).remote()  # goes with the script
    before = sum(node["Alive"] for node in ray.nodes()) - 1
    found = rk.sweep(searched, {"x": tune.uniform(0, 1)}, trials=1, metric="score", mode="max")
    print("searched with", before, "workers at first:", found.trials[0]["error"])
    result = rk.train(loop)
    state = checkpoints.load(result.checkpoint)
    print("trained on", state["sizes"], "without a gap:", state["epoch"] == result.metrics["epoch"])
    parts = [ray.remote(num_cpus=1)(Part).remote() for _ in range(2)]
    print("then on", len(set(ray.get([part.node.remote() for part in parts]))))
"""


@pytest.fixture
def place(namespace, tmp_path, least):  # noqa: ARG001
    """Give a cluster that begins with no worker, of one CPU each, and with one group that no node has room for."""
    kubectl.apply(workloads.manifest("claim"), namespace=namespace)
    manifest = yaml.safe_load(workloads.manifest("house"))
    (workers,) = groups = manifest["spec"]["workerGroupSpecs"]
    workers |= {"rayStartParams": {"num-cpus": "1"}, "replicas": 0, "minReplicas": 0, "maxReplicas": 2}
    big = copy.deepcopy(workers) | {"groupName": "big", "replicas": 0, "minReplicas": 0, "maxReplicas": 1}
    big["rayStartParams"] = {"num-cpus": "0", "resources": f"'{json.dumps({'big': 1})}'"}
    big["template"]["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "64"}}
    manifest["spec"] |= {"workerGroupSpecs": [*groups, big], "enableInTreeAutoscaling": True}
    manifest["spec"]["autoscalerOptions"] = {"resources": {"requests": {"cpu": "50m"}, "limits": {"memory": "1Gi"}}}
    (tmp_path / "house.yaml").write_text(yaml.safe_dump(manifest))
    return rk.Cluster.load(tmp_path / "house.yaml")


def test_search_and_training_grow_their_cluster_and_a_pod_without_a_node_is_named(place, namespace, tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "grow.py").write_text(SCRIPT)
    named = []

    def note(event):
        failure = event.status.failure
        if failure and failure.reason == "Unschedulable" and event.status.state == "RUNNING":
            named.append((time.time(), failure))

    job = rk.Job(entrypoint="python grow.py", name="grow", working_dir=tmp_path / "code")
    run = rk.submit(job, place).wait(timeout_s=400, on_event=note)
    printed = list(run.logs())
    assert "searched with 0 workers at first: None" in printed
    assert "trained on [1, 2] without a gap: True" in printed
    assert "then on 2" in printed
    (pod,) = kubectl.listed("pods", namespace, "ray.io/group=big")
    assert pod["metadata"]["name"] in named[0][1].where
    assert "64 cpu" in named[0][1].next_step
    assert named[0][0] - seconds(pod["metadata"]["creationTimestamp"]) < WITHIN_S + 1  # its stamp has no fractions
