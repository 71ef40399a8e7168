"""What the tests of the inside plane share."""

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from raykube import wire

# Ray, MLflow and their dependencies warn of each other's deprecations; `error` is for our own warnings.
MARKS = [pytest.mark.local, pytest.mark.filterwarnings("ignore")]


@dataclass(frozen=True)
class Here:
    """Where one test's run keeps its files."""

    storage: Path
    run: str

    @property
    def folder(self):
        return self.storage / self.run

    def rows(self, stage="train-1"):
        return wire.Result("train", self.run, str(self.folder / stage)).history()


def title(process):
    """Return the words that a list of processes shows, "" of an ended one; Ray shows an actor's class and method."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def siblings():
    """Return the processes that Ray runs on this node beside this one."""
    return psutil.Process().parent().children()


def note(path, **facts):
    """Append facts to a file that the test reads, from whatever process this runs in."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, (json.dumps(facts) + "\n").encode())
    os.close(handle)


def notes(path):
    """Return the facts that were noted, in order."""
    return list(wire.read_rows(Path(path)))
