"""One real Ray head for all local tests, with a home of its own."""

import os
import signal
import tempfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def heeded_ctrl_c():
    """Have commands that tests start heed Ctrl-C, which shells switch off for what they run in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
