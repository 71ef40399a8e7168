"""What is left of a run whose processes are killed: nothing that keeps another from running."""

import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import ray
from ray import tune
from ray._common.utils import get_system_memory
from ray._private.utils import get_used_memory
from ray.exceptions import OutOfMemoryError, RayActorError

import raykube
from raykube import wire
from raykube.errors import RunFailed
from raykube.inside.deaths import MemoryKill
from tests.local.inside_support import MARKS, here, note, notes, own_ray  # noqa: F401 # fixtures

pytestmark = MARKS
#: What a sweep of one worker takes, and somewhat more.
ROOM = 4 * 2**30


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
    if "run_train_fn" in title(os.getpid()):
        note(lives, pid=os.getpid())
        os.kill(os.getpid(), signal.SIGKILL)


def title(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")


def training():
    raykube.report({"loss": 0.0})


def test_worker_killed_at_its_start_is_replaced_as_often_as_said_and_leaves_no_cpu_taken(here, monkeypatch):  # noqa: F811
    monkeypatch.setenv(wire.WORKERS, "1")
    monkeypatch.setenv(wire.MAX_FAILURES, "1")
    lives = here.storage / "lives"
    with pytest.raises(RunFailed, match="at its start") as caught:
        raykube.train(training, {"bomb": Bomb(lives)})
    assert caught.value.reason == "WorkerDied"
    assert len(notes(lives)) == 2
    assert cpus_get_free(10)
    assert "at its start" in wire.trouble((here.folder / wire.TROUBLE_FILE).read_text(), 1)


def fatal():
    """Kill the controller of this training, and before it the actor that would clean up after it."""
    for name in ("PlacementGroupCleaner", "TrainController"):
        for pid in siblings():
            if name in title(pid):
                os.kill(pid, signal.SIGKILL)
    threading.Event().wait(60)


def siblings():
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            text = path.read_text()
        except OSError:
            continue
        if re.search(rf"^PPid:\s+{os.getppid()}$", text, re.MULTILINE):
            yield int(path.parent.name)


@pytest.mark.usefixtures("here")
def test_killed_controller_is_named_and_leaves_no_cpu_taken(monkeypatch):
    monkeypatch.setenv(wire.WORKERS, "1")
    with pytest.raises(RunFailed) as caught:
        raykube.train(fatal)
    assert caught.value.reason == "ControllerDied"
    assert cpus_get_free(20)


def test_memory_kill_is_the_death_of_an_actor_and_travels():
    words = "1 worker(s) were killed due to the node running low on memory."
    kill = pickle.loads(pickle.dumps(MemoryKill(words)))
    assert isinstance(kill, OutOfMemoryError)
    assert isinstance(kill, RayActorError)
    assert (str(kill), kill.preempted) == (words, False)


def greedy(config):
    """Take memory until the memory monitor objects, in the first two lives."""
    note(config["lives"], pid=os.getpid())
    taken = []
    while len(notes(config["lives"])) <= 2:
        taken.append(b"x" * 2**27)
        threading.Event().wait(0.02)  # the monitor looks ten times a second
    raykube.report({"score": config["x"]})


def starved_sweep(lives):
    raykube.sweep(greedy, {"x": tune.uniform(0, 1), "lives": lives}, trials=2, metric="score", mode="max")


def test_sweep_goes_on_when_the_memory_monitor_kills_the_workers_of_a_trial(tmp_path):
    total, used = get_system_memory(), get_used_memory()
    if total - used < 2 * ROOM:
        pytest.skip(f"needs {2 * ROOM / 1e9:g} GB of free memory")
    code = f"from tests.local.test_deaths import starved_sweep; starved_sweep({str(tmp_path / 'lives')!r})"
    environ = {
        **os.environ,
        wire.STORAGE: str(tmp_path),
        wire.RUN_NAME: "starved",
        wire.TRACKING: "off",
        wire.MAX_FAILURES: "1",
        "RAY_memory_usage_threshold": f"{(used + ROOM) / total:.3f}",
        "RAY_memory_monitor_refresh_ms": "100",
        "RAY_TMPDIR": "/tmp",
    }
    one_core = ["taskset", "--cpu-list", "0"]  # so one trial at once, which leaves nothing for the next if it leaves
    command = [*one_core, sys.executable, "-c", code]
    subprocess.run(command, env=environ, timeout=180, check=True)
    result = wire.Result.from_json((tmp_path / "starved" / wire.RESULT_FILE).read_text())
    killed, well = sorted(result.trials, key=lambda trial: not trial["error"])
    assert "worker 0: Ray's memory monitor killed it" in killed["error"]
    assert well["error"] is None
    assert len(notes(tmp_path / "lives")) == 3
