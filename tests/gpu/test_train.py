"""Training on a real GPU: what NCCL, CUDA's queue and its memory do that no CPU does."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import raykube
from jobs import _digits
from raykube import wire
from raykube.errors import ConfigError, RunFailed
from raykube.inside import checkpoints
from raykube.inside.failures import GPU_MEMORY_STEP
from raykube.inside.history import rows
from tests.local.inside.support import MARKS, note, notes

torch = pytest.importorskip("torch")
pytestmark = [*MARKS, pytest.mark.gpu]


def of_every_type():
    import ray.train.torch
    import torch.distributed as dist

    device = ray.train.torch.get_device()
    total = torch.ones(3, device=device)
    dist.all_reduce(total)
    raykube.report({"backend": dist.get_backend(), "device": device.type, "sum": total.sum()})
    typed = {str(kind): torch.full((1, 1), 3, dtype=kind, device=device) for kind in (torch.bfloat16, torch.int64)}
    raykube.report(typed | {"true": torch.tensor(1, device=device) > 0, "plain": 7})


def test_training_is_of_nccl_and_tensors_of_every_type_are_read(on_gpu):
    raykube.train(of_every_type)
    first, second = [row["metrics"] for row in on_gpu.rows()]
    assert first == {"backend": "nccl", "device": "cuda", "sum": 3.0}
    assert second == {"torch.bfloat16": 3.0, "torch.int64": 3, "true": True, "plain": 7}
    assert type(second["torch.int64"]) is int


def on_a_stream_of_its_own():
    device = torch.device("cuda")
    weights = torch.randn(4096, 4096, device=device)
    with torch.cuda.stream(torch.cuda.Stream()):
        for step in range(20):
            for _ in range(20):  # so that a reader that does not wait reads before the value is there
                weights = torch.nn.functional.normalize(weights @ weights)
            value = torch.full((1,), float("nan"), device=device)
            value.copy_(weights[0, :1] * 0 + step)
            raykube.report({"step": step, "value": value})
            threading.Event().wait(0.05)


def test_value_of_a_stream_of_its_own_is_read_after_it_was_computed(on_gpu):
    raykube.train(on_a_stream_of_its_own)
    found = [row["metrics"] for row in on_gpu.rows()]
    assert [row["value"] for row in found] == [row["step"] for row in found] == list(range(20))


def captures(config):
    """Report a value, and capture a graph for so long that the value is read meanwhile."""
    value = torch.zeros((), device="cuda")
    for _ in range(3):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode=config["mode"]):
            value += 1
            threading.Event().wait(1.2)
        graph.replay()
        raykube.report({"value": value})


@pytest.mark.parametrize("mode", ["global", "thread_local"])
def test_values_are_read_while_a_graph_is_captured(on_gpu, mode):
    raykube.train(captures, {"mode": mode})
    assert [row["metrics"]["value"] for row in on_gpu.rows()] == [1.0, 2.0, 3.0]


def of_a_mesh():
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh = torch.distributed.init_device_mesh("cuda", (1,))
    one = torch.ones((), device="cuda")
    raykube.report({"norm": DTensor.from_local(one, mesh, [Replicate()])})
    with pytest.raises(ConfigError, match=r"full_tensor\(\)"):
        raykube.report({"norm": DTensor.from_local(one, mesh, [Partial()])})


def test_tensor_of_a_mesh_is_read_where_each_rank_has_all_of_it(on_gpu):
    raykube.train(of_a_mesh)
    assert [row["metrics"] for row in on_gpu.rows()] == [{"norm": 1.0}]


def ahead(config):
    """Queue work much faster than the GPU does it, for some seconds, and tell how many rows are written meanwhile."""
    weights = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
    start = time.monotonic()
    for step in range(10**6):
        weights = weights @ weights * 1e-2
        raykube.report({"step": step, "loss": weights[0, 0]})
        if time.monotonic() - start > config["seconds"]:
            break
    note(config["seen"], written=len(rows(config["file"])), reported=step + 1)


def test_rows_of_a_loop_that_runs_ahead_of_its_gpu_are_written_meanwhile(on_gpu):
    seen = on_gpu.storage / "seen"
    file = str(on_gpu.folder / "train-1" / wire.METRICS_FILE)
    raykube.train(ahead, {"seconds": 6, "seen": str(seen), "file": file})
    (found,) = notes(seen)
    assert found["written"] > found["reported"] / 2
    assert len(on_gpu.rows()) == found["reported"]


def shared():
    import ray.train.torch

    model = ray.train.torch.prepare_model(torch.nn.Linear(4, 1))
    loss = model(torch.ones(2, 4, device=ray.train.torch.get_device())).mean()
    loss.backward()
    raykube.report({"backend": torch.distributed.get_backend(), "device": str(loss.device), "loss": loss})


def test_two_workers_share_a_gpu_by_gloo(on_gpu, monkeypatch):
    monkeypatch.setenv(wire.WORKERS, "2")
    monkeypatch.setenv(wire.GPUS, "0.5")
    raykube.train(shared)
    (row,) = on_gpu.rows()
    assert (row["metrics"]["backend"], row["metrics"]["device"]) == ("gloo", "cuda:0")


@pytest.mark.usefixtures("on_gpu")
def test_more_workers_than_gpus_are_refused_at_once(monkeypatch):
    monkeypatch.setenv(wire.WORKERS, "99")
    with pytest.raises(ConfigError, match=r"99 workers x 1 CPU and 1 GPU do not fit"):
        raykube.train(shared)


@pytest.mark.usefixtures("here")
def test_gpu_that_no_worker_uses_is_told(monkeypatch, caplog):
    monkeypatch.setenv(wire.WORKERS, "1")
    with caplog.at_level(logging.INFO, "raykube"):
        raykube.train(nothing)
    assert "RAYKUBE_GPUS_PER_WORKER=1" in caplog.text


def nothing():
    raykube.report({"cuda": torch.cuda.is_available()})


def too_large():
    torch.zeros(2**40, device="cuda")  # 4 TiB


@pytest.mark.usefixtures("on_gpu")
def test_gpu_without_memory_left_is_named_with_a_next_step(monkeypatch):
    monkeypatch.setenv(wire.MAX_FAILURES, "0")
    with pytest.raises(RunFailed, match="CUDA out of memory") as caught:
        raykube.train(too_large)
    assert (caught.value.reason, caught.value.next_step) == ("GpuOutOfMemory", GPU_MEMORY_STEP)


def asserts_on_the_device():
    table = torch.nn.Embedding(4, 4).cuda()
    raykube.report({"before": 1})
    found = table(torch.tensor([9], device="cuda")).sum()
    raykube.report({"step": 2, "loss": found})
    found.item()


def test_error_of_a_device_is_told_with_the_loops_own_line_and_rows_are_kept(on_gpu, monkeypatch):
    monkeypatch.setenv(wire.MAX_FAILURES, "0")
    with pytest.raises(RunFailed, match="CUDA error") as caught:
        raykube.train(asserts_on_the_device)
    assert any("asserts_on_the_device" in line for line in caught.value.tail)
    # At which call CUDA tells of it is not said: the second row, of a loss that nobody can read, may be there or not.
    assert [row["metrics"] for row in on_gpu.rows()] in ([{"before": 1}], [{"before": 1}, {"step": 2}])


def dies_once(config):
    state = checkpoints.latest("cuda") or {"step": 0, "weights": torch.zeros(256, 1024, 1024, device="cuda")}
    for step in range(state["step"] + 1, 5):
        weights = state["weights"].cuda() + 1
        note(config["lives"], step=step, time=time.time(), pid=os.getpid())
        if step == 3 and len({each["pid"] for each in notes(config["lives"])}) == 1:
            threading.Event().wait(2)  # Ray's controller is to have heard of the checkpoint before
            os.kill(os.getpid(), signal.SIGKILL)
        state = {"step": step, "weights": weights}
        raykube.report({"step": step, "weight": weights.mean()}, state)


def test_killed_worker_resumes_on_the_gpu_from_its_checkpoint(on_gpu, record_property):
    lives = on_gpu.storage / "lives"
    result = raykube.train(dies_once, {"lives": str(lives)})
    assert (result.metrics["step"], result.metrics["weight"]) == (4, 4.0)
    seen = notes(lives)
    assert [each["step"] for each in seen] == [1, 2, 3, 3, 4]
    record_property("seconds from the kill to the same step", seen[3]["time"] - seen[2]["time"])


def on_the_gpu(checkpoint):
    return _digits.load(checkpoint).cuda()


def test_model_that_was_registered_from_a_gpu_is_read_without_one(on_gpu, monkeypatch):
    monkeypatch.delenv(wire.TRACKING)
    config = {"data": _digits.write_data(on_gpu.storage / "data"), "epochs": 12}
    result = raykube.train(_digits.loop, config, experiment="digits", metric="accuracy", mode="max", model=on_the_gpu)
    assert result.metrics["accuracy"] >= 0.97
    assert result.notes == ()
    script = f"from raykube.inside.serving import open_model; print(open_model({result.model_uri!r}, None))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", wire.STORAGE: str(on_gpu.storage)},
        cwd=Path(_digits.__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Net(" in done.stdout, done.stderr


def tries(config):
    start = time.time()
    value = torch.tensor(config["x"], device="cuda") ** 2
    for _ in range(3):
        raykube.report({"value": value, "started": start, "ended": time.time()})


@pytest.mark.parametrize(("gpus", "at_once"), [("1", 1), ("0.5", 2)])
@pytest.mark.usefixtures("on_gpu")
def test_sweep_runs_as_many_trials_at_once_as_fit_on_the_gpu(monkeypatch, caplog, gpus, at_once):
    from ray import tune

    monkeypatch.setenv(wire.GPUS, gpus)
    with caplog.at_level(logging.INFO, "raykube"):
        result = raykube.sweep(tries, {"x": tune.uniform(-1, 1)}, trials=2, metric="value", mode="min")
    assert f"2 trials, {at_once} at once" in caplog.text
    assert [trial["error"] for trial in result.trials] == [None, None]
    assert result.metrics["value"] == pytest.approx(result.params["x"] ** 2)
