"""The process that looks after the Ray head of this machine and its runs."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from raykube.backends import Status
from raykube.backends.local import head, keeper, lifecycle, observe, records
from raykube.errors import Unreachable
from tests.servers import Quiet, serving
from tests.unit.heads import Learning, Ray, sent_anew


@pytest.mark.usefixtures("home")
def test_jobs_of_the_head_run_the_python_that_started_it_and_its_agent_takes_no_fixed_port(monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin")
    assert keeper.ray_environ("h1")["PATH"] == os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin"])
    assert "--dashboard-agent-listen-port=0" in keeper.ray_command(8265, "/tmp/x")


def test_retry_whose_sending_failed_is_sent_again_and_has_waited_since_it_was_noted(record, running):
    records.set_attempt("a", 2)
    noted = int(time.time()) - 60
    os.utime(records.folder("a") / "attempt", (noted, noted))
    ray = Ray(takes=False)
    for _ in range(2):
        with pytest.raises(Unreachable):
            keeper.look_after(record, running, ray)
    assert ray.asked == ["submit a-n-2"] * 2
    assert (records.final("a"), records.noted(record)) == (None, noted)


@pytest.mark.parametrize("limit", [None, 1])
def test_run_that_is_to_end_while_it_is_being_sent_is_stopped_in_ray(record, running, monkeypatch, limit):
    def end():
        if limit is None:
            records.request_stop("a")
        keeper.look_after(late, running, ray)  # Ray does not know it yet

    late, ray = replace(record, submitted=time.time() - 2, timeout_s=limit), Learning(end)
    records.save(late)
    monkeypatch.setattr(lifecycle, "STOPS_WITHIN_S", -1)  # the POST takes longer than that
    records.set_attempt("a", 1)
    observe.send(late, 1, running, ray)
    keeper.look_after(late, running, ray)
    assert (ray.asked, records.final("a")) == (["submit a-n-1", "stop a-n-1"], None)
    keeper.look_after(late, running, ray)
    assert records.final("a").state == ("FAILED" if limit else "STOPPED")


@pytest.mark.parametrize(("first", "state"), [(2, "FAILED"), (1, "STOPPED"), (1, "FAILED")])
def test_keeper_leaves_alone_what_was_sent_anew_since_it_read_the_record(record, running, first, state):
    ray = Learning(a_n_1=state)
    sent_anew(record, first)
    keeper.look_after(record, running, ray)
    assert (ray.asked, records.final("a"), records.attempt("a")) == ([], None, first)


@pytest.mark.usefixtures("record")
def test_keeper_goes_on_when_it_cannot_even_log(running):
    head.home().mkdir()
    head.token()
    head.write_state(running)
    tick = "from raykube.backends.local import head, keeper; running = head.read_state()\n"
    tick += "keeper._tick(running, head.api(running)); print('went on')"
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", tick]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, check=False)
    assert done.stdout == "went on\n"


class Empty(Quiet):
    """A head that has no job yet, and takes each."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        self.answer(404, {})

    def do_POST(self):  # noqa: N802
        body = json.loads(self.body())
        self.server.asked.append(body["submission_id"])
        self.answer(200, {})


def test_run_that_cannot_be_sent_is_refused_and_the_keeper_looks_after_the_next(record, running):
    head.home().mkdir()
    for name, text in {"a": "caf\udce9", "b": "caf"}.items():
        records.save(replace(record, name=name, pending_timeout_s=None, body={"entrypoint": text, "runtime_env": {}}))
    with serving(Empty) as server:
        keeper._tick(running, head.api(replace(running, address=f"http://127.0.0.1:{server.server_port}")))
    assert (records.final("a").failure.reason, records.final("b")) == ("Refused", None)
    assert server.asked == ["b-n-1"]


def test_stopped_run_ends_once_ray_has_stopped_it_with_all_that_it_printed(record, running):
    ray, log = Ray({"status": "RUNNING"}), running.driver_log("a-n-1")
    log.write_text("started\n")
    records.request_stop("a")
    keeper.look_after(record, running, ray)
    assert (ray.asked, records.final("a")) == (["stop a-n-1"], None)
    log.write_text("started\nlast words\n")
    ray.details = {"status": "STOPPED"}
    keeper.look_after(record, running, ray)
    assert records.final("a").state == "STOPPED"
    assert observe.log_path(record, 1, None).read_text() == "started\nlast words\n"


def test_stop_that_ray_does_not_heed_is_timed_from_when_ray_was_first_asked(record, running):
    ray, before = Ray({"status": "PENDING"}), time.time()
    records.request_stop("a")
    keeper.look_after(record, running, ray)
    since = records.ending("a").since
    assert since is not None
    assert since >= before
    keeper.look_after(record, running, ray)
    assert (records.ending("a").since, records.final("a")) == (since, None)
    records.set_ending("a", records.Ending(since=since - 60))
    keeper.look_after(record, running, ray)
    assert records.final("a").state == "STOPPED"


class Listed(Quiet):
    """A head that lists jobs, of whoever sent them, in the states of its server's; with None it is silent."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        states = self.server.states
        self.answer(503 if states is None else 200, [{"status": state} for state in states or ()])


def unused_for(seconds):
    """Have the head been used last so many seconds ago."""
    os.utime(head.home() / "used", (time.time() - seconds,) * 2)


@pytest.fixture
def unused(running, monkeypatch):
    """Give a head that nobody has used for a minute, which is too long, and its server."""
    monkeypatch.setenv("RAYKUBE_IDLE_TIMEOUT_S", "1")
    head.home().mkdir()
    head.touch()
    unused_for(60)
    with serving(Listed) as server:
        server.states = ["SUCCEEDED"]
        yield replace(running, address=f"http://127.0.0.1:{server.server_port}"), server


@pytest.mark.parametrize(
    ("states", "idle"),
    [([], True), (["SUCCEEDED"], True), (["PENDING"], False), (["SUCCEEDED", "RUNNING"], False), (None, False)],
)
def test_head_is_idle_once_it_is_known_that_nothing_runs_on_it_whoever_sent_it(unused, states, idle):
    found, server = unused
    server.states = states
    assert keeper._is_idle(found, head.api(found)) is idle


@pytest.mark.parametrize("text", [None, "{"])
def test_head_is_not_idle_while_a_run_has_not_ended_or_cannot_be_read(unused, record, text):
    found, _ = unused
    if text:
        records.set_final(Status(record.name, "job", "SUCCEEDED"))
        (records.folder(record.name) / "record.json").write_text(text)
    assert not keeper._is_idle(found, head.api(found))


def test_head_is_idle_once_the_last_run_has_ended(unused, record):
    found, _ = unused
    records.set_final(Status(record.name, "job", "SUCCEEDED"))
    assert keeper._is_idle(found, head.api(found))


@pytest.mark.parametrize(("seconds", "idle"), [(60, False), (590, False), (601, True)])
def test_head_that_has_given_no_answer_for_long_is_ended_as_idle(unused, seconds, idle):
    found, server = unused
    server.states = None
    unused_for(seconds)
    assert keeper._is_idle(found, head.api(found)) is idle


def test_head_is_used_while_anything_runs_on_it(unused):
    found, server = unused
    server.states = ["RUNNING"]
    assert not keeper._is_idle(found, head.api(found))
    assert time.time() - (head.home() / "used").stat().st_mtime < 30


def test_head_that_was_used_a_moment_ago_is_not_idle(unused):
    found, _ = unused
    head.touch()
    assert not keeper._is_idle(found, head.api(found))


def test_head_is_idle_where_its_folder_was_removed(unused):
    found, server = unused
    server.states = ["RUNNING"]
    (head.home() / "used").unlink()
    assert keeper._is_idle(found, head.api(found))


def test_deadline_is_the_reason_whichever_keeper_sees_the_run_stopped_for_it(record, running):
    late = replace(record, timeout_s=1)
    ray = Ray({"status": "RUNNING"})
    keeper.look_after(late, running, ray)
    assert (ray.asked, records.final("a")) == (["stop a-n-1"], None)
    ray.details = {"status": "STOPPED"}
    keeper.look_after(late, running, ray)  # nothing but the record is left of the first look
    assert (records.final("a").state, records.final("a").failure.reason) == ("FAILED", "DeadlineExceeded")


def test_time_that_ray_has_to_stop_a_run_counts_from_when_it_was_first_asked(record, running):
    asked = records.Ending(since=time.time() - 5)
    records.set_ending("a", asked)
    ray = Ray({"status": "RUNNING"})
    keeper.look_after(record, running, ray)
    assert (ray.asked, records.ending("a")) == (["stop a-n-1"], asked)
