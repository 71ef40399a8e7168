"""What Ray's head answers, and who is asked: a server that plays a head."""

import contextlib
import socket
import traceback

import pytest

from raykube.backends.rayapi import RayApi
from raykube.errors import BackendError, Conflict, Unreachable
from tests.servers import Quiet, serving

TAKEN = """Traceback (most recent call last):
  File "/ray/dashboard/modules/job/job_head.py", line 394, in submit_job
    resp = await job_agent_client.submit_job_internal(submit_request)
RuntimeError: Request failed with status code 500: Traceback (most recent call last):
  File "/ray/dashboard/modules/job/job_manager.py", line 482, in submit_job
    raise ValueError(
ValueError: Job with submission_id a-n-1 already exists. Please use a different submission_id.
."""
BUSY = "No available agent to submit job, please try again later."


class Head(Quiet):
    """Has a version, and answers every job with the words of the server's `words`, as Ray does: 500 and plain text."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        self.answer(200, {"ray_version": "2.60.0"})

    def do_POST(self):  # noqa: N802
        self.body()
        self.send_response(500)
        self.send_header("content-length", str(len(self.server.words)))
        self.end_headers()
        self.wfile.write(self.server.words)


@contextlib.contextmanager
def reached(server, token="t0ken"):
    """Give the API of that head, and close its connections after."""
    api = RayApi.at(f"http://127.0.0.1:{server.server_port}", token)
    with contextlib.closing(api._http):
        yield api


def test_head_of_this_machine_is_reached_and_its_token_kept_from_a_proxy_for_the_internet(monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving(Head) as server, socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # taken, and not listened on
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{nobody.getsockname()[1]}")
        with reached(server) as api:
            assert api.version() == {"ray_version": "2.60.0"}


@pytest.mark.parametrize(("words", "kind"), [(TAKEN, Conflict), (BUSY, Unreachable)])
def test_job_that_ray_answers_with_500_is_there_already_or_to_be_sent_again(words, kind):
    with serving(Head) as server:
        server.words = words.encode()
        with reached(server) as api, pytest.raises(kind):
            api.submit({"submission_id": "a-n-1"})


def test_header_that_cannot_be_sent_is_no_silence_of_the_head_and_is_not_shown():
    refused = pytest.raises(BackendError, match="could not be sent")
    with serving(Head) as server, reached(server, "SECRET\nline") as api, refused as told:
        api.version()
    assert not isinstance(told.value, Unreachable)
    assert "SECRET" not in "".join(traceback.format_exception(told.value))
