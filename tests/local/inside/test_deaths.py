"""What is left of a run whose processes are killed: nothing that keeps another from running."""

import os
import signal
import threading

import psutil
import pytest
import ray

import raykube
from raykube import wire
from raykube.errors import RunFailed
from tests.basics import until
from tests.local.inside.support import MARKS, note, notes, siblings, title

pytestmark = MARKS


def wait_for_free_cpus(timeout_s):
    all_cpus = ray.cluster_resources()["CPU"]
    until(lambda: ray.available_resources().get("CPU", 0) == all_cpus, "all CPUs are free", timeout_s)


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
    wait_for_free_cpus(10)
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
    wait_for_free_cpus(20)
