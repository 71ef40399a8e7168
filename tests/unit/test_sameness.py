"""Which plans are the same, and which are the same work."""

import copy
import dataclasses

import pytest

import raykube as rk
from raykube import marks, sameness

CHANGES = {"timeout_s": 60, "pending_timeout_s": 30, "max_retries": 2, "keep_cluster_s": 5}


@pytest.fixture
def planned(tmp_path):
    """Return a function that plans a job, here or on a preset."""
    (tmp_path / "train.py").write_text("print('trained')\n")

    def plan(on, **fields):
        job = {"entrypoint": "python train.py", "working_dir": tmp_path, "name": "a", **fields}
        return rk.plan(rk.Job(**job), on=on)

    return plan


@pytest.mark.parametrize("on", ["local", "cpu-small"])
@pytest.mark.parametrize("limit", CHANGES)
def test_limits_make_another_plan_of_the_same_work(planned, on, limit):
    one, other = planned(on), planned(on, **{limit: CHANGES[limit]})
    assert sameness.work(one.body) == sameness.work(other.body)
    if (on, limit) != ("local", "keep_cluster_s"):  # there is none to keep
        assert one.hash != other.hash


@pytest.mark.parametrize("on", ["local", "cpu-small"])
@pytest.mark.parametrize("fields", [{"entrypoint": "python train.py --lr 1"}, {"env_vars": {"A": "b"}}])
def test_another_command_or_environment_is_other_work(planned, on, fields):
    assert sameness.work(planned(on).body) != sameness.work(planned(on, **fields).body)


@pytest.fixture
def house():
    """Return a cluster whose storage is a folder of a claim."""
    small = copy.deepcopy(dict(rk.Cluster.load("cpu-small").manifest))
    small["metadata"]["annotations"] = {marks.STORAGE: "/shared/runs"}
    for group in (small["spec"]["headGroupSpec"], *small["spec"]["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        pod["volumes"] = [{"name": "shared", "persistentVolumeClaim": {"claimName": "ours"}}]
        pod["containers"][0]["volumeMounts"] = [{"name": "shared", "mountPath": "/shared"}]
    return dataclasses.replace(rk.Cluster.load("cpu-small"), manifest=small)


def changed(cluster, change):
    """Return a cluster with another manifest, of which its first group of workers and its head are changed."""
    manifest = copy.deepcopy(dict(cluster.manifest))
    spec = manifest["spec"]
    for group in (spec["headGroupSpec"], spec["workerGroupSpecs"][0]):
        change(group["template"]["spec"], group["template"]["spec"]["containers"][0])
    return dataclasses.replace(cluster, manifest=manifest)


def more_memory(_, container):
    container["resources"]["limits"]["memory"] = "9Gi"


def more_cpus(_, container):
    container["resources"]["limits"]["cpu"] = container["resources"]["requests"]["cpu"] = "4"


def other_image(_, container):
    container["image"] = "registry.example.com/team/ray:2"


def other_nodes(pod, _):
    pod["nodeSelector"], pod["tolerations"] = {"pool": "large"}, [{"operator": "Exists"}]


def other_claim(pod, _):
    pod["volumes"][0]["persistentVolumeClaim"]["claimName"] = "theirs"


@pytest.mark.parametrize("change", [more_memory, more_cpus, other_image, other_nodes])
def test_other_cluster_of_its_own_makes_another_plan_of_the_same_work(planned, house, change):
    one, other = planned(house), planned(changed(house, change))
    assert one.hash != other.hash
    assert sameness.work(one.body) == sameness.work(other.body)


def test_other_scale_makes_another_plan_of_the_same_work(planned, house):
    for one, other in ((house, house.sized(3)), (rk.Cluster.local(), rk.Cluster.local(workers=2, cpus=0.5))):
        assert planned(one).hash != planned(other).hash
        assert sameness.work(planned(one).body) == sameness.work(planned(other).body)


def test_other_storage_is_other_work_also_at_the_same_path(planned, house):
    moved = copy.deepcopy(dict(house.manifest))
    moved["metadata"]["annotations"][marks.STORAGE] = "/shared/others"
    for other in (dataclasses.replace(house, manifest=moved), changed(house, other_claim)):
        assert sameness.work(planned(house).body) != sameness.work(planned(other).body)


def test_rayjob_tells_its_work_by_a_label(planned):
    plan = planned("cpu-small")
    assert plan.body[-1]["metadata"]["labels"][marks.WORK] == sameness.work(plan.body)
