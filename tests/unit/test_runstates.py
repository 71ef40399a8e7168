"""What the state of a run on KubeRay is, from what Kubernetes and Ray say of it."""

from dataclasses import replace

import pytest
import yaml

from raykube import marks
from raykube.backends import endings
from raykube.backends.kuberay.causes.observed import Observed
from raykube.backends.kuberay.runs import jobs, rayjobs, runstates

MADE = "2026-11-24T12:00:00Z"


def job(deployment="", status="", annotations=None, **more):
    metadata = {"name": "a", "creationTimestamp": MADE, "annotations": annotations or {}}
    return {
        "metadata": metadata,
        "spec": {},
        "status": {"jobDeploymentStatus": deployment, "jobStatus": status, **more},
    }


def seen(deployment="", status="", ray=None, annotations=None, **more):
    return Observed(owner=job(deployment, status, annotations, **more), ray=ray or {})


def test_run_fails_when_the_cluster_that_it_was_on_is_deleted():
    owner = job("Running", "RUNNING", rayClusterName="stays", rayJobInfo={"startTime": MADE})
    owner["spec"] = {"clusterSelector": {"ray.io/cluster": "stays"}}
    about = {"involvedObject": {"kind": "RayJob", "name": "a"}, "reason": "RayClusterNotFound"}
    before, after = ({**about, "lastTimestamp": f"2026-11-24T{time}Z"} for time in ("11:59:00", "12:00:30"))
    lost = Observed(owner, events=(before, after))
    status = runstates.status_of(lost, {}, "")
    assert (status.state, status.failure.reason) == ("FAILED", "ClusterDeleted")
    # KubeRay starts it there by itself, and in vain where its code went with the head.
    assert "create cluster stays again, then submit the run again under its name" in status.failure.next_step
    for there in ({"events": (before,)}, {"cluster": {"metadata": {"name": "stays"}}}, {"ray": {"status": "RUNNING"}}):
        assert runstates.state_of(replace(lost, **there)) == "RUNNING"
    owner["spec"] = {"rayClusterSpec": {}}  # of its own, which KubeRay makes again
    assert runstates.state_of(lost) == "RUNNING"
    owner["spec"] = {"clusterSelector": {"ray.io/cluster": "stays"}}
    owner["status"]["jobStatus"] = "SUCCEEDED"  # which KubeRay concludes once its submitter has ended
    assert runstates.state_of(lost) == "SUCCEEDED"


@pytest.mark.parametrize(
    ("deployment", "status", "ray", "state"),
    [
        ("", "", None, "WAITING"),
        ("Initializing", "", None, "WAITING"),
        ("Retrying", "FAILED", None, "WAITING"),
        ("Running", "", None, "PENDING"),
        ("Running", "RUNNING", None, "RUNNING"),
        ("Running", "PENDING", "RUNNING", "RUNNING"),  # Ray says it three seconds before the RayJob does
        ("Running", "RUNNING", "SUCCEEDED", "SUCCEEDED"),
        ("Waiting", "", "RUNNING", "RUNNING"),  # in InteractiveMode, where KubeRay learns of it later
        ("Running", "RUNNING", "FAILED", "FAILED"),
        ("Complete", "SUCCEEDED", None, "SUCCEEDED"),
        ("Complete", "STOPPED", None, "STOPPED"),
        ("Failed", "RUNNING", "RUNNING", "FAILED"),  # a deadline leaves jobStatus as it was
        ("ValidationFailed", "", None, "FAILED"),
    ],
)
def test_state_is_rays_own_unless_the_rayjob_has_ended_or_waits(deployment, status, ray, state):
    assert runstates.state_of(seen(deployment, status, ray and {"status": ray})) == state


def test_job_that_was_over_before_its_cluster_was_ready_has_ended_all_the_same():
    over = seen("Initializing", ray={"status": "SUCCEEDED", "message": "Job finished successfully."})
    assert runstates.state_of(over) == "WAITING"  # of the attempt before, whose head is gone
    over.owner["spec"]["submissionMode"] = "SidecarMode"
    status = runstates.status_of(over, {})
    assert (status.state, status.failure) == ("SUCCEEDED", None)
    assert f"raykube job delete {over.name}" in status.detail
    goes_on = runstates.status_of(replace(over, ray={"status": "RUNNING"}), {})
    assert (goes_on.state, goes_on.detail) == ("RUNNING", "")


@pytest.mark.parametrize(("failed", "state"), [(0, "WAITING"), (1, "WAITING"), (2, "FAILED")])
def test_failure_in_ray_is_not_the_end_while_kuberay_has_tries_left(failed, state):
    over = seen("Running", "RUNNING", {"status": "FAILED", "error_type": "JOB_ENTRYPOINT_COMMAND_ERROR"}, failed=failed)
    over.owner["spec"]["backoffLimit"] = 2
    status = runstates.status_of(over, {})
    assert (status.state, status.failure.reason) == (state, "EntrypointFailed")


def test_suspended_run_is_stopped_only_if_somebody_stopped_it():
    assert runstates.state_of(seen("Suspended")) == "WAITING"
    assert runstates.state_of(seen("Suspended", annotations={marks.STOP: MADE})) == "STOPPED"
    assert runstates.state_of(seen("Initializing", annotations={marks.STOP: MADE})) == "WAITING"


@pytest.mark.parametrize("deleted", [{"annotations": {marks.DELETE: MADE}}, {"deletionTimestamp": MADE}])
def test_run_that_is_stopped_for_its_deletion_says_so(deleted):
    over = seen("Complete", "STOPPED")
    assert runstates.status_of(over, {}).detail == ""
    over.owner["metadata"] |= deleted
    status = runstates.status_of(over, {})
    assert (status.state, status.detail) == ("STOPPED", endings.BEING_DELETED)


def test_run_that_is_deleted_after_its_cluster_has_not_lost_that():
    owner = job("Running", "RUNNING", rayClusterName="stays", rayJobInfo={"startTime": MADE})
    owner["spec"] = {"clusterSelector": {"ray.io/cluster": "stays"}}
    about = {"involvedObject": {"kind": "RayJob", "name": "a"}, "reason": "RayClusterNotFound"}
    lost = Observed(owner, events=({**about, "lastTimestamp": "2026-11-24T12:00:30Z"},))
    assert runstates.state_of(lost) == "FAILED"
    owner["metadata"]["deletionTimestamp"] = MADE
    status = runstates.status_of(lost, {})
    assert (status.state, status.detail) == ("STOPPED", endings.BEING_DELETED)


def test_attempt_is_what_the_pod_tells_then_what_was_noted_then_kuberays_count():
    noted = job("Running", annotations={marks.ATTEMPT: "2"})
    assert rayjobs.attempt_of(noted, {"attempt": 3}) == 3
    assert rayjobs.attempt_of(noted, {}) == 2
    assert rayjobs.attempt_of(job("Running", failed=1), {}) == 2
    assert rayjobs.attempt_of(job("Failed", failed=2), {}) == 2
    assert rayjobs.attempt_of(job(), {}) == 1


def test_times_are_rays_own_and_a_live_run_has_no_end():
    status = runstates.status_of(seen("Running", ray={"status": "RUNNING", "start_time": 1_800_000_000_000}), {})
    assert (status.submitted, status.started, status.ended) == (1_795_521_600.0, 1_800_000_000.0, None)
    ended = runstates.status_of(seen("Complete", "SUCCEEDED", endTime="2026-11-24T12:01:00Z"), {})
    assert ended.ended == 1_795_521_660.0


def test_earlier_attempts_are_told_with_their_reasons():
    rows = [
        {"attempt": 1, "started": 1.0},
        {"attempt": 1, "ended": 2.0, "exit_code": 3, "reason": "EntrypointFailed"},
        {"attempt": 2, "ended": 3.0, "exit_code": None, "reason": "HeadLost"},
    ]
    status = runstates.status_of(seen("Running"), {"attempt": 3, "attempts": rows})
    assert status.earlier == ("attempt 1: EntrypointFailed (exit code 3)", "attempt 2: HeadLost")


def test_lost_worker_is_told_while_the_attempt_that_lost_it_goes_on():
    told = {"attempt": 2, "trouble": '{"time": 1795521600.0, "attempt": 2, "message": "train-1: worker 0: gone"}'}
    assert runstates.status_of(seen("Running", ray={"status": "RUNNING"}), told).detail.endswith(
        " train-1: worker 0: gone"
    )
    assert runstates.status_of(seen("Running", ray={"status": "RUNNING"}), told | {"attempt": 3}).detail == ""
    assert runstates.status_of(seen("Complete", "SUCCEEDED"), told).detail == ""


def test_silence_is_told_of_what_runs():
    told = {"attempt": 1, "progress": {"epoch": 3}, "quiet_s": 120.0}
    assert runstates.status_of(seen("Running", ray={"status": "RUNNING"}), told).quiet_s == 120.0
    assert runstates.status_of(seen("Complete", "SUCCEEDED"), told).quiet_s == 0.0


def test_next_attempt_is_told_to_the_script_and_noted():
    planned = {"metadata": {"name": "a"}, "spec": {"runtimeEnvYAML": 'env_vars: {RAYKUBE_ATTEMPT: "1"}'}}
    again = jobs.again(planned, 3)
    assert yaml.safe_load(again["spec"]["runtimeEnvYAML"]) == {"env_vars": {"RAYKUBE_ATTEMPT": "3"}}
    assert again["metadata"]["annotations"] == {marks.ATTEMPT: "3"}


def test_rayjob_of_somebodys_own_goes_through_its_next_attempt_unchanged():
    assert jobs.again({"metadata": {"name": "a"}, "spec": {"entrypoint": "b"}}, 2)["spec"] == {"entrypoint": "b"}


def pod(*, placed=True, ready=False, state=None, init=None):
    """Return a pod with a container beside Ray's that runs; the kubelet tells of them by the order of their names."""
    conditions = [{"type": kind, "status": str(is_so)} for kind, is_so in (("PodScheduled", placed), ("Ready", ready))]
    containers = [{"name": "proxy", "state": {"running": {}}}, {"name": "ray-head", "state": state}] if state else []
    told = {"containerStatuses": containers, "initContainerStatuses": [{"name": "wait", "state": init}] if init else []}
    return {
        "metadata": {"name": "a-head"},
        "spec": {"containers": [{"name": "ray-head"}, {"name": "proxy"}]},
        "status": {"conditions": conditions, **told},
    }


def test_waiting_run_tells_what_its_pods_are_at():
    def detail(*pods):
        return runstates.status_of(Observed(owner=job("Initializing"), pods=pods), {}).detail

    running, waiting = {"running": {}}, {"waiting": {"reason": "ContainerCreating"}}
    assert detail() == "waiting for KubeRay to create its cluster"
    pods = pod(placed=False), pod(state=waiting), pod(), pod(state=waiting, init=running), pod(state=running)
    others = "1 looking for a node, 2 getting image and volumes, 1 in an init container, 1 starting Ray"
    pods += (pod(ready=True, state=running),)
    assert detail(*pods) == f"1 of 6 pods ready: {others}"
    assert detail(pods[-1]) == "1 of 1 pods ready"


@pytest.mark.parametrize("workers", ["8", "2..8"])
def test_status_tells_workers_and_storage(workers):
    made = job("Running", annotations={"raykube.io/storage": "/shared/"})
    made["spec"]["runtimeEnvYAML"] = yaml.safe_dump({"env_vars": {"RAYKUBE_WORKERS": workers, "OTHER": "1"}})
    status = runstates.status_of(Observed(owner=made), {})
    assert (status.workers, status.storage) == (workers, "/shared/a")
    own = runstates.status_of(seen("Running"), {})  # of a RayJob that somebody has written
    assert (own.workers, own.storage) == ("", "")


def test_suspended_run_names_its_suspension_and_how_to_end_it():
    held = seen("Suspended")
    held.owner["spec"]["suspend"] = True
    found = runstates.status_of(held, {}).failure
    assert (found.reason, found.where) == ("Suspended", "rayjob/a: spec.suspend")
    assert """kubectl -n default patch rayjob a --type merge -p '{"spec":{"suspend":false}}'""" in found.next_step


def test_run_for_a_standing_cluster_or_by_hand_says_what_it_waits_for():
    handed = seen("Initializing")
    handed.owner["spec"]["clusterSelector"] = {"ray.io/cluster": "demo"}
    assert runstates.status_of(handed, {}).detail == "waiting for KubeRay to hand it to cluster demo"
    assert "InteractiveMode" in runstates.status_of(seen("Waiting"), {}).detail
