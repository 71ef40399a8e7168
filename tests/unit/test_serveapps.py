"""What Serve tells of applications that do not come up, on answers that a real one gave."""

import copy
import json
from pathlib import Path

import pytest

from raykube.backends import serveapps

RECORDED = json.loads((Path(__file__).parent / "recorded" / "serve.json").read_text())


def recorded(name):
    return copy.deepcopy(RECORDED[name])


@pytest.mark.parametrize(
    ("name", "reason", "message"),
    [
        ("failed", "DeployFailed", "RuntimeError: weights do not fit"),
        ("retrying", "ReplicaFailed", "RuntimeError: weights do not fit"),
        ("unbuilt", "DeployFailed", "ValueError: args no"),
    ],
)
def test_cause_is_the_last_line_of_what_the_replica_said(name, reason, message):
    found = serveapps.failure("echo", recorded(name))
    assert (found.reason, found.message) == (reason, message)
    assert 'own.py", line' in found.tail[-2]
    assert not any("\x1b" in line for line in found.tail)
    assert found.next_step == "correct the application as the message says and deploy again"


def test_cause_of_several_lines_is_whole():
    said = "raykube.errors.NotFound: no checkpoint at /x\n  why:  because\n  next: write run:NAME"
    assert serveapps.failure("echo", recorded("gone")).message == said


def test_cause_whose_lines_are_not_indented_is_whole():
    apps = recorded("failed")
    words = "OSError: org/m is not a local folder\nIf it is private, pass a token"
    (app,) = apps.values()
    (deployment,) = app["deployments"].values()
    deployment["message"] = deployment["message"].replace("RuntimeError: weights do not fit", words)
    assert serveapps.failure("echo", apps).message == words


def test_application_that_gets_more_replicas_has_no_fault():
    echo = {"status": "HEALTHY", "message": "Upscaling from 1 to 2 replicas."}
    assert serveapps.failure("echo", {"echo": {"status": "DEPLOYING", "deployments": {"Echo": echo}}}) is None


def test_application_that_was_up_and_is_unwell_is_no_failed_deployment_and_has_logs():
    echo = {"status": "UNHEALTHY", "message": "A replica's health check failed."}
    app = {"status": "UNHEALTHY", "message": "The deployments ['Echo'] are UNHEALTHY.", "deployments": {"Echo": echo}}
    found = serveapps.failure("a", {"a": app})
    assert (found.message, found.next_step) == ("A replica's health check failed.", "raykube service logs a")
    assert found.reason == "ReplicaUnhealthy"
    assert serveapps.failure("a", {"a": app, **recorded("failed")}).reason == "DeployFailed"


def test_deployment_that_is_not_there_is_told_with_the_option_that_names_another():
    found = serveapps.failure("echo", recorded("unknown"))
    assert found.message == "ValueError: Deployment 'Model' does not exist. Available: ['Echo']"
    assert found.next_step.startswith("say whose replicas are set: --deployment Echo;")


@pytest.mark.parametrize(
    ("name", "expected"), [("update", True), ("gone", False), ("failed", False), ("unbuilt", False)]
)
def test_replicas_of_before_are_known_by_when_they_began(name, expected):
    app = recorded(name)["echo"]
    assert serveapps.runs_of_before(app, app["last_deployed_time_s"]) is expected
    assert not serveapps.runs_of_before(app, 0.0)


def test_update_that_failed_is_not_called_a_service_that_is_down():
    assert serveapps.failure("echo", recorded("update"), goes_on=True).reason == "UpdateFailed"


def test_update_that_failed_and_stopped_what_was_deployed_before_says_so_and_how_it_comes_back():
    lost = "what was deployed before was stopped, and comes back when its code is deployed again"
    found = serveapps.failure("echo", recorded("gone"))
    assert found.reason == "DeployFailed"
    assert found.next_step == f"correct the application as the message says and deploy again; {lost}"
    for name in ("failed", "unbuilt", "update"):
        assert lost not in serveapps.failure("echo", recorded(name)).next_step


def test_first_deployment_whose_own_words_tell_of_an_update_has_stopped_nothing():
    apps = recorded("failed")
    (deployment,) = apps["echo"]["deployments"].values()
    deployment["message"] = deployment["message"].replace("weights do not fit", "no rolling update of weights")
    assert "stopped" not in serveapps.failure("echo", apps).next_step


def unplaced(required='{"CPU": 1, "GPU": 1.0}', free='{"CPU": 2.0}'):
    """Return an application whose replica has no place, in the words of Ray 2.60."""
    words = (
        "Deployment 'Model' in application 'hello' has 1 replicas that have taken more than 30s to be scheduled. "
        "This may be due to waiting for the cluster to auto-scale or for a runtime environment to be installed. "
        f"Resources required for each replica: {required}, total resources available: {free}. "
        "Use `ray status` for more details."
    )
    deployments = {"Model": {"status": "UPDATING", "message": words}}
    return {"hello": {"status": "DEPLOYING", "message": "", "deployments": deployments}}


def test_replica_that_finds_no_place_is_told_with_what_it_lacks():
    found = serveapps.failure("hello", unplaced())
    assert (found.reason, found.message.startswith("Deployment 'Model'")) == ("ReplicaUnschedulable", True)
    assert found.next_step.startswith("the cluster does not have 1 GPU free for a replica: ask for less (--num-gpus")
    assert found.next_step.endswith("or give it more (on Kubernetes, --workers N)")


@pytest.mark.parametrize("required", ['{"CPU": 1}', '[{"GPU": 1.0}]', "UNKNOWN"])
def test_replica_that_finds_no_place_and_lacks_nothing_that_is_told_may_wait_for_packages(required):
    found = serveapps.failure("hello", unplaced(required))
    assert found.next_step.startswith("wait if its packages are being installed; else ask for less")


def test_replica_that_failed_to_start_is_told_before_one_that_finds_no_place():
    apps = unplaced() | recorded("retrying")
    assert serveapps.failure("hello", apps).reason == "ReplicaFailed"


def of_replicas(app="hello", deployment="Model", **said):
    return {"name": app, "deployments": [{"name": deployment, **said}]}


UNSAID = {"name": "hello"}


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ([of_replicas(num_replicas=2)], [of_replicas(num_replicas=2)], []),
        ([of_replicas(num_replicas=2)], [UNSAID], ["replicas 2 -> as the application says"]),
        (
            [of_replicas(autoscaling_config={"min_replicas": 1, "max_replicas": 4})],
            [of_replicas(num_replicas=1)],
            ["replicas 1..4 -> 1"],
        ),
        (
            [of_replicas(ray_actor_options={"num_gpus": 1})],
            [of_replicas(num_replicas=3)],
            ["GPUs of a replica 1 -> as the application says", "replicas as the application says -> 3"],
        ),
        (
            [of_replicas(num_replicas=2), of_replicas("bye", num_replicas=2), of_replicas("gone", num_replicas=2)],
            [of_replicas(num_replicas=2), of_replicas("bye", num_replicas=3)],
            ["replicas of bye's Model 2 -> 3"],
        ),
        ([of_replicas(ray_actor_options={"num_gpus": 1})], [of_replicas(ray_actor_options={"num_gpus": 1.0})], []),
        ([{"name": "hello", "deployments": "text"}], [UNSAID], []),
    ],
)
def test_counts_that_an_update_changes_are_told(before, after, told):
    assert [*serveapps.resized(before, after)] == told


def test_application_is_described_by_its_import_path_its_model_and_the_version_of_its_code():
    digits = {"import_path": "jobs.digits_app:app", "args": {"model": "run:digits-a1"}}
    digits["runtime_env"] = {"working_dir": "file:///etc/raykube/code/0123abcd.zip"}
    assert serveapps.described([digits]) == "jobs.digits_app:app, model run:digits-a1, code 0123abcd"
    in_image = {"import_path": "app:app", "runtime_env": {"working_dir": "/srv/app"}}
    assert serveapps.described([{"import_path": "hello:app"}, in_image]) == "hello:app; app:app, /srv/app"
