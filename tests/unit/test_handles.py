"""Handles and what they answer are values: compared, shown, pickled and copied."""

import copy
import math
import pickle
import threading
import time
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

import raykube as rk
from raykube import handles, wire
from raykube.backends import Status, endings
from raykube.backends.kuberay.backend import KubeRay
from raykube.backends.local import observe, records
from raykube.backends.local.backend import Local
from raykube.cli import common
from raykube.errors import (
    BackendError,
    ConfigError,
    Failure,
    NotFound,
    RunStopped,
    ServiceFailed,
    Unreachable,
    WaitTimeout,
)
from raykube.handles import Endpoint, Run
from tests.servers import Quiet, kubernetes
from tests.unit.heads import SILENT, Answering


def test_handle_is_that_of_its_place():
    places = [Local(), KubeRay(), KubeRay("a"), KubeRay("a", "b"), KubeRay("", "b")]
    assert len({Run("x", place) for place in places}) == len(places)
    assert Run("x", KubeRay("a", "b")) == Run("x", KubeRay("a", "b")) != Endpoint("x", KubeRay("a", "b"))
    assert repr(Run("x", KubeRay("a", "b"))) == "Run(name='x', backend=KubeRay(context='a', namespace='b'))"
    assert repr(Endpoint("x", Local())) == "Endpoint(name='x', backend=Local())"


def test_handle_shows_the_namespace_that_its_kubeconfig_gave_once_it_was_asked():
    with kubernetes(Quiet):
        run = Run("x", KubeRay())
        assert "namespace=''" in repr(run)
        assert f"namespace={run.backend.kube.namespace!r}" in repr(run)
        assert run == Run("x", KubeRay())


@pytest.mark.parametrize("again", [lambda run: pickle.loads(pickle.dumps(run)), copy.deepcopy])
def test_handle_that_was_asked_is_taken_to_another_process(again):
    with kubernetes(Quiet):
        run = Run("x", KubeRay("", "b"))
        asked = run.backend.kube
        assert again(run) == run
        assert "kube" not in vars(again(run).backend)
        assert run.backend.kube is asked


def test_status_is_copied_and_pickled(tmp_path):
    (tmp_path / "x" / "stage").mkdir(parents=True)
    (tmp_path / "x" / "stage" / wire.METRICS_FILE).write_text('{"metrics": {"loss": 0.5}}\n')
    record = records.Record("x", "job", "h", "", {}, str(tmp_path), 1.0)
    for status in (
        Status("x", "job", "RUNNING"),
        Status("x", "job", "RUNNING", progress=observe.last_report(record)["metrics"]),
    ):
        assert pickle.loads(pickle.dumps(status)) == copy.deepcopy(status) == status
        assert asdict(status)["progress"] == status.progress
    assert status.progress == {"loss": 0.5}


def test_time_to_wait_for_a_service_is_what_sending_it_has_left():
    now = time.monotonic()
    assert (handles.left(600, now - 100), handles.left(60, now - 100)) == (500, 0)
    assert (handles.left(math.inf, now), handles.left(None, now)) == (math.inf, math.inf)
    assert 0 < handles.left(0.4, now) <= 0.4


@pytest.mark.usefixtures("record")
def test_wait_for_a_head_that_gives_no_answer_ends_in_its_time():
    for known, answers in (("WAITING", [SILENT]), ("RUNNING", ["RUNNING", SILENT])):
        seen = []
        place = Answering(*answers, *[SILENT] * 9)
        with pytest.raises(WaitTimeout, match=rf"a is still {known} after 0\.3 s"):
            handles.Run("a", place).wait(timeout_s=0.3, on_event=seen.append)
        assert [event.status.state for event in seen] == [known]


@pytest.mark.parametrize("timeout_s", [float("nan"), -1, "5"])
def test_wait_of_what_is_no_time_is_refused_and_nobody_is_asked(code, timeout_s):
    with pytest.raises(ConfigError, match=r"timeout_s is .* which is no time"):
        handles.Run("a", Answering()).wait(timeout_s=timeout_s)
    with pytest.raises(ConfigError, match=r"timeout_s is .* which is no time"):
        handles.Endpoint("a", Answering()).wait_ready(timeout_s=timeout_s)
    app = rk.App(import_path="hello:app")
    with pytest.raises(ConfigError, match=r"timeout_s is .* which is no time"):
        rk.deploy(rk.Service(name="a", apps=(app,), working_dir=code), "local", timeout_s=timeout_s)


def test_service_that_was_deployed_and_failed_exits_as_a_run_that_failed():
    with pytest.raises(BackendError, match="service a is not up") as told:
        handles.Endpoint("a", Answering("FAILED")).wait_ready()
    assert common.exit_code(told.value) == 1
    assert common.exit_code(BackendError("refused")) == 2


def test_list_leaves_out_what_was_deleted_since_it_was_begun():
    place = Answering("RUNNING", NotFound("nothing is called 'b' here"), "FAILED")
    found = handles.statuses(rk.Run(name, place) for name in ("a", "b", "c"))
    assert [(status.name, status.state) for status in found] == [("a", "RUNNING"), ("c", "FAILED")]


class Noting(Local):
    """Notes which threads ask for a state, and lets the first of them wait."""

    def __init__(self):
        self.threads = []
        self.goes_on = threading.Event()

    def status(self, name, kind=None):  # noqa: ARG002
        self.threads.append(threading.current_thread())
        if name == "silent":
            self.goes_on.wait(10)
        if name == "bad":
            raise Unreachable("no answer")
        return Status(name, "job", "RUNNING")


def test_list_keeps_no_command_that_was_interrupted_waiting_for_who_is_silent():
    place = Noting()
    with pytest.raises(Unreachable):
        handles.statuses([rk.Run("bad", place), rk.Run("silent", place)])
    assert all(thread.daemon for thread in place.threads)
    place.goes_on.set()


def test_list_of_many_is_in_order():
    place, names = Noting(), [f"run-{number}" for number in range(50)]
    assert [status.name for status in handles.statuses(rk.Run(name, place) for name in names)] == names
    assert len(set(place.threads)) <= handles._AT_ONCE


@pytest.mark.parametrize("since", ["RUNNING", "gone"])
def test_wait_for_a_service_tells_the_cause_that_it_saw_whatever_has_come_since(since):
    def status(name, kind):
        if since == "gone":
            raise NotFound(f"there is no {kind} {name}")
        return Status(name, kind, since, "it answers")

    failed = Status("x", "service", "FAILED", failure=Failure("DeployFailed", "no module", next_step="correct it"))
    place = SimpleNamespace(status=status, changes=lambda *_: iter([failed]))
    with pytest.raises(BackendError, match="service x is not up: DeployFailed") as error:
        Endpoint("x", place).wait_ready()
    assert (error.value.why, error.value.next_step) == ("no module", "correct it")


def deployed(*statuses):
    """Return the endpoint of a service that was sent as plan ``ours``, and is then seen so."""
    seen = [Status("x", "service", state, plan=plan) for state, plan in statuses]
    return Endpoint("x", SimpleNamespace(changes=lambda *_: iter(seen)), "ours")


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "FAILED"])
def test_service_that_somebody_else_deployed_meanwhile_is_no_success_of_ours(state):
    with pytest.raises(ServiceFailed, match="somebody else deployed other code or configuration as x") as told:
        deployed(("PENDING", "ours"), (state, "theirs")).wait_ready()
    assert told.value.why == "it has plan theirs now, and ours was sent"
    assert common.exit_code(told.value) == 1


def gone():
    yield Status("x", "service", "PENDING", plan="ours")
    raise NotFound("service x was deleted")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (gone, "service x was deleted"),
        (lambda: iter([Status("x", "service", "STOPPED", "it is being deleted")]), "it is being deleted"),
    ],
)
def test_service_that_somebody_deletes_while_it_is_waited_for_has_failed(changes, why):
    with pytest.raises(ServiceFailed, match="somebody deleted service x while raykube waited for it") as told:
        Endpoint("x", SimpleNamespace(changes=lambda *_: changes())).wait_ready()
    assert (told.value.why, common.exit_code(told.value)) == (why, 1)


def test_run_that_somebody_deletes_while_it_is_waited_for_was_stopped():
    def gone():
        yield Status("x", "job", "RUNNING")
        raise NotFound("run x was deleted")

    with pytest.raises(RunStopped, match="somebody deleted run x while raykube waited for it") as told:
        Run("x", SimpleNamespace(changes=lambda *_: gone())).wait()
    assert (told.value.why, common.exit_code(told.value)) == ("it was RUNNING", 1)


def test_run_that_a_deletion_stops_is_told_as_deleted_and_not_as_stopped():
    ran = Status("x", "job", "RUNNING", storage="/runs/x")
    ends = [ran, replace(ran, state="STOPPED", detail=endings.BEING_DELETED)]
    with pytest.raises(RunStopped, match="somebody deleted run x while raykube waited for it") as told:
        Run("x", SimpleNamespace(changes=lambda *_: iter(ends))).wait()
    assert told.value.why == "it was RUNNING"
    assert "it resumes if /runs/x still has its checkpoints" in told.value.next_step


@pytest.mark.parametrize(("storage", "resumes"), [("/runs/x", True), ("", False)])
def test_run_that_was_stopped_resumes_only_where_a_storage_kept_its_checkpoints(storage, resumes):
    ended = Status("x", "job", "STOPPED", storage=storage)
    with pytest.raises(RunStopped, match="run x was stopped") as told:
        Run("x", SimpleNamespace(changes=lambda *_: iter([ended]))).wait()
    assert ("resume" in told.value.next_step) == resumes


def test_run_that_was_deleted_before_the_wait_is_not_found():
    def never():
        raise NotFound("run x was deleted")
        yield

    with pytest.raises(NotFound):
        Run("x", SimpleNamespace(changes=lambda *_: never())).wait()


def waiting(detail, failure=None):
    return SimpleNamespace(changes=lambda *_: iter([Status("x", "service", "PENDING", detail, failure)]))


def test_service_that_is_late_is_told_with_the_time_that_was_given_and_what_keeps_it():
    failure = Failure("ImageNotFound", "no such image", next_step="correct `image`")
    endpoint = Endpoint("x", waiting("ImageNotFound: no such image", failure))
    with pytest.raises(WaitTimeout, match="service x is not ready after 15 s") as told:
        handles.ready(endpoint, 15, time.monotonic() - 20)
    assert told.value.next_step == "correct `image`; then see: raykube service status x"
    with pytest.raises(WaitTimeout) as told:
        Endpoint("x", waiting("0 of 1 pods ready")).wait_ready(timeout_s=0)
    assert told.value.next_step == "raykube service status x"


def test_update_that_is_late_is_told_by_what_goes_on():
    goes_on = "what was deployed before goes on serving"
    endpoint = Endpoint("x", waiting(f"the update waits; {goes_on}: ImageNotFound: no such image"))
    with pytest.raises(WaitTimeout, match=f"the update of x is not ready after 0 s; {goes_on}"):
        endpoint.wait_ready(timeout_s=0)


def test_service_is_ours_by_its_plan_or_where_nobody_tells_its_plan():
    for plan in ("ours", ""):
        endpoint = deployed(("RUNNING", plan))
        assert endpoint.wait_ready() is endpoint
    attached = Endpoint("x", deployed(("RUNNING", "theirs")).backend)
    assert attached.wait_ready() == attached


@pytest.mark.parametrize("state", ["WAITING", "PENDING"])
def test_cause_of_what_waits_without_a_fault_is_to_wait(state):
    for kind in (Run, Endpoint):
        place = SimpleNamespace(status=lambda name, kind: Status(name, kind, state, "0 of 1 pods ready"))
        assert kind("x", place).why() == Failure(
            state, "0 of 1 pods ready", next_step="wait: nothing is known to be wrong"
        )
