"""One cause is named for each thing that goes wrong, on resources that a real cluster showed."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest

from raykube.backends.kuberay.causes.clustercauses import INCOMPLETE_S, OPERATOR_S, UNREADY_S
from raykube.backends.kuberay.causes.diagnosis import cause
from raykube.backends.kuberay.causes.observed import Observed, events_about, events_of
from raykube.backends.kuberay.runs.rayjobs import OVERDUE_S, is_overdue
from raykube.backends.kuberay.runs.runstates import status_of
from raykube.backends.kubernetes.fields import seconds

RECORDED = json.loads((Path(__file__).parent / "recorded" / "causes.json").read_text())


def observed(name, *, now=0.0):
    told = RECORDED[name]
    pods, events = (tuple(copy.deepcopy(told.get(key, ()))) for key in ("pods", "events"))
    owner, cluster = (copy.deepcopy(told.get(key, {})) for key in ("owner", "cluster"))
    return Observed(owner, cluster, pods, events, ray=told.get("ray", {}), now=now)


def found(name):
    return cause(observed(name))


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_state_has_its_cause_and_nothing_else(name):
    expected, failure = RECORDED[name]["reason"], found(name)
    assert (failure.reason if failure else None) == expected
    if failure:
        assert failure.message
        assert failure.next_step
        assert "{" not in failure.next_step or "toleration" in failure.next_step or "labels" in failure.next_step
        assert "/" in failure.where or failure.where.startswith("ray job")


@pytest.mark.parametrize(
    ("name", "where", "message", "step"),
    [
        ("image not found", "status.containerStatuses[ray].state.waiting.message", "none:1: not found", "`image`"),
        ("image private", "state.waiting.message", "401 Unauthorized", "imagePullSecrets"),
        ("cpu", "status.conditions[PodScheduled].message", "1 Insufficient cpu", "no node has 64 cpu free"),
        ("gpu", "PodScheduled", "Insufficient nvidia.com/gpu", "2 nvidia.com/gpu"),
        ("memory", "PodScheduled", "Insufficient memory", "900Gi memory"),
        ("node selector", "PodScheduled", "node affinity/selector", '{"kind": "a100"}'),
        ("claim missing", "PodScheduled", '"nope" not found', "kubectl -n team get pvc"),
        ("claim unbound", "PodScheduled", 'storageclass.storage.k8s.io "nope" not found', "describe pvc unbound"),
        ("configmap of a volume", "event FailedMount", 'configmap "none" not found', "get configmaps"),
        ("secret", "state.waiting.message", 'secret "nope" not found', "get secrets"),
        ("crash", "lastState.terminated", "exit code 7", "-c ray --previous"),
        ("head out of memory", "terminated.reason", "OOMKilled, exit code 137", "32Mi now"),
        ("worker out of memory", "terminated.reason", "OOMKilled, exit code 137", "700Mi now"),
        ("other Ray", "terminated.message", "Ray 2.0.0", "one image"),
        ("other Python", "terminated.message", "Python 3.9.1", "minor version of Python"),
        ("quota", "raycluster/", "exceeded quota", "describe resourcequota"),
        ("cluster spec", "event InvalidRayClusterSpec", "upgradeStrategy cannot be set", "submit again"),
        ("job spec", "rayjob/invalidjob: status.message", "TTLSecondsAfterFinished", "submit again"),
        ("service spec", "status.conditions[Ready].message", "headService.metadata.name", "deploy again"),
        (
            "pending deadline",
            "PodScheduled",
            "preRunningDeadlineSeconds: 6. Unschedulable: 0/1",
            "no node has 100m cpu",
        ),
        ("deadline while running", "rayjob/late: status.message", "activeDeadlineSeconds", "--timeout-s"),
        ("pip package", "rayjob/env: status.message", "No matching distribution found", "runtime_env"),
        ("working_dir", "rayjob/unpack", "No such file or directory: '/nope.zip'", "runtime_env"),
        ("syntax", "rayjob/syn", "SyntaxError: invalid syntax (/app/syn.py, line 2)", "correct the line"),
        ("submitter beside the head ended", "[ray-job-submitter].state.terminated", "exit code 0", "HTTPMode"),
        ("evicted", "event Evicted", 'Usage of EmptyDir volume "v" exceeds', "to what the message names"),
    ],
)
def test_cause_says_where_it_was_seen_whose_words_it_has_and_one_thing_to_do(name, where, message, step):
    failure = found(name)
    assert where in failure.where
    assert message.lower() in failure.message.lower()
    assert step in failure.next_step


def test_cluster_that_is_refused_is_corrected_as_what_it_belongs_to_is_sent():
    seen = observed("cluster spec")
    assert cause(seen).next_step.endswith("in the manifest, delete the run and submit again")
    service = {**seen.owner, "spec": {"rayClusterConfig": {}}}
    assert cause(replace(seen, owner=service)).next_step.endswith("in the manifest, then deploy again")
    alone = cause(replace(seen, owner={}))
    assert alone.next_step.endswith("in the manifest, delete the cluster and create it again")


def test_cluster_that_was_refused_and_has_been_taken_since_is_no_cause():
    seen = observed("cluster spec")
    taken = {**seen.cluster, "status": {"conditions": [{"type": "HeadPodReady", "status": "False"}]}}
    assert cause(seen).reason == "InvalidRayClusterSpec"
    assert cause(replace(seen, cluster=taken)) is None


def test_failed_entrypoint_has_its_exit_code_and_the_end_of_its_log_without_rays_lines():
    failure = found("exit code")
    assert (failure.exit_code, failure.tail, failure.message) == (
        3,
        ("hello",),
        "Job entrypoint command failed with exit code 3",
    )
    assert found("traceback").tail[-1] == "ValueError: boom"
    long = observed("exit code")
    long.owner["status"]["message"] += "".join(f"line {number}\n" for number in range(30))
    assert cause(long).tail == tuple(f"line {number}" for number in range(10, 30))


def test_rays_word_of_a_failure_comes_before_kuberays():
    seen = observed("noise: new head is ready")
    told = {"status": "FAILED", "submission_id": "long-1", "error_type": "JOB_ENTRYPOINT_COMMAND_ERROR"}
    told |= {"driver_exit_code": -9, "message": "Job entrypoint command failed with exit code -9"}
    failure = cause(replace(seen, ray=told))
    assert (failure.reason, failure.exit_code, failure.where) == ("EntrypointFailed", -9, "ray job long-1: message")


def test_deadline_stays_the_cause_when_the_entrypoint_that_it_ended_says_so_in_ray():
    words = "Job entrypoint command failed with exit code 124, last available logs:\nstep 1\n"
    told = {"status": "FAILED", "submission_id": "late-dcpbb", "driver_exit_code": 124, "message": words}
    failure = cause(replace(observed("deadline while running"), ray=told))
    assert (failure.reason, failure.where) == ("DeadlineExceeded", "rayjob/late: status.message")


@pytest.mark.parametrize("status", ["STOPPED", "SUCCEEDED"])
def test_deadline_is_the_cause_also_where_ray_calls_the_job_stopped_or_done(status):
    failure = cause(replace(observed("deadline while running"), ray={"status": status}))
    assert failure.reason == "DeadlineExceeded"


def test_driver_of_another_version_is_named():
    words = "Version mismatch: The cluster was started with:\n    Ray: 2.60.0\n    Python: 3.11.2\n"
    words += "This process on Ray Client was started with:\n    Ray: 2.60.0\n    Python: 3.10.1\n"
    told = {"status": "FAILED", "message": f"Job entrypoint command failed with exit code 1\nRuntimeError: {words}"}
    assert cause(Observed(ray=told)).reason == "PythonVersionMismatch"


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"error_type": "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE", "message": "no"}, "Unschedulable"),
        ({"error_type": "JOB_SUPERVISOR_ACTOR_DIED", "message": "died"}, "DriverDied"),
        ({"message": "odd"}, "JobFailed"),
        ({"message": "runtime_env setup failed: no"}, "RuntimeEnvSetupFailed"),
        ({"message": "Task was killed due to the node running low on memory."}, "OutOfMemory"),
    ],
)
def test_rays_types_of_error_have_a_reason(told, reason):
    assert cause(Observed(ray={"status": "FAILED", **told})).reason == reason


@pytest.mark.parametrize(("after", "reason"), [("", "WorkerDied"), ("\nsys.exit(1)", "EntrypointFailed")])
def test_worker_that_the_kernel_killed_is_named_where_it_is_the_last_word(after, reason):
    words = "ray.exceptions.WorkerCrashedError: The worker died unexpectedly while executing this task."
    message = f"Job entrypoint command failed with exit code 1, last available logs:\n  raise value\n\n{words}{after}"
    failure = cause(Observed(ray={"status": "FAILED", "message": message}))
    assert (failure.reason, failure.exit_code) == (reason, 1)


LATE = "(raylet) Refer to the documentation on how to address the out of memory issue: https://docs.ray.io\n"


@pytest.mark.parametrize(("step", "told"), [("", "raykube job logs a"), (" (next: use less)", "use less")])
def test_failure_that_the_run_itself_tells_comes_before_what_ray_printed_late(step, told):
    words = f"Job entrypoint command failed with exit code 1, last available logs:\nboom\n{LATE}"
    words += f"raykube: attempt 2 failed: LoopFailed: ValueError: x (worker 1){step}\n"
    status = {"jobDeploymentStatus": "Failed", "reason": "AppFailed", "message": words}
    kuberays = Observed({"metadata": {"name": "a"}, "spec": {}, "status": status})
    for seen in (kuberays, replace(kuberays, ray={"status": "FAILED", "message": words, "driver_exit_code": 1})):
        failure = cause(seen)
        assert (failure.reason, failure.message) == ("LoopFailed", "ValueError: x (worker 1)")
        assert (failure.exit_code, failure.next_step, failure.tail[0]) == (1, told, "boom")


@pytest.mark.parametrize(("code", "after"), [(3, ""), (1, "raykube: attempt 3 begins\n")])
def test_failure_that_an_earlier_attempt_has_told_is_not_the_runs(code, after):
    words = f"Job entrypoint command failed with exit code {code}\nraykube: attempt 2 failed: LoopFailed: x\n{after}"
    assert cause(Observed(ray={"status": "FAILED", "message": words})).reason == "EntrypointFailed"


@pytest.mark.parametrize("reason", ["SubmissionFailed", "JobStatusCheckTimeoutExceeded", "SomethingNew"])
def test_other_reasons_of_a_rayjob_are_passed_on(reason):
    status = {"jobDeploymentStatus": "Failed", "reason": reason, "message": "its words"}
    failure = cause(Observed({"metadata": {"name": "a"}, "spec": {}, "status": status}))
    assert (failure.reason, failure.message, failure.where) == (reason, "its words", "rayjob/a: status.message")


def test_pod_that_cannot_hand_the_job_to_ray_is_named_until_ray_has_it():
    waiting = {"reason": "ErrImagePull", "message": 'pull access denied, "nope/nope:1": not found'}
    container = {"name": "submitter", "ready": False, "state": {"waiting": waiting}}
    pod = {"metadata": {"name": "a-x1", "namespace": "n"}, "spec": {}, "status": {"containerStatuses": [container]}}
    owner = {"metadata": {"name": "a"}, "spec": {}, "status": {"jobDeploymentStatus": "Running"}}
    seen = Observed(owner, submitter=pod)
    failure = cause(seen)
    assert (failure.reason, failure.where.partition(":")[0]) == ("ImagePullDenied", "pod/a-x1")
    assert cause(replace(seen, ray={"status": "PENDING"})) is None
    taken = {**owner, "status": {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}}
    assert cause(replace(seen, owner=taken)) is None


def test_end_comes_before_what_pods_say_unless_they_say_how_the_head_was_lost():
    seen, failed = observed("head out of memory"), {"jobDeploymentStatus": "Failed", "reason": "AppFailed"}
    for message, reason in (
        ("Job entrypoint command failed with exit code 3", "EntrypointFailed"),
        ("Ray head pod x not found", "HeadOOMKilled"),
    ):
        owner = {**seen.owner, "status": {**failed, "message": message}}
        assert cause(replace(seen, owner=owner)).reason == reason


@pytest.mark.parametrize(
    ("finished", "container", "reason"),
    [
        ("2026-11-24T12:44:07Z", "ray", "HeadOOMKilled"),
        ("2026-11-23T09:00:00Z", "ray", "HeadLost"),  # of another run, on a cluster that stays
        ("2026-11-24T12:44:07Z", "autoscaler", "HeadLost"),
    ],
)
def test_lost_head_was_out_of_memory_only_if_ray_was_killed_since_the_run_began(finished, container, reason):
    seen = observed("head out of memory")
    (told,) = seen.pods[0]["status"]["containerStatuses"]
    killed = {"reason": "OOMKilled", "exitCode": 137, "finishedAt": finished}
    told |= {"name": container, "ready": True, "state": {"running": {}}, "lastState": {"terminated": killed}}
    lost = {"jobDeploymentStatus": "Failed", "reason": "AppFailed", "message": "Ray head pod x not found"}
    assert cause(replace(seen, owner={**seen.owner, "status": lost})).reason == reason


def test_code_that_went_with_the_head_is_told_so_unless_the_pods_say_how_that_was_lost():
    ray = 'runtime_env setup failed: Failed to set up runtime environment.\n  File "x.py", line 957\nOSError: '
    ray += "Failed to download runtime_env file package gcs://_ray_pkg_82b2.zip from the GCS to the Ray worker node. "
    ray += "The package may have prematurely been deleted from the GCS due to a long upload time or a problem with Ray."
    failure = cause(Observed(ray={"status": "FAILED", "message": ray}))
    assert (failure.reason, "pip" in failure.next_step) == ("CodeLost", False)
    assert failure.message.endswith("Failed to download runtime_env file package gcs://_ray_pkg_82b2.zip")
    assert failure.next_step.startswith("submit it again under the same name, which sends its code again")
    seen, failed = observed("head out of memory"), {"jobDeploymentStatus": "Failed", "reason": "AppFailed"}
    killed = replace(seen, owner={**seen.owner, "status": {**failed, "message": ray}})
    assert cause(killed).reason == "HeadOOMKilled"


@pytest.mark.parametrize("words", ["s3://b/_ray_pkg_82b2.zip", "https://h/x.zip"])
def test_code_from_elsewhere_that_cannot_be_had_is_not_told_to_have_gone_with_the_head(words):
    message = f"runtime_env setup failed: Failed to download runtime_env file package {words}"
    assert cause(Observed(ray={"status": "FAILED", "message": message})).reason == "RuntimeEnvSetupFailed"


def test_run_that_was_stopped_or_went_well_has_no_cause_whatever_its_pods_say():
    seen = observed("crash")
    assert cause(replace(seen, ray={"status": "STOPPED"})) is None
    assert cause(replace(seen, owner={**seen.owner, "status": {"jobDeploymentStatus": "Complete"}})) is None


def on_a_lost_node(**changes):
    seen = observed("noise: new head is ready")
    pod = seen.pods[0]
    pod["status"].update(changes.pop("status", {}))
    pod["status"]["conditions"] += changes.pop("conditions", [])
    for condition in pod["status"]["conditions"] if "ready" in changes else ():
        condition.update({"status": "False"} if condition["type"] == "Ready" else {})
    events = tuple(
        {"involvedObject": {"kind": "Pod", "name": pod["metadata"]["name"]}, **each}
        for each in changes.get("events", ())
    )
    return replace(seen, events=(*seen.events, *events))


TAINT = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
TAINT |= {"message": "Taint manager: deleting due to NoExecute taint"}


@pytest.mark.parametrize(
    "changes",
    [
        {"conditions": [TAINT]},
        {"status": {"reason": "NodeLost", "message": "Node a which was running pod b is unresponsive"}},
        {"status": {"reason": "NodeShutdown", "message": "Pod was rejected as the node is shutting down."}},
        {"status": {"reason": "Terminated", "message": "Pod was terminated in response to imminent node shutdown."}},
        {"events": [{"type": "Warning", "reason": "NodeNotReady", "message": "Node is not ready"}], "ready": False},
    ],
)
def test_lost_node_is_named(changes):
    assert cause(on_a_lost_node(**changes)).reason == "NodeLost"


@pytest.mark.parametrize(
    ("by", "message", "step"),
    [
        ("EvictionByEvictionAPI", "Eviction API: evicting", "somebody drains the node"),
        (
            "PreemptionByScheduler",
            "default-scheduler: preempting to accommodate a higher priority pod",
            "priorityClass",
        ),
        ("TerminationByKubelet", "The node was low on resource: memory.", "to what the message names"),
    ],
)
def test_pod_that_is_taken_from_its_node_is_named_with_what_to_do_about_who_takes_it(by, message, step):
    failure = cause(on_a_lost_node(conditions=[{**TAINT, "reason": by, "message": message}]))
    assert (failure.reason, failure.message) == ("Evicted", message)
    assert step in failure.next_step


def test_node_that_came_back_is_no_cause():
    assert cause(on_a_lost_node(events=[{"reason": "NodeNotReady", "message": "Node is not ready"}])) is None


#: As Kueue 0.15.2 wrote it.
PENDING = {"type": "QuotaReserved", "status": "False", "reason": "Pending"}
PENDING |= {"message": "couldn't assign flavors to pod set workers: insufficient unused quota for memory in flavor x"}
UNKNOWN = {**PENDING, "reason": "Inadmissible", "message": "LocalQueue none doesn't exist"}


@pytest.mark.parametrize(("condition", "reason"), [(PENDING, "Queued"), (UNKNOWN, "Inadmissible")])
def test_run_that_kueue_holds_back_has_the_workloads_own_words(condition, reason):
    owner = {"metadata": {"name": "a"}, "spec": {"suspend": True}, "status": {"jobDeploymentStatus": "Suspended"}}
    workload = {"metadata": {"name": "rayjob-a-1"}, "status": {"conditions": [condition]}}
    failure = cause(Observed(owner, workload=workload))
    assert (failure.reason, failure.message) == (reason, condition["message"])
    assert failure.where == "workload/rayjob-a-1: status.conditions[QuotaReserved].message"
    assert (
        cause(Observed({**owner, "spec": {}, "status": {"jobDeploymentStatus": "Running"}}, workload=workload)) is None
    )


def test_run_that_has_its_quota_and_waits_for_kueues_other_checks_has_their_words():
    owner = {"metadata": {"name": "a"}, "spec": {"suspend": True}, "status": {"jobDeploymentStatus": "Suspended"}}
    reserved = {"type": "QuotaReserved", "status": "True", "reason": "QuotaReserved"}
    checked = {"type": "Admitted", "status": "False", "reason": "NoChecks", "message": "nodes are being made"}
    workload = {"metadata": {"name": "rayjob-a-1"}, "status": {"conditions": [reserved, checked]}}
    failure = cause(Observed(owner, workload=workload))
    assert (failure.reason, failure.message) == ("Queued", "nodes are being made")


@pytest.mark.parametrize(("before", "words"), [(0, "It is the first in the queue"), (2, "2 before it in the queue")])
def test_place_in_the_queue_is_told(before, words):
    owner = {"metadata": {"name": "a"}, "spec": {"suspend": True}, "status": {"jobDeploymentStatus": "Suspended"}}
    workload = {"metadata": {"name": "rayjob-a-1"}, "status": {"conditions": [PENDING]}}
    assert cause(Observed(owner, workload=workload, before=before)).message == f"{PENDING['message']}. {words}"


def test_taint_is_named_before_the_amount_that_other_nodes_lack():
    seen = observed("gpu")
    said = "0/3 nodes are available: 1 node(s) had untolerated taint {gpu: yes}, 2 Insufficient nvidia.com/gpu."
    seen.pods[0]["status"]["conditions"][0]["message"] = said
    assert "toleration for the taint {gpu: yes}" in cause(seen).next_step
    control = said.replace("gpu: yes", "node-role.kubernetes.io/control-plane: ")
    seen.pods[0]["status"]["conditions"][0]["message"] = control
    assert "toleration" not in cause(seen).next_step


def test_taint_that_the_scheduler_does_not_name_is_to_be_looked_for():
    seen = observed("gpu")
    seen.pods[0]["status"]["conditions"][0]["message"] = "0/1 nodes are available: 1 node(s) had untolerated taint(s)."
    assert "kubectl describe nodes | grep Taints" in cause(seen).next_step
    named = "0/1 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }."
    seen.pods[0]["status"]["conditions"][0]["message"] = named  # which is not for pods to tolerate
    assert "toleration" not in cause(seen).next_step


def test_configmap_that_is_there_a_moment_later_is_no_cause():
    seen = observed("configmap of a volume")
    late = tuple({**each, "count": 2} for each in seen.events)
    assert cause(replace(seen, events=late)) is None
    seen.pods[0]["status"]["phase"] = "Running"
    assert cause(seen) is None


def test_event_of_a_pod_that_comes_often_and_is_of_no_mount_is_no_cause():
    seen = observed("configmap of a volume")
    others = tuple({**each, "reason": "NotTriggerScaleUp", "message": "no group fits"} for each in seen.events)
    assert cause(replace(seen, events=others)) is None


def test_claim_may_take_a_moment_to_be_bound():
    seen = observed("claim unbound")
    since = seconds(seen.pods[0]["status"]["conditions"][0]["lastTransitionTime"])
    assert cause(replace(seen, now=since + 1)) is None
    assert cause(replace(seen, now=since + 4)).reason == "VolumeClaimUnbound"


def test_object_without_status_has_no_operator_unless_it_is_another_controllers():
    created = "2026-11-24T12:44:02Z"
    owner = {"metadata": {"name": "a", "creationTimestamp": created}, "spec": {}}
    seen = Observed(owner, now=seconds(created) + OPERATOR_S)
    assert cause(seen) is None
    failure = cause(replace(seen, now=seen.now + 1))
    assert failure.reason == "OperatorNotRunning"
    assert cause(replace(seen, now=seen.now + 2)) == failure
    other = {**owner, "spec": {"managedBy": "kueue.x-k8s.io/multikueue"}}
    assert cause(replace(seen, owner=other, now=seen.now + 1)) is None
    about = {"involvedObject": {"kind": "RayJob", "name": "a"}, "lastTimestamp": created, "reason": "Working"}
    assert cause(replace(seen, events=(about,), now=seen.now + 1)) is None
    assert cause(replace(seen, now=0.0)) is None


def test_workers_that_are_never_ready_are_named_after_long():
    seen = observed("noise: workers wait for the head")
    created = max(seconds(pod["metadata"]["creationTimestamp"]) for pod in seen.pods)
    assert cause(replace(seen, now=created + INCOMPLETE_S)) is None
    early = cause(replace(seen, now=created + INCOMPLETE_S + 9))
    assert early.reason == "HeadNotReady"
    assert "see that its image has the Ray of rayVersion: kubectl -n team exec" in early.next_step
    head = next(pod for pod in seen.pods if pod["metadata"]["labels"]["ray.io/node-type"] == "head")
    for condition in head["status"]["conditions"]:
        condition["status"] = "True"
    failure = cause(replace(seen, now=created + INCOMPLETE_S + 9))
    assert failure.reason == "WorkerGroupIncomplete"
    assert f"0 of 2 workers are ready after {INCOMPLETE_S:g} s" in failure.message
    # Where words change with the time, a follower in a pipe prints a line every half second.
    assert cause(replace(seen, now=created + INCOMPLETE_S + 10)) == failure


def waiting(**status):
    created = "2026-11-24T12:44:02Z"
    metadata = {"name": "a", "creationTimestamp": created}
    owner = {"metadata": metadata, "spec": {"preRunningDeadlineSeconds": 60}, "status": status}
    return Observed(owner, now=seconds(created) + 60 + OVERDUE_S)


@pytest.mark.parametrize("status", [{}, {"jobDeploymentStatus": "Initializing"}, {"jobDeploymentStatus": "Waiting"}])
def test_job_that_nobody_ends_in_its_time_has_no_operator(status):
    seen = waiting(**status)
    later = replace(seen, now=seen.now + 1)
    assert not is_overdue(seen.owner, seen.now)
    assert is_overdue(later.owner, later.now)
    assert cause(later).reason == "OperatorNotRunning"
    retried = waiting(jobDeploymentStatus="Initializing", startTime="2026-11-24T12:45:02Z")
    assert not is_overdue(retried.owner, later.now)


def test_job_on_its_way_from_a_suspension_or_a_try_before_is_not_overdue():
    seen = waiting(jobDeploymentStatus="", startTime="2026-11-24T10:00:00Z")
    assert not is_overdue(seen.owner, seen.now + 1e6)


@pytest.mark.parametrize("status", ["Running", "Suspended", "Complete", "Failed"])
def test_job_that_waits_no_more_or_waits_in_a_queue_is_not_overdue(status):
    seen = waiting(jobDeploymentStatus=status)
    assert not is_overdue(seen.owner, seen.now + 1e6)


@pytest.mark.parametrize("spec", [{"suspend": True}, {"managedBy": "x.io/y"}, {"preRunningDeadlineSeconds": None}])
def test_job_that_may_wait_is_not_overdue(spec):
    seen = waiting()
    seen.owner["spec"] |= spec
    assert not is_overdue(seen.owner, seen.now + 1e6)


@pytest.mark.parametrize("reason", ["FailedToCreateHeadPod", "FailedToCreateWorkerPod"])
def test_pods_that_an_operator_without_conditions_cannot_make_are_named(reason):
    seen = observed("quota")
    del seen.cluster["status"]["conditions"]
    events = tuple({**each, "reason": reason} for each in seen.events)
    assert cause(replace(seen, events=events)).reason == "QuotaExceeded"


def test_quota_that_refuses_pods_without_limits_is_named_with_what_to_set():
    seen = observed("quota")
    words = 'pods "much-bm22s-head-cbtjs" is forbidden: failed quota: q: must specify limits.cpu for: ray'
    seen.cluster["status"]["conditions"][0]["message"] = f"FailedCreateHeadPod\n{words}"
    failure = cause(seen)
    assert (failure.reason, "must specify limits.cpu for: ray" in failure.message) == ("ResourcesUnset", True)
    step = "set resources.limits.cpu of container ray in the manifest, delete the run and submit again"
    assert failure.next_step == step


def test_refused_pod_is_the_same_cause_at_each_try_whatever_name_is_drawn_for_it():
    first, second = observed("quota"), observed("quota")
    condition = second.cluster["status"]["conditions"][0]
    condition["message"] = condition["message"].replace("head-cbtjs", "head-9ggcm")
    assert cause(first) == cause(second)
    assert cause(first).message.startswith('pods "much-bm22s-head-…" is forbidden: exceeded quota')
    assert status_of(first, {}).detail == status_of(second, {}).detail


def test_pod_that_the_server_never_takes_is_named_in_its_words_and_the_manifest_is_to_be_corrected():
    words = 'Pod "a-head-x" is invalid: spec.containers[0].resources.requests: Invalid value: "8Gi": must be less than'
    seen = observed("quota")
    seen.cluster["status"]["conditions"][0]["message"] = f"FailedCreateHeadPod\n{words}"
    failure, detail = cause(seen), status_of(seen, {}).detail
    assert (failure.reason, failure.message) == ("FailedCreateHeadPod", words)
    assert failure.next_step == "correct what the message names in the manifest, delete the run and submit again"
    assert detail.startswith("FailedCreateHeadPod: Pod")


def test_container_that_was_started_again_once_is_no_cause():
    seen = observed("crash")
    container = seen.pods[0]["status"]["containerStatuses"][0]
    container["state"] = {"running": {"startedAt": "2026-11-24T12:44:08Z"}}
    assert cause(seen) is None
    container["restartCount"] = 2
    assert cause(seen).reason == "CrashLoopBackOff"
    container["ready"] = True
    assert cause(seen) is None


def unready_head(*, restarts=0):
    """Return a cluster whose only head is not ready any more."""
    seen = observed("noise: new head is ready")
    provisioned = next(each for each in seen.cluster["status"]["conditions"] if each["type"] == "RayClusterProvisioned")
    provisioned["lastTransitionTime"] = LAST
    head = seen.pods[0]
    head["status"]["containerStatuses"][0]["restartCount"] = restarts
    for condition in head["status"]["conditions"]:
        condition.update({"status": "False", "lastTransitionTime": LAST} if condition["type"] == "Ready" else {})
    return replace(seen, now=seconds(LAST) + UNREADY_S - 1)


LAST = "2026-11-24T13:00:00Z"


def test_head_that_misses_a_probe_is_no_cause_until_it_lasts():
    seen = unready_head()
    assert cause(seen) is None
    assert cause(replace(seen, now=seen.now + 2)).reason == "HeadNotReady"
    assert cause(unready_head(restarts=1)).reason == "HeadLost"
    seen.pods[0]["metadata"]["creationTimestamp"] = "2026-11-24T13:00:01Z"  # another one, made since
    assert cause(seen).reason == "HeadLost"


def test_head_lost_with_the_code_of_its_run_is_no_reason_to_wait():
    seen = unready_head(restarts=1)
    assert "on which it starts again" in cause(seen).next_step
    spec = {**seen.owner["spec"], "runtimeEnvYAML": "working_dir: gcs://_ray_pkg_0.zip\n"}
    step = cause(replace(seen, owner={**seen.owner, "spec": spec})).next_step
    assert step.startswith("submit it again under the same name, which sends its code again")


def test_pods_that_may_not_be_read_are_not_taken_for_lost():
    seen = replace(observed("noise: new head is ready"), pods=())
    assert cause(seen) is None
    for condition in seen.cluster["status"]["conditions"]:
        condition.update(
            {"status": "False", "reason": "HeadPodNotFound"} if condition["type"] == "HeadPodReady" else {}
        )
    assert cause(seen).message == "the head pod is gone (HeadPodNotFound)"


@pytest.mark.parametrize(("code", "reason"), [("1", "PodFailed"), ("137", "HeadLost")])
def test_deleted_pods_end_is_named_unless_it_came_from_outside(code, reason):
    seen = observed("head deleted")
    about = {"involvedObject": {"kind": "RayCluster", "name": "ok"}, "reason": "DeletedHeadPod", "lastTimestamp": LAST}
    words = f"Ray container terminated status: &ContainerStateTerminated{{ExitCode:{code},Signal:0,Reason:Error,}}"
    assert cause(replace(seen, events=({**about, "message": words},))).reason == reason


def test_warning_of_the_operator_counts_when_it_lasts_and_is_no_race():
    owner = {"metadata": {"name": "a"}, "spec": {}, "status": {"jobDeploymentStatus": "Initializing"}}
    event = {"involvedObject": {"kind": "RayJob", "name": "a"}, "reason": "RayClusterNotFound", "count": 3}
    seen = Observed(owner, events=({**event, "message": 'raycluster "b" not found'},))
    assert cause(seen).reason == "RayClusterNotFound"
    assert cause(replace(seen, events=({**event, "count": 1},))) is None
    race = {**event, "reason": "FailedToCreateRayCluster", "message": 'rayclusters "a-1" already exists'}
    assert cause(replace(seen, events=(race,))) is None


def test_service_of_a_head_that_something_else_has_is_a_cause():
    cluster = {"metadata": {"name": "demo"}, "spec": {}, "status": {"conditions": []}}
    about = {"involvedObject": {"kind": "RayCluster", "name": "demo"}, "reason": "FailedToCreateService", "count": 9}
    words = 'Failed to create service lab/demo-head-svc, services "demo-head-svc" already exists'
    found = cause(Observed(cluster=cluster, events=({**about, "message": words},)))
    assert (found.reason, found.message) == ("FailedToCreateService", words)


def test_events_are_the_newest_first_by_whichever_time_they_have():
    about = {"involvedObject": {"kind": "Pod", "name": "a"}}
    old = {**about, "lastTimestamp": "2026-11-24T12:00:00Z"}
    new = {**about, "eventTime": "2026-11-24T12:00:01.123456Z"}
    newest = {**about, "series": {"count": 2, "lastObservedTime": "2026-11-24T12:00:02.000000Z"}}
    assert events_about(Observed(events=(old, newest, new)), ("a",)) == (newest, new, old)


def test_driver_that_ray_finds_no_place_for_is_told_to_ask_for_less():
    owner = {"metadata": {"name": "a"}, "spec": {}, "status": {"jobDeploymentStatus": "Running"}}
    ray = {"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE", "message": "unschedulable"}
    failure = cause(Observed(owner, ray=ray))
    assert (failure.reason, "--entrypoint-num-cpus" in failure.next_step) == ("Unschedulable", True)


def test_job_that_failed_is_explained_while_kuberay_waits_for_its_submitter():
    status = {"jobDeploymentStatus": "Running", "jobStatus": "FAILED", "message": EXITED}
    owner = {"metadata": {"name": "a"}, "spec": {"backoffLimit": 0}, "status": status}
    assert cause(Observed(owner)).reason == "EntrypointFailed"
    assert cause(Observed({**owner, "spec": {"backoffLimit": 1}})) is None


EXITED = "Job entrypoint command failed with exit code 3, last available logs (truncated to 20,000 chars):\nx"


def test_warning_of_the_operator_is_over_once_what_it_failed_to_make_is_there():
    owner = {"metadata": {"name": "a"}, "spec": {}, "status": {"jobDeploymentStatus": "Running"}}
    about = {"involvedObject": {"kind": "RayJob", "name": "a"}, "count": 50, "message": "no"}
    cluster, pod = {"metadata": {"name": "c"}}, observed("noise: new head is ready").pods[0]

    def told(reason, **more):
        found = cause(Observed(owner, events=({**about, "reason": reason},), **more))
        return found and found.reason

    assert told("RayClusterNotFound") == "RayClusterNotFound"
    assert told("RayClusterNotFound", cluster=cluster) is None
    assert told("FailedToCreateRole", cluster=cluster) == "FailedToCreateRole"
    assert told("FailedToCreateRole", cluster=cluster, pods=(pod,)) is None
    assert told("FailedToCreateService", cluster=cluster, pods=(pod,)) == "FailedToCreateService"
    assert told("FailedToCreateService", cluster=cluster, ray={"status": "RUNNING"}) is None


def test_events_of_an_earlier_object_of_the_name_are_not_its_own():
    now, before = ({"kind": "RayCluster", "name": "c", "uid": uid} for uid in ("2", "1"))
    claim = {"kind": "PersistentVolumeClaim", "name": "shared", "uid": "9"}
    events = [{"involvedObject": each} for each in (now, before, claim, {"name": "other", "uid": "2"})]
    cluster = {"metadata": {"name": "c", "uid": "2"}}
    both = events_of([{"involvedObject": each} for each in (now, before)], (cluster, {"metadata": {**before}}))
    assert len(both) == 2, "a job may have the name of its cluster"
    assert [each["involvedObject"] for each in events_of(events, (cluster, {}), {"shared"})] == [now, claim]


def test_suspended_job_for_a_queue_is_kueues_also_where_nothing_is_seen_of_that():
    owner = {"metadata": {"name": "a"}, "spec": {"suspend": True}, "status": {"jobDeploymentStatus": "Suspended"}}
    assert cause(Observed(owner)).reason == "Suspended"
    owner["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "team"}
    assert cause(Observed(owner)) is None
