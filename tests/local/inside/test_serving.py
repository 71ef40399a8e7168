import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch

from raykube import wire
from raykube.inside import checkpoints, serving
from tests.local.inside.support import MARKS

pytestmark = MARKS


def load(checkpoint):
    return checkpoints.load(checkpoint)["factor"]


def predict(factor, instances):
    """Return each number times the factor, and the size of the batch that it was computed in."""
    return [{"value": float(torch.tensor(instance) * factor), "batch": len(instances)} for instance in instances]


app = serving.application(load, predict)


@pytest.fixture(scope="module")
def url(request, tmp_path_factory):
    """Serve the model of a finished run and return its address."""
    request.getfixturevalue("own_ray")
    from ray import serve

    storage = tmp_path_factory.mktemp("served")
    checkpoints.save({"factor": 3.0}, storage / "demo" / "checkpoint_1")
    result = wire.Result("train", "demo", str(storage / "demo"), checkpoint=str(storage / "demo" / "checkpoint_1"))
    (storage / "demo" / wire.RESULT_FILE).write_text(result.to_json())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv(wire.STORAGE, str(storage))
        serve.run(app({"model": "run:demo", "max_batch_size": 8, "batch_wait_timeout_s": 0.2}))
    yield f"http://127.0.0.1:{port}/"
    serve.shutdown()


def post(url, body):
    return httpx.post(url, json=body, timeout=30)


def test_app_predicts_each_instance(url):
    answer = post(url, {"instances": [1, 2.5]}).json()
    assert [one["value"] for one in answer["predictions"]] == [3.0, 7.5]


def test_app_gathers_instances_of_several_requests(url):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: post(url, {"instances": [n]}).json(), range(8)))
    assert [answer["predictions"][0]["value"] for answer in answers] == [3.0 * n for n in range(8)]
    assert max(answer["predictions"][0]["batch"] for answer in answers) > 1


def test_app_says_which_model_it_serves(url):
    assert httpx.get(url).json()["model"].endswith("demo/checkpoint_1")


def test_bad_instance_gets_400_with_the_reason(url):
    answer = post(url, {"instances": [1, "x"]})
    assert answer.status_code == 400
    assert "instances[1]" in answer.json()["error"]


def test_instance_that_the_model_fails_on_gets_500_with_the_reason_and_spoils_no_other(url):
    with ThreadPoolExecutor(2) as pool:
        wrong, right = pool.map(lambda instance: post(url, {"instances": [instance]}), [{"a": 1}, 1])
    assert (wrong.status_code, wrong.json()) == (
        500,
        {"error": "instances[0]: RuntimeError: Could not infer dtype of dict"},
    )
    assert (right.status_code, right.json()["predictions"][0]["value"]) == (200, 3.0)


def test_number_that_json_has_not_is_answered_as_null(url):
    answer = post(url, {"instances": [1e39]})
    assert (answer.status_code, answer.json()["predictions"][0]["value"]) == (200, None)


def test_body_without_instances_gets_400(url):
    assert post(url, {"inputs": [1]}).status_code == 400
