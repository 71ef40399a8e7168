"""Services on this machine, before a Serve that answers as it is told."""

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

import raykube as rk
from raykube.backends import Status
from raykube.backends.local import head, records, services
from raykube.errors import Failure, Unreachable
from tests.basics import until
from tests.support import pressed, typed


def service(code, name, word="accept", app="", **more):
    """Return the plan of a service."""
    named = {"name": app or name, "route_prefix": f"/{name}", **more}
    app = rk.App(import_path="hello:app", env_vars={"WORD": word}, **named)
    return rk.plan(rk.Service(name=name, apps=(app,), working_dir=code), "local")


#: With which Ray marks the output of the replica of the service good.
MARK = ":actor_name:ServeReplica:good:Model"


def logs_folder():
    """Return the folder in which Ray keeps what workers write."""
    folder = Path(head.current().session_dir, "logs")
    folder.mkdir(exist_ok=True)
    return folder


def test_service_that_serve_refuses_is_not_in_the_way_of_others(dashboard, code):
    with pytest.raises(rk.BackendError):
        services.deploy(service(code, "bad", "refuse"))
    services.deploy(service(code, "good"))
    assert dashboard == [["bad"], ["good"]]
    assert [record.name for record in records.every("service")] == ["good"]


def test_service_stays_what_it_was_when_serve_refuses_its_change(dashboard, code):
    services.deploy(service(code, "good"))
    former = records.load("good")
    with pytest.raises(rk.BackendError):
        services.deploy(service(code, "good", "refuse"))
    assert records.load("good") == former
    assert len(dashboard) == 2


def test_service_of_which_nobody_knows_whether_serve_has_taken_it_is_kept(dashboard, code):
    with pytest.raises(Unreachable):
        services.deploy(service(code, "late", "silence"))
    assert records.load("late").head == "h"
    assert dashboard == [["late"]]


def of_serve(name, record, began):
    """Return what Serve once told of an application, with its running replicas begun so long after a record."""
    (app,) = json.loads((Path(__file__).parent / "recorded" / "serve.json").read_text())[name].values()
    for deployment in app["deployments"].values():
        for replica in deployment["replicas"]:
            replica["start_time_s"] = record.deployed + began
    return {"good": app}


@pytest.mark.parametrize(
    ("name", "began", "what", "why"),
    [
        ("failed", 1, "service good is not up: DeployFailed", "RuntimeError: weights do not fit"),
        ("update", 1, "service good is not up: DeployFailed", "raykube.errors.NotFound: no checkpoint at /x"),
        (
            *("update", -1),
            "the update of good failed; what was deployed before goes on serving",
            "raykube.errors.NotFound",
        ),
        ("unbuilt", -1, "service good is not up: DeployFailed", "ValueError: args no"),
    ],
)
def test_deploy_that_failed_says_why_and_whether_the_service_goes_on(answering, code, name, began, what, why):
    services.deploy(service(code, "good"))
    answering.applications = of_serve(name, records.load("good"), began)
    with pytest.raises(rk.BackendError) as told:
        rk.attach("good", "local").wait_ready()
    assert told.value.what == what
    assert told.value.why.startswith(why)
    assert "raykube service why good" in told.value.next_step


def test_service_goes_on_while_its_new_code_cannot_be_loaded_and_processes_of_the_old_are_there(answering, code):
    services.deploy(service(code, "good"))
    answering.applications = of_serve("unbuilt", records.load("good"), -1)
    replica = ["ray::ServeReplica:good:Model", "-c", "input()"]
    with subprocess.Popen(replica, executable=sys.executable, stdin=subprocess.PIPE, start_new_session=True) as process:
        until(psutil.Process(process.pid).cmdline, "the process has its title", 10)
        head.write_state(replace(head.current(), ray_pid=process.pid, ray_born=head.born(process.pid)))
        found = rk.attach("good", "local").status()
        process.communicate(b"\n")
    assert (found.state, found.failure.reason) == ("FAILED", "UpdateFailed")
    assert found.detail == "the update failed; what was deployed before goes on serving: good DEPLOY_FAILED"


def test_service_that_failed_is_tried_again_by_the_same_plan_and_stays_as_it_was_then(answering, code):
    services.deploy(service(code, "good"))
    answering.applications = of_serve("failed", records.load("good"), 1)
    services.deploy(service(code, "good"))
    answering.applications = of_serve("retrying", records.load("good"), 1)
    services.deploy(service(code, "good"))
    services.deploy(service(code, "other"))
    assert answering.attempts == [[None], ["2"], ["2"], ["2", None]]


@pytest.mark.usefixtures("answering")
def test_update_tells_which_counts_it_changes(code, caplog):
    caplog.set_level(logging.INFO, "raykube")
    services.deploy(service(code, "good", num_replicas=2))
    services.deploy(service(code, "good"))
    assert caplog.messages == ["good changes: replicas 2 -> as the application says"]


@pytest.mark.usefixtures("answering")
def test_service_keeps_the_time_of_its_first_deployment_and_tells_what_its_latest_brought(code):
    services.deploy(service(code, "good"))
    before = rk.attach("good", "local").status()
    (code / "hello.py").write_text("app = 2\n")
    services.deploy(service(code, "good"))
    after = rk.attach("good", "local").status()
    assert before.submitted == after.submitted == before.started < after.started
    assert before.deployed != after.deployed
    assert after.deployed.startswith("hello:app, code ")


def test_service_whose_change_has_not_come_to_serve_is_not_running(answering, code):
    services.deploy(service(code, "good"))
    (sent,) = records.load("good").body
    answering.applications = {"good": {"status": "RUNNING", "deployments": {}, "deployed_app_config": sent}}
    found = rk.attach("good", "local").status()
    assert (found.state, found.plan) == ("RUNNING", service(code, "good").hash)
    with pytest.raises(Unreachable):
        services.deploy(service(code, "good", "silence"))
    found = rk.attach("good", "local").status()
    assert (found.state, found.detail) == ("PENDING", "good NOT_STARTED")


@pytest.mark.usefixtures("dashboard")
def test_log_of_a_service_is_not_that_of_another_whose_name_goes_on(code):
    for name in ("roll", "roll_two"):
        services.deploy(service(code, name.replace("_", "-"), app=name))
    folder = logs_folder()
    for app in ("roll", "roll_two"):
        (folder / f"worker-{app}-01-1.err").write_text(f":actor_name:ServeReplica:{app}:Model\nof {app}\n")
    assert list(rk.attach("roll", "local").logs()) == ["of roll"]
    assert list(rk.attach("roll-two", "local").logs()) == ["of roll_two"]


def test_service_says_what_keeps_it_from_running_while_serve_tries_again(answering, code):
    services.deploy(service(code, "good"))
    answering.applications = of_serve("retrying", records.load("good"), 1)
    found = rk.attach("good", "local").status()
    assert (found.state, found.failure.reason) == ("PENDING", "ReplicaFailed")
    assert found.detail == "good DEPLOYING; ReplicaFailed: RuntimeError: weights do not fit"


@pytest.mark.usefixtures("dashboard")
def test_update_of_a_service_shows_the_time_since_it_was_deployed(code, monkeypatch):
    states = iter(Status("good", "service", state, submitted=1.0) for state in ("PENDING", "RUNNING", "RUNNING"))
    monkeypatch.setattr(services, "status", lambda _: next(states))
    done = typed("service", "deploy", "good", "hello:app", "--working-dir", ".", cwd=code)
    (pending,) = [line for line in done.stderr.splitlines() if line.startswith("good PENDING")]
    assert float(pending.split(" · ")[-1].removesuffix("s")) < 60


@pytest.mark.usefixtures("dashboard")
def test_status_of_a_service_that_is_not_up_is_printed_as_json_too(code, monkeypatch):
    unwell = Status("good", "service", "FAILED", failure=Failure("DeployFailed", "no weights"))
    monkeypatch.setattr(services, "status", lambda _: unwell)
    done = typed("service", "deploy", "good", "hello:app", "--working-dir", ".", "--json", cwd=code)
    assert done.returncode == 1
    assert json.loads(done.stdout)["failure"]["message"] == "no weights"


@pytest.mark.usefixtures("dashboard")
def test_ctrl_c_while_a_service_starts_says_that_it_goes_on(code, monkeypatch):
    monkeypatch.setattr(services, "status", pressed)
    done = typed("service", "deploy", "good", "hello:app", "--working-dir", ".", cwd=code)
    assert done.returncode == 130
    assert "the deployment of good goes on" in done.stderr
    assert "raykube service status good" in done.stderr
    assert "raykube service delete good" in done.stderr
    assert records.load("good").head == "h"


@pytest.mark.usefixtures("dashboard")
def test_ctrl_c_while_a_service_is_sent_says_how_to_look_at_it(code, monkeypatch):
    monkeypatch.setattr(services, "_apply", pressed)
    done = typed("service", "deploy", "good", "hello:app", "--working-dir", ".", cwd=code)
    assert done.returncode == 130
    assert "interrupted while good was sent; what has arrived of it goes on" in done.stderr
    assert "raykube service status good" in done.stderr


@pytest.mark.usefixtures("dashboard")
def test_followed_log_of_a_service_goes_on_while_it_is_unwell_and_where_its_file_is_begun_anew(code, monkeypatch):
    services.deploy(service(code, "good"))
    log = logs_folder() / "worker-a-01-1.err"
    log.write_text(f"{MARK}\none\ntwo\n")

    def seen():
        yield Status("good", "service", "FAILED", failure=Failure("DeployFailed", "UNHEALTHY"))
        log.write_text("new\n")
        yield Status("good", "service", "RUNNING")
        yield Status("good", "service", "STOPPED")

    states = seen()
    monkeypatch.setattr(services, "status", lambda _: next(states))
    assert list(services.logs(records.load("good"), follow=True)) == ["one", "two", "new"]


@pytest.mark.usefixtures("dashboard")
def test_log_of_a_service_is_in_the_order_of_time_and_a_traceback_stays_with_its_line(code):
    services.deploy(service(code, "good"))
    folder = logs_folder()
    text = "{} 2026-11-28 12:49:4{} good_Model one -- GET / 200"
    one = [text.format("ERROR", "0,900"), "Traceback (most recent call last):", text.format("INFO", "1,002")]
    two = [text.format("INFO", "1,001")]
    for name, lines in {"two": two, "one": one}.items():
        (folder / f"worker-{name}-01-1.err").write_text("".join(f"{line}\n" for line in [MARK, *lines]))
    assert list(services.logs(records.load("good"), follow=False)) == [*one[:2], *two, one[2]]


@pytest.mark.usefixtures("dashboard")
def test_log_of_a_service_has_what_its_replicas_print_and_no_other_process(code):
    services.deploy(service(code, "good"))
    folder = logs_folder()
    record = "INFO 2026-11-28 12:49:41,000 good_Model one -- GET / 200"
    texts = {
        "worker-a-01-1.out": ":job_id:01\n:actor_name:ServeReplica:good:Model\nprinted\nunfinished",
        "worker-a-01-1.err": f":job_id:01\n:actor_name:ServeReplica:good:Model\n{record}\nwarned \xff\n",
        "worker-b-01-2.out": ":actor_name:ServeReplica:good-2:Model\nof another service\n",
        "worker-c-02-3.out": ":job_id:02\nof a job\n",
        "worker-d-01-4.err": ":job_id:01\n",
    }
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode("latin-1"))
    assert list(services.logs(records.load("good"), follow=False)) == [record, "warned \ufffd", "printed", "unfinished"]


@pytest.mark.usefixtures("dashboard")
def test_log_of_a_service_ends_with_standard_output_of_the_replica_that_wrote_last_and_begins_with_full_files(code):
    services.deploy(service(code, "good"))
    folder = logs_folder()
    texts = {
        "b-01-2.out": f"{MARK}\none",
        "a-01-1.out.2": f"{MARK}\ntwo",
        "a-01-1.out.1": "three",
        "a-01-1.out": "four",
    }
    for second, (name, text) in enumerate(texts.items()):
        (folder / f"worker-{name}").write_text(f"{text}\n")
        os.utime(folder / f"worker-{name}", (second, second))
    assert list(services.logs(records.load("good"), follow=False)) == ["one", "two", "three", "four"]


@pytest.mark.usefixtures("dashboard")
def test_followed_log_of_a_service_has_prints_of_a_worker_that_became_its_replica(code, monkeypatch):
    services.deploy(service(code, "good"))
    out = logs_folder() / "worker-a-01-1.out"
    out.write_text(":job_id:01\n")

    def seen():
        yield Status("good", "service", "PENDING")
        out.write_text(":job_id:01\n:actor_name:ServeReplica:good:Model\nprinted\n")
        yield Status("good", "service", "RUNNING")
        yield Status("good", "service", "STOPPED")

    states = seen()
    monkeypatch.setattr(services, "status", lambda _: next(states))
    assert list(services.logs(records.load("good"), follow=True)) == ["printed"]


@pytest.mark.usefixtures("dashboard")
def test_followed_log_of_a_service_ends_with_its_head_and_with_its_record(code):
    services.deploy(service(code, "good"))
    record = records.load("good")
    records.save(replace(record, head="another"))
    assert list(services.logs(record, follow=True)) == []
    records.remove("good")
    assert list(services.logs(record, follow=True)) == []


def test_service_is_not_deployed_where_another_s_record_cannot_be_read(dashboard, code):
    services.deploy(service(code, "good"))
    (records.folder("good") / "record.json").write_text("{")
    with pytest.raises(records.Unreadable, match="raykube job delete good"):
        services.deploy(service(code, "other"))
    assert dashboard == [["good"]]
