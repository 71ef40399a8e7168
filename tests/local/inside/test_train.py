import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import ray.train
import torch

import raykube
from raykube import wire
from raykube.errors import ConfigError, RunFailed
from raykube.inside import checkpoints, place, room
from tests.local.inside.support import MARKS, note, notes, siblings, title

pytestmark = MARKS
STEPS = 1000
LIST = "checkpoint_manager_snapshot.json"  # of Ray


def actors():
    """Return the classes of the actors on this node, by the titles that Ray gives to processes."""
    found = (re.match(r"ray::(\w+)", title(each)) for each in siblings())
    return sorted({each.group(1) for each in found if each})


def reporting(config):
    """Report in every way that a loop may, and return what pickle does not take."""
    rank = ray.train.get_context().get_world_rank()
    began = time.perf_counter()
    for step in range(STEPS):
        raykube.report({"step": step, "loss": torch.tensor(1.0 / (step + 1))})
    note(config["notes"], rank=rank, seconds=time.perf_counter() - began, cwd=str(Path.cwd()), actors=actors())
    for epoch, accuracy in enumerate([0.5, 0.9, 0.7]):
        raykube.report({"epoch": epoch, "accuracy": np.float32(accuracy)}, {"epoch": epoch})
        if rank == 0 and epoch == 2:  # the controller has taken the one before, and so listed the first
            os.link(Path(config["stage"], LIST), config["list"])
    folder = Path(config["notes"]).with_name(f"plain-{rank}")
    checkpoints.save({"epoch": 3}, folder)
    ray.train.report({"epoch": 3, "accuracy": np.float64(0.6)}, checkpoint=ray.train.Checkpoint(str(folder)))
    ray.train.report({"plain": np.int64(7)})
    return threading.Lock()


@pytest.fixture(scope="module")
def reported(request, tmp_path_factory):
    """Run one loop that reports in every way; return (result, its notes)."""
    request.getfixturevalue("own_ray")
    folder = tmp_path_factory.mktemp("reported")
    environ = {wire.STORAGE: str(folder), wire.WORKERS: "2", wire.TRACKING: "off", wire.RUN_NAME: "reported"}
    os.environ.update(environ)
    try:
        config = {"notes": str(folder / "notes"), "stage": str(folder / "reported" / "train-1")}
        config["list"] = str(folder / "list")
        return raykube.train(reporting, config, metric="accuracy", mode="max"), notes(folder / "notes")
    finally:
        for name in environ:
            del os.environ[name]


def test_report_does_not_wait_for_the_controller(reported):
    # Ray's own report takes one poll of the controller each: a thousand would take minutes.
    assert max(fact["seconds"] for fact in reported[1]) < 1.0


def test_history_holds_every_row_once_and_in_order(reported):
    rows = [row["metrics"] for row in reported[0].history()]
    assert [row["step"] for row in rows if "step" in row] == list(range(STEPS))
    assert [row["epoch"] for row in rows if "epoch" in row] == [0, 1, 2, 3]
    assert [row["plain"] for row in rows if "plain" in row] == [7]


def test_result_is_the_best_checkpoint_and_not_the_last(reported):
    result = reported[0]
    assert result.metrics["accuracy"] == pytest.approx(0.9)
    assert checkpoints.load(result.checkpoint)["epoch"] == 1


def test_last_checkpoint_is_kept_besides_the_best(reported):
    kept = [checkpoints.load(path.parent)["epoch"] for path in Path(reported[0].path).glob("checkpoint_*/state.pt")]
    assert sorted(kept) == [1, 3]


def test_list_of_checkpoints_is_replaced_and_not_emptied(reported):
    result, _ = reported
    earlier, last = (json.loads(Path(path).read_text()) for path in (result.params["list"], f"{result.path}/{LIST}"))
    assert earlier["current_report_index"] < last["current_report_index"]


def test_workers_keep_the_directory_of_the_driver(reported):
    assert {fact["cwd"] for fact in reported[1]} == {str(Path.cwd())}


def test_training_starts_no_actor_that_it_has_no_use_for(reported):
    of_the_node = {"DashboardAgent", "RuntimeEnvAgent", "IDLE", "_AutoscalingCoordinatorActor"}
    assert set(reported[1][0]["actors"]) - of_the_node == {"TrainController", "SynchronizationActor", "RayTrainWorker"}


def test_result_is_left_for_other_processes(reported):
    result = reported[0]
    text = (Path(result.path).parent / wire.RESULT_FILE).read_text()
    assert wire.Result.from_json(text) == result


def without_checkpoint():
    for step in range(3):
        raykube.report({"step": step, "loss": 3.0 - step})


def test_metrics_without_a_checkpoint_reach_the_result_below_a_relative_storage(here, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(wire.STORAGE, "relative/runs")
    result = raykube.train(without_checkpoint)
    assert result.metrics == {"step": 2, "loss": 1.0}
    assert result.checkpoint is None
    assert Path(result.path) == tmp_path / "relative/runs" / here.run / "train-1"


def sparse():
    """Report the metric with all checkpoints but the first, by both ways."""
    for epoch, metrics in enumerate([{"loss": 1.0}, {"val": 0.5}, {"val": 0.2}, {"val": "high"}, {"val": 0.9}]):
        if epoch % 2:
            raykube.report(metrics, {"epoch": epoch})
            continue
        with tempfile.TemporaryDirectory() as folder:
            checkpoints.save({"epoch": epoch}, folder)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint(folder))


def test_checkpoint_without_the_metric_is_not_the_best(here):
    result = raykube.train(sparse, metric="val")
    assert (result.metrics, result.notes) == ({"val": 0.2}, ())
    assert checkpoints.load(result.checkpoint) == {"epoch": 2}
    assert {"loss": 1.0} in [row["metrics"] for row in here.rows()]


class NoRate(ValueError):
    """One that pickle cannot make again."""

    def __init__(self, name, value):
        super().__init__(f"{name} is {value}")


def diverging():
    """Leave as last checkpoint one without the metric, and go on from it; then report one that is infinite."""
    first = (checkpoints.latest() or {"epoch": -1})["epoch"] + 1
    if first == 0:
        raykube.report({"val": 0.5}, {"epoch": 0})
        raykube.report({"loss": 1.0}, {"epoch": 1})
        raise NoRate("rate", 0)
    raykube.report({"val": float("inf")}, {"epoch": first})
    raykube.report({"val": 0.2}, {"epoch": first + 1})
    raykube.report({"val": float("nan")}, {"epoch": first + 2})


def test_run_whose_last_checkpoint_has_no_number_of_the_metric_fails_by_what_pickle_cannot_make_and_goes_on(
    here, monkeypatch
):
    with pytest.raises(RunFailed) as caught:  # at once: tried again it would end well
        raykube.train(diverging, metric="val")
    assert caught.value.evidence.startswith("NoRate: rate is 0 (worker ")
    assert any("in diverging" in line for line in caught.value.tail)
    place._stages.pop(here.run)
    monkeypatch.setenv(wire.ATTEMPT, "2")
    result = raykube.train(diverging, metric="val")
    assert (result.metrics, result.notes) == ({"val": 0.2}, ())
    assert checkpoints.load(result.checkpoint) == {"epoch": 3}


def dying(config):
    """Count to ten with a checkpoint a step; in the first life one worker is killed at step five."""
    first = (checkpoints.latest() or {"step": -1})["step"] + 1
    rank = ray.train.get_context().get_world_rank()
    if rank == 0:
        note(config["lives"], first=first)
    for step in range(first, 10):
        if step == 5 and first == 0 and rank == 1:
            checkpoints.save({"step": -1}, config["unheard"])  # as rank 0 does, which may be killed before it reports
            os.kill(os.getpid(), signal.SIGKILL)
        raykube.report({"step": step}, {"step": step})


def test_training_goes_on_after_a_worker_was_killed(here, monkeypatch, tmp_path):
    monkeypatch.setenv(wire.WORKERS, "2")
    unheard = here.folder / "train-1" / checkpoints.new_name(1.0)
    result = raykube.train(dying, {"lives": str(tmp_path / "lives"), "unheard": str(unheard)})
    assert not unheard.exists()
    lives = [fact["first"] for fact in notes(tmp_path / "lives")]
    assert len(lives) == 2
    assert 1 <= lives[1] <= 5  # from a checkpoint, and from none that was never complete
    assert result.metrics["step"] == 9
    assert sorted({row["metrics"]["step"] for row in here.rows()}) == list(range(10))
    assert checkpoints.load(result.checkpoint)["step"] == 9


def buggy(config):
    note(config["lives"], life=1)
    raise KeyError("learning_rate")


@pytest.mark.usefixtures("here")
def test_bug_in_a_loop_fails_at_once_with_the_loops_own_words(tmp_path):
    with pytest.raises(RunFailed) as caught:
        raykube.train(buggy, {"lives": str(tmp_path / "lives")})
    assert caught.value.reason == "LoopFailed"
    assert "KeyError: 'learning_rate'" in str(caught.value)
    assert any("in buggy" in line for line in caught.value.tail)
    assert isinstance(caught.value.__cause__, KeyError)
    assert len(notes(tmp_path / "lives")) == 1


def mismatched(config):
    note(config["lives"], life=1)
    torch.zeros(3, 3) @ torch.zeros(4, 2)


@pytest.mark.usefixtures("here")
def test_error_that_comes_again_on_the_retry_fails_then_with_its_line(tmp_path):
    with pytest.raises(
        RunFailed, match=r"mat1 and mat2 .* \(worker 0, tests/local/inside/test_train.py line \d+\)"
    ) as caught:
        raykube.train(mismatched, {"lives": str(tmp_path / "lives")})
    assert (caught.value.reason, len(notes(tmp_path / "lives"))) == ("LoopFailed", 2)


def unequal():
    rank = ray.train.get_context().get_world_rank()
    for step in range(2 - rank):
        raykube.report({"step": step}, {"step": step})


@pytest.mark.usefixtures("here")
def test_unequal_reports_end_with_the_reason(monkeypatch):
    monkeypatch.setenv(wire.WORKERS, "2")
    monkeypatch.setenv("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "3")
    with pytest.raises(RunFailed, match="unequally often"):
        raykube.train(unequal)


@pytest.mark.usefixtures("here")
def test_more_workers_than_fit_are_refused_before_anything_waits(monkeypatch):
    monkeypatch.setenv(wire.WORKERS, "512")
    with pytest.raises(ConfigError, match="room for"):
        raykube.train(without_checkpoint)
    monkeypatch.setenv(wire.WORKERS, "1")
    monkeypatch.setenv(wire.CPUS, "512")
    with pytest.raises(ConfigError, match="1 worker x 512 CPU does not fit"):
        raykube.train(without_checkpoint)


@pytest.mark.usefixtures("here")
def test_config_that_pickle_does_not_take_is_refused_by_its_name():
    with pytest.raises(ConfigError, match=r"config\.lock: TypeError"):
        raykube.train(buggy, {"lives": "unused", "lock": threading.Lock()})


@pytest.mark.usefixtures("here")
def test_training_that_has_to_wait_for_what_others_hold_says_so(caplog, monkeypatch):
    caplog.set_level("INFO", "raykube")
    two = wire.Scale(workers=2)
    assert room.require(two, 2) >= 2
    assert "waiting" not in caplog.text
    monkeypatch.setattr(room, "_FREED_S", 0.0)
    others = ray.util.placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    try:
        ray.get(others.ready())
        room.require(two, 2)
    finally:
        ray.util.remove_placement_group(others)
    assert "waiting for 2 workers x 1 CPU: there is room for 0 now" in caplog.text


@pytest.mark.usefixtures("here")
@pytest.mark.skipif(torch.cuda.is_available(), reason="it is about machines without a GPU")
def test_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv(wire.GPUS, "1")
    with pytest.raises(ConfigError) as caught:
        raykube.train(without_checkpoint)
    assert "RAYKUBE_GPUS_PER_WORKER=0" in caught.value.next_step


TWICE = """
import os
from raykube.inside.joining import connected

def auth():
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}

def modes():
    return [oct(entry.stat().st_mode & 0o777) for entry in os.scandir(os.environ["RAY_TMPDIR"])]

for _ in range(2):
    first, second = connected(), connected()
    first.__enter__()
    second.__enter__()
    assert modes() == ["0o700"], modes()
    first.__exit__(None, None, None)
    import ray
    assert ray.get(ray.remote(num_cpus=1)(lambda: 42).remote()) == 42
    assert auth()["RAY_AUTH_MODE"] == "token"
    second.__exit__(None, None, None)
    assert not ray.is_initialized()
    assert auth() == {}, auth()
    assert modes() == [], modes()
"""


def test_own_ray_ends_with_the_last_that_holds_it_and_is_closed_to_others_leaves_no_token_or_file_and_starts_again(
    tmp_path,
):
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    environ |= {"HOME": str(tmp_path), "PYTHONPATH": str(Path.cwd())}
    with tempfile.TemporaryDirectory(prefix="rk-", dir="/tmp") as folder:  # short, for Ray's sockets
        environ["RAY_TMPDIR"] = folder
        ended = subprocess.run([sys.executable, "-c", TWICE], env=environ, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert not (tmp_path / ".ray").exists()


INTERRUPTED = """
import os, signal, threading
from pathlib import Path
import raykube

def loop(config):
    raykube.report({"step": 0}, {"step": 0})
    threading.Event().wait()

def press():
    while not list(Path(os.environ["RAYKUBE_STORAGE"]).glob("*/train-1/checkpoint_manager_snapshot.json")):
        ended.wait(0.1)
    os.kill(os.getpid(), signal.SIGINT)

ended = threading.Event()
threading.Thread(target=press, daemon=True).start()
try:
    raykube.train(loop)
except KeyboardInterrupt as error:
    assert error.__cause__ is None and (error.__suppress_context__ or error.__context__ is None)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print("interrupted")
"""


def test_training_that_ctrl_c_ends_raises_keyboard_interrupt(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    environ |= {"PYTHONPATH": str(Path.cwd()), wire.STORAGE: str(tmp_path / "runs"), wire.TRACKING: "off"}
    ended = subprocess.run([sys.executable, script], env=environ, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (0, "interrupted"), ended.stderr
