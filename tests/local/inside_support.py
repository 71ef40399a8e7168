"""What the tests of the inside plane share: one real Ray of their own, and a fresh place for each run."""

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

from raykube import wire
from raykube.inside.place import Place

# Ray, MLflow and their dependencies warn of each other's deprecations; `error` is for our own warnings.
MARKS = [pytest.mark.local, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="session")
def own_ray(tmp_path_factory):
    """Hold one embedded Ray with two CPUs for all tests."""
    place = Place("tests", str(tmp_path_factory.mktemp("own-ray")))
    with place.connect():
        yield


@dataclass(frozen=True)
class Here:
    """Where one test's run keeps its files."""

    storage: Path
    run: str

    @property
    def folder(self):
        return self.storage / self.run

    def rows(self, stage="train-1"):
        return list(wire.read_rows(self.folder / stage / wire.METRICS_FILE))


@pytest.fixture
def here(request, tmp_path, monkeypatch):
    """Set the environment of a fresh run with two workers and no tracking."""
    request.getfixturevalue("own_ray")
    # MLflow sets it in the process that loads a model, as a test of the one before may have done.
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = f"test-{uuid.uuid4().hex[:8]}"
    for name, value in {
        wire.RUN_NAME: run,
        wire.STORAGE: str(tmp_path),
        wire.WORKERS: "2",
        wire.TRACKING: "off",
    }.items():
        monkeypatch.setenv(name, value)
    return Here(tmp_path, run)


def note(path, **facts):
    """Append facts to a file that the test reads, from whatever process this runs in."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, (json.dumps(facts) + "\n").encode())
    os.close(handle)


def notes(path):
    """Return the facts that were noted, in order."""
    return list(wire.read_rows(Path(path)))
