"""The state of a local run, and what its keeper does next, as pure functions of what was seen."""

from dataclasses import replace

import pytest

from raykube.backends import endings
from raykube.backends.local import lifecycle
from raykube.backends.local.records import Ending, Record
from raykube.errors import Failure

RECORD = Record(
    name="a",
    kind="job",
    plan_hash="h",
    plan_yaml="",
    body={},
    storage="/s",
    submitted=100.0,
    max_retries=1,
    timeout_s=60,
    pending_timeout_s=30,
)
FAILED = {
    "status": "FAILED",
    "message": "Job entrypoint command failed with exit code 3, last available logs:\nboom",
    "error_type": "JOB_ENTRYPOINT_COMMAND_ERROR",
    "driver_exit_code": 3,
    "start_time": 101_000,
    "end_time": 105_000,
}
CRASH = "ray.exceptions.WorkerCrashedError"
TAKEN = "torch.AcceleratorError: CUDA error: out of memory"
ADVICE = [
    "Search for `cudaErrorMemoryAllocation' in https://docs.nvidia.com for more information.",
    "CUDA kernel errors might be asynchronously reported at some other API call.",
    "For debugging consider passing CUDA_LAUNCH_BLOCKING=1",
    "  Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.",
]
FULL = "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79 GiB."
RUNNING = {"status": "RUNNING", "message": "Job is currently running.", "start_time": 101_000, "end_time": None}


def action(job, *, attempt=1, now=105.0, ending=None, record=RECORD, noted=100.0):
    status = lifecycle.status_of(record, attempt, job)
    return lifecycle.action_of(record, status, known=job is not None, ending=ending, noted=noted, now=now)


def test_failure_names_exit_code_and_tail():
    status = lifecycle.status_of(RECORD, 1, FAILED, ["line 1", "boom"])
    assert status.failure is not None
    assert (status.failure.reason, status.failure.exit_code) == ("EntrypointFailed", 3)
    assert tuple(status.failure.tail) == ("line 1", "boom")
    assert status.failure.next_step == "raykube job logs a"


def test_detail_of_a_failed_job_is_a_sentence_without_what_leads_to_a_log():
    message = "Job entrypoint command failed with exit code 3, last available logs (truncated to 20,000 chars):\nboom"
    status = lifecycle.status_of(RECORD, 1, FAILED | {"message": message}, ["boom"])
    assert status.detail == "Job entrypoint command failed with exit code 3"


def test_signal_that_ended_a_run_is_named():
    message = (
        "Job entrypoint command failed with exit code 137, last available logs (truncated to 20,000 chars):\nKilled"
    )
    failure = lifecycle.status_of(RECORD, 1, FAILED | {"message": message, "driver_exit_code": 137}).failure
    assert failure is not None
    assert (failure.reason, failure.exit_code) == ("EntrypointFailed", 137)
    assert "SIGKILL" in failure.message


def test_driver_of_another_ray_than_the_heads_is_told_of_the_versions():
    log = (
        "RuntimeError: Version mismatch: The cluster was started with:\n    Ray: 2.51.0\n    Python: 3.12.1\n"
        "This process on node 10.0.0.1 was started with:\n    Ray: 2.40.0\n    Python: 3.12.1"
    )
    message = f"Job entrypoint command failed with exit code 1, last available logs:\n{log}"
    failure = lifecycle.status_of(RECORD, 1, FAILED | {"message": message, "driver_exit_code": 1}).failure
    assert failure is not None
    assert failure.reason == "RayVersionMismatch"
    assert "Ray 2.51.0" in failure.message
    assert "raykube cluster delete local" in failure.next_step


def test_kill_by_the_memory_monitor_is_named_by_the_errors_own_words():
    monitor = "2 worker(s) were killed due to the node running low on memory."
    tail = [f"(raylet) {monitor}", "RunFailed: run a failed", f"  why:  worker 0: {monitor}", "  next: x"]
    failure = lifecycle.status_of(RECORD, 1, FAILED, tail).failure
    assert failure is not None
    assert (failure.reason, failure.message, failure.exit_code) == ("OutOfMemory", f"worker 0: {monitor}", 3)


@pytest.mark.parametrize(
    ("tail", "reason", "message"),
    [
        (["raise value", f"{CRASH}: The worker died"], "WorkerDied", f"{CRASH}: The worker died"),
        (
            [f"{CRASH}: The worker died", "and I go on"],
            "EntrypointFailed",
            "Job entrypoint command failed with exit code 3",
        ),
        ([f"torch.{FULL}"], "GpuOutOfMemory", f"torch.{FULL}"),
        (
            ["RunFailed: run a failed", f"  why:  {FULL} (worker 0)", "  next: x"],
            "GpuOutOfMemory",
            f"{FULL} (worker 0)",
        ),
        (["torch.AcceleratorError: CUDA error: out of memory", *ADVICE], "GpuOutOfMemory", TAKEN),
        (["RunFailed: run a", f"  why:  {TAKEN}", *ADVICE, "[W12 exit.cpp:3] a warning"], "GpuOutOfMemory", TAKEN),
        (
            [f"  why:  {FULL}", "trying half", "ValueError: x"],
            "EntrypointFailed",
            "Job entrypoint command failed with exit code 3",
        ),
        ([f"torch.{FULL}", "trying half"], "EntrypointFailed", "Job entrypoint command failed with exit code 3"),
        (['  File "/a/b.py", line 2', "SyntaxError: bad"], "SyntaxError", "SyntaxError: bad (/a/b.py, line 2)"),
    ],
)
def test_last_words_of_a_script_name_what_ended_it(tail, reason, message):
    failure = lifecycle.status_of(RECORD, 1, FAILED, tail).failure
    assert (failure.reason, failure.message, failure.exit_code) == (reason, message, 3)


@pytest.mark.parametrize(("step", "told"), [("", "raykube job logs a"), ("use less", "use less")])
def test_failure_that_the_script_has_left_comes_before_the_end_of_its_log(step, told):
    left = Failure("LoopFailed", "ValueError: x (worker 1)", 1, next_step=step)
    tail = ["boom", "(raylet) Refer to the documentation on how to address the out of memory issue: x"]
    failed = FAILED | {"message": "Job entrypoint command failed with exit code 1", "driver_exit_code": 1}
    failure = lifecycle.status_of(RECORD, 1, failed, tail, left).failure
    assert failure == replace(left, tail=tuple(tail), next_step=told)
    other = lifecycle.status_of(RECORD, 1, FAILED, tail, left).failure  # something else has ended it
    assert (other.reason, other.exit_code) == ("OutOfMemory", 3)


def test_times_are_seconds():
    status = lifecycle.status_of(RECORD, 1, FAILED)
    assert (status.submitted, status.started, status.ended) == (100.0, 101.0, 105.0)


def test_running_job_has_no_end():
    assert lifecycle.status_of(RECORD, 1, {**RUNNING, "end_time": 0}).ended is None


def test_unsent_record_is_pending_and_sent_when_overdue():
    assert lifecycle.status_of(RECORD, 1, None).state == "PENDING"
    assert action(None, now=101.0).do == "wait"
    assert action(None, now=106.0) == lifecycle.Action("send", 1)


def test_unsent_record_ends_as_stopped_once_a_stop_was_asked_for():
    assert action(None, now=106.0, ending=Ending()) == lifecycle.Action("end", 1)


@pytest.mark.parametrize(("now", "do"), [(1005.0, "stop"), (1006.0, "end")])
def test_retry_that_may_be_under_way_is_stopped_and_not_yet_taken_for_ended(now, do):
    record = replace(RECORD, timeout_s=None)
    for since in (None, 1001.0):
        ending = Ending(since=since)
        assert action(None, attempt=2, noted=1000.0, now=now, ending=ending, record=record) == lifecycle.Action(do, 2)


def test_attempt_that_began_after_a_stop_was_asked_for_is_stopped():
    assert action(RUNNING, attempt=2, ending=Ending()) == lifecycle.Action("stop", 2)


def test_record_that_the_head_never_takes_exceeds_its_deadline():
    ended = action(None, now=131.0)
    assert ended.failure is not None
    assert ended.failure.reason == "PreRunningDeadlineExceeded"


def test_retry_that_was_not_sent_yet_waits_as_long_as_the_first_attempt_did():
    record = replace(RECORD, timeout_s=None)
    assert action(None, attempt=2, noted=1000.0, now=1030.0, record=record) == lifecycle.Action("send", 2)
    ended = action(None, attempt=2, noted=1000.0, now=1031.0, record=record)
    assert ended.failure is not None
    assert ended.failure.reason == "PreRunningDeadlineExceeded"


def test_refused_run_says_the_head_s_words():
    status = lifecycle.refused(RECORD, 1, "no such option", 200.0)
    assert status.failure is not None
    assert (status.failure.reason, status.failure.message) == ("Refused", "no such option")


def test_failed_attempt_is_followed_by_the_next_while_retries_last():
    assert action(FAILED, attempt=1) == lifecycle.Action("send", 2)
    assert action(FAILED, attempt=2).do == "wait"


def test_run_submitted_again_has_all_its_retries_again():
    again = replace(RECORD, first=3)
    assert action(FAILED, attempt=3, record=again) == lifecycle.Action("send", 4)
    assert action(FAILED, attempt=4, record=again).do == "wait"


def test_stopped_run_is_not_retried():
    assert action(FAILED, ending=Ending()).do == "wait"


@pytest.mark.parametrize("state", ["SUCCEEDED", "STOPPED"])
def test_ended_run_exceeds_no_deadline(state):
    assert action({**RUNNING, "status": state, "end_time": 999_000}, now=10_000).do == "wait"


def test_running_beyond_its_timeout_is_stopped_with_the_deadline_as_reason():
    ended = action(RUNNING, now=161.0)
    assert ended.do == "stop"
    assert ended.failure is not None
    assert ended.failure.reason == "DeadlineExceeded"
    assert action(RUNNING, now=160.0).do == "wait"
    assert action(RUNNING, attempt=2, now=161.0).do == "stop"


def test_pending_beyond_its_timeout_is_stopped_with_the_deadline_as_reason():
    pending = {"status": "PENDING", "message": "waiting", "start_time": 101_000}
    ended = action(pending, now=132.0)
    assert ended.do == "stop"
    assert ended.failure is not None
    assert ended.failure.reason == "PreRunningDeadlineExceeded"


def test_pending_is_counted_from_when_ray_took_the_attempt():
    late = {"status": "PENDING", "message": "waiting", "start_time": 120_000}
    assert action(late, now=131.0).do == "wait"
    assert action(late, now=151.0).failure.reason == "PreRunningDeadlineExceeded"


def test_pending_beyond_the_timeout_of_the_run_is_stopped_for_that():
    pending = {"status": "PENDING", "message": "waiting", "start_time": 101_000}
    ended = action(pending, now=161.0, record=replace(RECORD, pending_timeout_s=None))
    assert ended.failure is not None
    assert (ended.do, ended.failure.reason) == ("stop", "DeadlineExceeded")


@pytest.mark.parametrize(("job", "last_s"), [(RUNNING, 20), ({**RUNNING, "status": "PENDING"}, 2)])
def test_stopped_job_that_ray_does_not_end_is_ended_without_it_after_a_while(job, last_s):
    ending = Ending(since=100.0)
    assert action(job, ending=ending, now=100.0 + last_s).do == "stop"
    assert action(job, ending=ending, now=101.0 + last_s) == lifecycle.Action("end", 1)


def test_deadline_that_a_run_is_stopped_for_stays_its_reason():
    late = action(RUNNING, now=161.0).failure
    ending = Ending(late, since=161.0)
    assert action(RUNNING, ending=ending, now=182.0) == lifecycle.Action("end", 1, late)
    for state in ("STOPPED", "FAILED"):
        seen = lifecycle.status_of(RECORD, 1, {**FAILED, "status": state})
        judged = lifecycle.judged(seen, ending, now=163.0)
        assert (judged.state, judged.failure, judged.ended) == ("FAILED", late, 105.0)
        assert not lifecycle.has_retry(RECORD, judged, ending)


def test_run_that_ended_well_before_it_was_stopped_for_a_deadline_has_ended_well():
    seen = lifecycle.status_of(RECORD, 1, {**RUNNING, "status": "SUCCEEDED"})
    assert lifecycle.judged(seen, Ending(action(RUNNING, now=161.0).failure), now=163.0) == seen


def test_run_that_somebody_stopped_is_as_ray_says():
    for state in ("STOPPED", "FAILED"):
        seen = lifecycle.status_of(RECORD, 1, {**FAILED, "status": state})
        assert lifecycle.judged(seen, Ending(since=101.0), now=163.0) == seen


def test_run_without_deadlines_goes_on():
    record = replace(RECORD, timeout_s=None, pending_timeout_s=None)
    assert action(RUNNING, now=1e9, record=record).do == "wait"


def test_lost_run_failed_because_its_head_died():
    status = lifecycle.lost(RECORD, 2, ["last words"], now=200.0)
    assert (status.state, status.attempt, status.ended) == ("FAILED", 2, 200.0)
    assert status.failure is not None
    assert status.failure.reason == "HeadDied"
    assert "same name" in status.failure.next_step


def test_unknown_error_type_still_gives_a_reason():
    failure = lifecycle.failure_of("a", {"status": "FAILED", "message": "odd", "error_type": "NEW_ONE"}, [])
    assert (failure.reason, failure.message) == ("JobFailed", "odd")


@pytest.mark.parametrize(("code", "told"), [(137, "(SIGKILL: the kernel kills"), (139, "(SIGSEGV)"), (3, "code 3")])
def test_signal_that_ended_an_entrypoint_is_named(code, told):
    found = endings.ending(f"Job entrypoint command failed with exit code {code}, last available logs:\nKilled")
    assert told in found.message


def test_line_of_megabytes_is_told_in_short():
    (line,) = endings.tail_of("x" * 5_000_000)
    assert len(line) < 500
