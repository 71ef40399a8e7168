"""One real Ray head for all local tests, with a home of its own."""

import os
import tempfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def raykube_home():
    """Give the session a folder of its own for raykube's state, and end the head that the tests left warm."""
    from raykube.backends.local import head, starting

    with tempfile.TemporaryDirectory(prefix="raykube-tests-") as folder:
        os.environ["RAYKUBE_HOME"] = folder
        try:
            yield Path(folder)
        finally:
            running = head.current()
            if running:
                starting.retire(running)
            del os.environ["RAYKUBE_HOME"]
