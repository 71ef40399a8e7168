"""Whether a cluster can ever have what a job's driver reserves."""

import pytest

from raykube import Cluster, Job, fits


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


def test_driver_that_leaves_the_workers_too_little_is_noted(two_by_two):
    (note,) = fits.notes(job(entrypoint_num_cpus=1), two_by_two)
    assert "2 workers x 2 CPU and the driver's 1 are more than the cluster's 4" in note
    assert [*fits.notes(job(), two_by_two)] == []


def test_cluster_that_may_grow_has_room(two_by_two):
    assert [*fits.notes(job(entrypoint_num_cpus=1), two_by_two.sized((2, 3)))] == []
