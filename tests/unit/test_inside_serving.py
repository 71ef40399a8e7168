import asyncio
import importlib
import json
import math
import re
import tempfile
import threading
import traceback
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest

from raykube import wire
from raykube.errors import ConfigError, NotFound
from raykube.inside import answers, checkpoints, serving, storage
from tests.servers import Quiet
from tests.servers import serving as serving_by
from tests.support import ROOT, run


def of(module):
    """Return a module that serving itself does without."""
    return pytest.importorskip(module)


def doubled(_model, instances):
    if any(not isinstance(instance, int) for instance in instances):
        raise ValueError("not a number")
    return [2 * instance for instance in instances]


def test_args_get_their_defaults():
    assert serving.checked({"model": "run:a"})["max_batch_size"] == 32


def test_args_name_every_problem_and_the_nearest_key():
    with pytest.raises(ConfigError) as caught:
        serving.checked({"max_batch_sise": 3, "batch_wait_timeout_s": "soon"})
    assert [problem.path for problem in caught.value.problems] == [
        "args.max_batch_sise",
        "args.model",
        "args.batch_wait_timeout_s",
    ]
    assert "max_batch_size" in str(caught.value)


def test_run_reference_is_its_best_checkpoint(tmp_path):
    folder = tmp_path / "demo"
    folder.mkdir()
    result = wire.Result("train", "demo", str(folder), checkpoint=str(folder / "checkpoint_1"))
    (folder / wire.RESULT_FILE).write_text(result.to_json())
    (folder / "checkpoint_1").mkdir()
    assert serving.resolve("run:demo", {wire.STORAGE: str(tmp_path)}) == result.checkpoint
    (folder / "checkpoint_1").rmdir()
    with pytest.raises(NotFound, match=r"the checkpoint of run:demo is gone"):
        serving.resolve("run:demo", {wire.STORAGE: str(tmp_path)})


@pytest.mark.parametrize("reference", ["run:nobody", "/no/where"])
def test_reference_to_nothing_is_refused(reference, tmp_path):
    with pytest.raises(NotFound):
        serving.resolve(reference, {wire.STORAGE: str(tmp_path)})


def test_model_behind_a_uri_leaves_no_copy(tmp_path, monkeypatch):
    (copies := tmp_path / "copies").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(copies))
    checkpoints.save({"epoch": 3}, tmp_path / "checkpoint_1")
    uri = (tmp_path / "checkpoint_1").as_uri()

    def load(folder):
        assert Path(folder).parent == copies
        return checkpoints.load(folder)

    assert serving.open_model(uri, load) == {"epoch": 3}
    monkeypatch.setattr(storage, "plain", str)  # which leaves other URIs as they are
    assert checkpoints.load(uri) == {"epoch": 3}
    assert list(copies.iterdir()) == []
    assert (tmp_path / "checkpoint_1" / checkpoints.STATE_FILE).exists()


def test_bad_instance_spoils_no_other():
    found = answers.predict_each(doubled, None, [1, "x", 3])
    assert found == [2, answers.BadInstance("ValueError: not a number"), 6]


def multiplied(_model, instances):
    if any(len(instance) != 2 for instance in instances):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 2x1)")
    return [sum(instance) for instance in instances]


def test_instance_of_a_wrong_shape_spoils_no_other_and_is_logged(caplog):
    found = answers.predict_each(multiplied, None, [[1, 2], [1, 2, 3], [3, 4]])
    wrong = answers.BadInstance("RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x3 and 2x1)", 500)
    assert found == [3, wrong, 7]
    assert "in multiplied" in caplog.text


def test_predict_must_answer_every_instance():
    asked = []

    def predict(_model, instances):
        asked.append(instances)
        return [one for one in instances if one]

    found = answers.predict_each(predict, None, [1, 0])
    assert found == [answers.BadInstance("RuntimeError: predict gave 1 predictions for 2 instances", 500)] * 2
    assert asked == [[1, 0]]


@pytest.mark.parametrize(
    ("gives", "says"),
    [
        (lambda ns: {"a": ns, "b": ns}, "predict gave one dict, not a list"),
        (lambda ns: of("pandas").DataFrame({"a": ns, "b": ns}), "predict gave one DataFrame, not a list"),
        (set, "predict gave one set"),
        (lambda _: "ab", "predict gave one str"),
        (lambda _: None, "but NoneType"),
        (sum, "but int"),
        (lambda ns: of("numpy").array(sum(ns)), "but ndarray: iteration over a 0-d array"),
    ],
)
def test_what_is_no_list_of_predictions_is_the_fault_of_predict_and_logged(caplog, gives, says):
    first, second = answers.predict_each(lambda _, instances: gives(instances), None, [1, 2])
    assert first == second
    assert (first.status, says in first.reason) == (500, True)
    assert says in caplog.text


@pytest.mark.parametrize(
    "gives",
    [
        tuple,
        lambda ns: (n for n in ns),
        lambda ns: of("numpy").array(ns),
        lambda ns: of("pandas").Series(ns, index=[7, 8]),
    ],
)
def test_list_of_predictions_has_many_forms(gives):
    assert answers.predict_each(lambda _, instances: gives(instances), None, [1, 2]) == [1, 2]


def test_generator_that_refuses_an_instance_leaves_the_others():
    found = answers.predict_each(lambda _, ns: (10 // n for n in ns), None, [5, 0])
    assert found == [2, answers.BadInstance("ZeroDivisionError: integer division or modulo by zero", 500)]


def test_predict_that_has_to_be_awaited_is_refused():
    async def later(_model, instances):
        return instances

    with pytest.raises(ConfigError, match="later is a coroutine"):
        serving.application(str, later)


def test_model_that_waits_in_vain_is_not_asked_again_for_each_instance():
    asked = []

    def predict(_model, instances):
        asked.append(instances)
        raise ConnectionError("no answer")

    found = answers.predict_each(predict, None, [1, 2])
    assert ([one.status for one in found], asked) == ([500, 500], [[1, 2]])


def test_answer_says_which_instances_failed_and_whose_fault_it_is():
    bad, worse = answers.BadInstance("ValueError: no"), answers.BadInstance("RuntimeError: oh", 500)
    assert answers.answer([1, bad]) == ({"error": "instances[1]: ValueError: no"}, 400)
    assert answers.answer([worse, bad]) == (
        {"error": "instances[0]: RuntimeError: oh; instances[1]: ValueError: no"},
        500,
    )


def test_number_that_json_has_not_is_answered_as_null():
    body, status = answers.answer([{"p": [0.5, math.nan]}, (math.inf, 1), "é"])
    assert answers.as_text(body) == '{"predictions":[{"p":[0.5,null]},[null,1],"é"]}'.encode()
    assert status == 200


def test_values_of_numpy_within_a_prediction_are_answered():
    np = of("numpy")
    found = [{"p": np.float32(0.5), "k": (np.int64(3), np.array([1, 2]))}, {"p": np.float32("nan")}]
    assert answers.reply(found) == (b'{"predictions":[{"p":0.5,"k":[3,[1,2]]},{"p":null}]}', 200)


def test_prediction_that_json_cannot_hold_is_told_and_logged(caplog):
    holds_itself = {}
    holds_itself["me"] = holds_itself
    body, status = answers.reply([1, {"p": Path("x")}, holds_itself])
    said = json.loads(body)["error"]
    assert status == 500
    assert re.search(r"instances\[1\]: .*it knows no \w*Path; instances\[2\]: .*", said)
    assert "it knows no" in caplog.text


@pytest.mark.filterwarnings("ignore")  # MLflow and its dependencies warn of each other's deprecations
def test_password_of_a_registry_that_does_not_answer_is_not_told(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    environ = {"MLFLOW_TRACKING_URI": "http://jane:hush@127.0.0.1:1"}
    with pytest.raises(NotFound, match="no model models:/digits@best") as told:
        serving.resolve("models:/digits@best", environ)
    assert "127.0.0.1" in told.value.why
    assert "hush" not in "".join(traceback.format_exception(told.value))
    assert not list(tmp_path.iterdir())  # MLflow makes a store in the working directory if it is told of none


class Registry(Quiet):
    """Answers as MLflow's server does, of a model with one version."""

    def do_GET(self):  # noqa: N802 - the name that http.server calls
        asked = parse_qs(urlsplit(self.path).query)
        if asked == {"name": ["digits"], "version": ["1"]}:
            self.answer(200, {"model_version": {"name": "digits", "version": "1"}})
        else:
            missing = f"Model Version (name={asked['name'][0]}, version={asked['version'][0]}) not found"
            self.answer(404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": missing})


@pytest.mark.filterwarnings("ignore")
def test_version_that_the_registry_has_not_is_refused():
    with serving_by(Registry) as server:
        environ = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{server.server_port}"}
        assert serving.resolve("models:/digits/1", environ) == "models:/digits/1"
        with pytest.raises(NotFound, match="no model models:/digits/9") as told:
            serving.resolve("models:/digits/9", environ)
    assert "version=9) not found" in told.value.why


@pytest.mark.parametrize("body", [b"", b"[]", b'{"instances": 3}', b'{"instances": [], "more": 1}'])
def test_body_that_is_not_instances_is_refused(body):
    with pytest.raises(ValueError, match="body"):
        answers.read_instances(body)


def test_body_holds_instances():
    assert answers.read_instances(json.dumps({"instances": [1, 2]}).encode()) == [1, 2]


def test_parts_of_several_requests_are_predicted_together_and_told_apart():
    asked = []

    def predict(model, instances):
        asked.append(list(instances))
        return doubled(model, instances)

    found = answers.predict_parts(predict, None, [[1, 2], [], [3]])
    assert (found, asked) == ([[2, 4], [], [6]], [[1, 2, 3]])
    refused = answers.BadInstance("ValueError: not a number")
    assert answers.predict_parts(doubled, None, [["x"], [3]]) == [[refused], [6]]


@pytest.fixture
def replica(monkeypatch):
    """Return the module of replicas, as in a replica's process."""
    serve = of("ray.serve")
    config = SimpleNamespace(max_ongoing_requests=100)
    monkeypatch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(_deployment_config=config))
    # A batch belongs to the event loop that it was made in.
    found = importlib.reload(importlib.import_module("raykube.inside.replica"))
    yield found
    # When a queue of Ray's that has a task is collected, in whatever thread and test, it asks for an event loop.
    # In a thread that has none, Ray makes one, which nobody closes.
    if queue := found.Replica._together._get_max_batch_size.__self__._queue:
        queue._handle_batch_task = None


def asked_of(replica, method, body=b""):
    """Return what a replica answers a request."""

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    return replica(of("starlette.requests").Request({"type": "http", "method": method, "headers": []}, receive))


def posted(replica, instances):
    return asked_of(replica, "POST", json.dumps({"instances": instances}).encode())


def test_request_of_many_instances_lets_others_in_between(replica, tmp_path):
    asked, begun, goes_on = [], threading.Event(), threading.Event()

    def predict(model, instances):
        asked.append(list(instances))
        begun.set()
        assert goes_on.wait(30)
        return doubled(model, instances)

    async def both():
        one = replica.Replica(str, predict, str(tmp_path), 2, 0.005)
        large = asyncio.create_task(posted(one, list(range(7))))
        await asyncio.to_thread(begun.wait, 30)
        small = asyncio.create_task(posted(one, [9]))
        await asyncio.sleep(0)  # it comes to the batch
        goes_on.set()
        return [(await each).body for each in (large, small)]

    assert asyncio.run(both()) == [b'{"predictions":[0,2,4,6,8,10,12]}', b'{"predictions":[18]}']
    assert asked == [[0, 1], [9], [2, 3], [4, 5], [6]]


def test_requests_of_few_instances_share_a_batch_and_its_bad_instance_spoils_its_own(replica, tmp_path):
    asked = []

    def predict(model, instances):
        asked.append(list(instances))
        return doubled(model, instances)

    async def all_of_them():
        one = replica.Replica(str, predict, str(tmp_path), 4, 30)
        found = await asyncio.gather(*(posted(one, instances) for instances in ([1, 2], ["x"], [3])))
        return [(each.status_code, each.body) for each in found]

    assert asyncio.run(all_of_them()) == [
        (200, b'{"predictions":[2,4]}'),
        (400, b'{"error":"instances[0]: ValueError: not a number"}'),
        (200, b'{"predictions":[6]}'),
    ]
    assert asked[0] == [1, 2, "x", 3]


def test_probe_by_head_is_answered_as_a_look(replica, tmp_path):
    one = replica.Replica(str, doubled, str(tmp_path), 2, 0.005)
    head, look, other = (asyncio.run(asked_of(one, method)) for method in ("HEAD", "GET", "PUT"))
    assert (head.status_code, head.headers) == (200, look.headers)
    assert other.status_code == 405


def test_script_of_an_application_asks_for_the_model_that_it_is_to_serve():
    pytest.importorskip("torch")
    done = run("python", "-m", "jobs.digits_app", cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: digits_app.py" in done.stderr
    assert "--model" in done.stderr.splitlines()[-1]
