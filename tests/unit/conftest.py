"""A home of its own for a test, with a head, a run or code in it: what tests of the backend of this machine share."""

import os
from dataclasses import replace

import pytest

from raykube.backends.local import head, records, starting
from tests.servers import serving
from tests.unit.heads import Dashboard


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Give the test a home of its own."""
    monkeypatch.setenv("RAYKUBE_HOME", str(tmp_path / "home"))
    records.ensure_home()
    return tmp_path / "home"


@pytest.fixture
def running(home):
    """Return a head of which only the files are there."""
    session = home / "ray" / "session"
    (session / "logs").mkdir(parents=True)
    return head.Head(
        id="h",
        keeper_pid=os.getpid(),
        keeper_born="",
        ray_pid=os.getpid(),
        ray_born="",
        address="http://127.0.0.1:1",
        folder=str(session.parent),
        session_dir=str(session),
        serve_port=1,
        python="python",
        started=0.0,
        host=head.here(),
    )


@pytest.fixture
def record(home):
    """Return the record of a run that was submitted long ago, with a retry."""
    made = records.Record(
        name="a",
        kind="job",
        plan_hash="h",
        plan_yaml="",
        body={"runtime_env": {}},
        storage=str(home / "runs"),
        submitted=1.0,
        nonce="n",
        head="h",
        max_retries=1,
        pending_timeout_s=900,
    )
    records.save(made)
    return made


@pytest.fixture
def code(tmp_path):
    """Return a working directory with a script."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "hello.py").write_text("print('hello')\n")
    return folder


@pytest.fixture
def answering(running, monkeypatch):
    """Run such a head, and give its server."""
    monkeypatch.setattr(starting, "retire", lambda _: pytest.fail("this head is not ours to end"))
    head.home().mkdir()
    with serving(Dashboard) as server:
        server.applications, server.attempts = {}, []
        ours = dict.fromkeys(("keeper_born", "ray_born"), head.born(os.getpid()))
        head.write_state(replace(running, address=f"http://127.0.0.1:{server.server_port}", **ours))
        yield server


@pytest.fixture
def dashboard(answering):
    """Run such a head, and give what it was asked: jobs, and configurations as names of their applications."""
    return answering.asked
