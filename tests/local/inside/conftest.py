"""One real Ray of their own for the tests of the inside plane, and a fresh place for each run."""

import uuid

import pytest

from raykube import wire
from raykube.inside.joining import connected
from tests.local.inside.support import Here


@pytest.fixture(scope="package")
def own_ray():
    """Hold one embedded Ray with two CPUs for all tests here; it ends with them, and with it what it set."""
    with connected():
        yield


@pytest.fixture
def here(request, tmp_path, monkeypatch):
    """Set the environment of a fresh run with no tracking, and with one worker: two take twice as long on two cores."""
    request.getfixturevalue("own_ray")
    # MLflow sets it in the process that loads a model, as a test of the one before may have done.
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = f"test-{uuid.uuid4().hex[:8]}"
    for name, value in {
        wire.RUN_NAME: run,
        wire.STORAGE: str(tmp_path),
        wire.WORKERS: "1",
        wire.TRACKING: "off",
    }.items():
        monkeypatch.setenv(name, value)
    return Here(tmp_path, run)
