"""What is left of a run whose processes are killed: nothing that keeps another from running."""

import os
import signal
import threading
import time

import psutil
import pytest
import ray

import raykube
from raykube import wire
from raykube.errors import RunFailed
from tests.local.inside.support import MARKS, note, notes, siblings, title

pytestmark = MARKS


def cpus_get_free(timeout_s):
    deadline = time.monotonic() + timeout_s
    while (free := ray.available_resources().get("CPU", 0)) < ray.cluster_resources()["CPU"]:
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.2)
    return bool(free)


class Bomb:
    """Kills the process that reads it, where a worker is handed its loop: after its start, before its training."""

    def __init__(self, lives):
        self.lives = lives

    def __reduce__(self):
        return explode, (self.lives,)


def explode(lives):
    if "run_train_fn" in title(psutil.Process()):
        note(lives, pid=os.getpid())
        os.kill(os.getpid(), signal.SIGKILL)


def training(_config):
    raykube.report({"loss": 0.0})


def test_worker_killed_at_its_start_is_replaced_as_often_as_said_and_leaves_no_cpu_taken(here, monkeypatch):
    monkeypatch.setenv(wire.MAX_FAILURES, "1")
    lives = here.storage / "lives"
    with pytest.raises(RunFailed, match="at its start") as caught:
        raykube.train(training, {"bomb": Bomb(lives)})
    assert caught.value.reason == "WorkerDied"
    assert len(notes(lives)) == 2
    assert cpus_get_free(10)
    assert "at its start" in wire.trouble((here.folder / wire.TROUBLE_FILE).read_text(), 1)


def fatal():
    """Kill the controller of this training."""
    for each in siblings():
        if "TrainController" in title(each):
            each.kill()
    threading.Event().wait(60)


@pytest.mark.usefixtures("here")
def test_killed_controller_is_named_and_leaves_no_cpu_taken():
    with pytest.raises(RunFailed) as caught:
        raykube.train(fatal)
    assert caught.value.reason == "ControllerDied"
    assert cpus_get_free(20)
