"""Whether a cluster can ever have what a driver or a replica reserves."""

import copy
import dataclasses

import pytest

from raykube import App, Cluster, Job, Service, fits


def job(**reserved):
    return Job(entrypoint="python a.py", **reserved)


@pytest.fixture
def two_by_two():
    """Return a preset whose head has no CPUs, and whose two workers have two each."""
    return Cluster.load("cpu-small")


def test_driver_that_no_pod_has_room_for_is_a_problem(two_by_two):
    found = [*fits.problems(job(entrypoint_num_cpus=3, entrypoint_num_gpus=1), two_by_two)]
    assert [problem.path for problem in found] == ["entrypoint_num_cpus", "entrypoint_num_gpus"]
    assert [*fits.problems(job(entrypoint_num_cpus=2), two_by_two)] == []


def test_replica_that_no_pod_has_room_for_is_a_problem(two_by_two):
    def service(**options):
        apps = [
            App(import_path="a:app", name="small", route_prefix="/small"),
            App(import_path="a:app", ray_actor_options=options),
        ]
        return Service(name="a", apps=apps)

    found = [*fits.of_replicas(service(num_cpus=3, num_gpus=0.5), two_by_two)]
    assert [problem.path for problem in found] == [
        "apps[1].ray_actor_options.num_cpus",
        "apps[1].ray_actor_options.num_gpus",
    ]
    assert found[1].what == "is 0.5, and the largest pod has 0 GPUs"
    assert [*fits.of_replicas(service(num_cpus=2), two_by_two)] == []
    assert [*fits.of_replicas(service(num_gpus=1), Cluster.load("gpu-t4"))] == []


def test_driver_that_leaves_the_workers_too_little_is_noted(two_by_two):
    (note,) = fits.notes(job(entrypoint_num_cpus=1), two_by_two)
    assert "2 workers x 2 CPU and the driver's 1 are more than the cluster's 4" in note
    assert [*fits.notes(job(), two_by_two)] == []


def test_driver_that_leaves_the_workers_too_few_gpus_is_noted():
    cluster = Cluster.load("gpu-t4")
    (note,) = fits.notes(job(entrypoint_num_gpus=1), cluster)
    gpus = cluster.scale.workers
    assert f"{gpus} workers x 1 GPU and the driver's 1 are more than the cluster's {gpus}" in note


def test_queue_for_a_cluster_that_is_there_is_a_problem(two_by_two):
    standing = dataclasses.replace(two_by_two, selected=True)
    (problem,) = fits.problems(job(queue="gpus"), standing)
    assert (problem.path, "a cluster that is there, as cpu-small is" in problem.what) == ("queue", True)
    assert [*fits.problems(job(queue="gpus"), two_by_two)] == [*fits.problems(job(), standing)] == []


def annotated(cluster, **metadata):
    manifest = copy.deepcopy(dict(cluster.manifest))
    manifest["metadata"] |= metadata
    return dataclasses.replace(cluster, manifest=manifest)


def test_queue_for_a_cluster_that_grows_is_a_problem_unless_kueue_is_told_that_it_does(two_by_two):
    grows = two_by_two.sized((2, 8))
    (problem,) = fits.problems(job(queue="gpus"), grows)
    assert (problem.path, "Kueue refuses" in problem.what) == ("queue", True)
    assert 'kueue.x-k8s.io/elastic-job: "true"' in problem.next_step
    assert [
        *fits.problems(job(queue="gpus"), annotated(grows, annotations={"kueue.x-k8s.io/elastic-job": "true"}))
    ] == []
    assert [*fits.problems(job(), grows)] == []
    assert [*fits.problems(job(), annotated(grows, labels={"kueue.x-k8s.io/queue-name": "gpus"}))] == [problem]


def test_group_that_grows_without_a_bound_is_noted_and_does_not():
    manifest = copy.deepcopy(dict(Cluster.load("cpu-autoscale").manifest))
    group = manifest["spec"]["workerGroupSpecs"][0]
    for unbounded in ({}, {"maxReplicas": 2**31 - 1}):  # as it was written, and as a server gives it back
        group.pop("maxReplicas", None)
        group.update(unbounded)
        cluster = Cluster(manifest, "here", "cpu-autoscale")
        assert cluster.scale.workers == 1
        (note,) = fits.notes(job(), cluster)
        assert f"group {group['groupName']} has no maxReplicas: a training gets 1 and does not grow" in note


def test_cluster_that_may_grow_has_room(two_by_two):
    assert [*fits.notes(job(entrypoint_num_cpus=1), two_by_two.sized((2, 3)))] == []


def test_driver_does_not_fit_on_a_head_that_runs_no_work(two_by_two):
    manifest = copy.deepcopy(dict(two_by_two.manifest))
    manifest["spec"]["headGroupSpec"]["rayStartParams"] = {}
    manifest["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"] = {"limits": {"cpu": "4"}}
    (problem,) = fits.problems(job(entrypoint_num_cpus=3), Cluster(manifest, "here", "own"))
    assert problem.what == "is 3, and the largest pod has 2 CPUs"


def test_workers_that_have_no_room_by_themselves_are_noted():
    manifest = copy.deepcopy(dict(Cluster.load("gpu-8xh100").manifest))
    (group,) = manifest["spec"]["workerGroupSpecs"]
    group["template"]["spec"]["containers"][0]["resources"] = {"limits": {"cpu": "4", "nvidia.com/gpu": "8"}}
    group.pop("rayStartParams", None)
    (note,) = fits.notes(job(), Cluster(manifest, "here", "own"))
    assert "workers x 1 CPU are more than the cluster's" in note


def test_pods_of_a_replica_of_several_all_have_room(two_by_two):
    manifest = copy.deepcopy(dict(two_by_two.manifest))
    manifest["spec"]["workerGroupSpecs"][0]["numOfHosts"] = 2
    cluster = Cluster(manifest, "here", "own")
    assert [*fits.notes(job(), cluster)] == []
    (note,) = fits.notes(job(entrypoint_num_cpus=1), cluster)
    assert "4 workers x 2 CPU and the driver's 1 are more than the cluster's 8" in note


@pytest.mark.parametrize(("counts", "cpus"), [({"maxReplicas": 1}, 2), ({"suspend": True}, 0)])
def test_pods_of_a_standing_cluster_are_those_that_kuberay_makes(two_by_two, counts, cpus):
    manifest = copy.deepcopy(dict(two_by_two.manifest))
    manifest["spec"]["headGroupSpec"]["rayStartParams"] = {"num-cpus": "0"}
    manifest["spec"]["workerGroupSpecs"][0] |= counts
    (note,) = fits.notes(job(), Cluster(manifest, "here", "own", selected=True))
    assert f"are more than the cluster's {cpus}:" in note
