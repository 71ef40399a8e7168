import argparse
import functools
import json
import logging
import os
import pickle
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

import raykube
from raykube import wire
from raykube.errors import ConfigError, Conflict, NotFound, RunFailed
from raykube.inside import checkpoints, loops, room, tracking, training
from raykube.inside.failures import (
    GPU_MEMORY_STEP,
    MEMORY_STEP,
    STARTING,
    LoopError,
    brought,
    explain,
    is_bug,
    mark,
)
from raykube.inside.history import Recorder, rows
from raykube.inside.loops import takes_config
from raykube.inside.place import Place
from raykube.inside.stages import Stage, work
from raykube.inside.tasks import Task, published, sent_by_pickle, wrong_arguments
from raykube.inside.tries import Tries
from tests.basics import write
from tests.support import Later
from tests.support import run as finished

np = Later("numpy")
controller = Later("raykube.inside.controller")
poll = Later("ray.train.v2._internal.execution.worker_group.poll")
ray = Later("ray")
torch = Later("torch")


def raised(error):
    """Return an exception of a loop as it arrives in the driver."""
    mark(error, f"Traceback\n  line\n{type(error).__name__}: {error}")
    return pickle.loads(pickle.dumps(error))


class GroupError(Exception):
    def __init__(self, failures):
        super().__init__("training failed")
        self.worker_failures = failures


def nothing():
    pass


def test_report_outside_of_a_loop_says_where_it_belongs():
    with pytest.raises(ConfigError, match=r"raykube\.train"):
        raykube.report({"loss": 1})


def test_report_of_other_ranks_is_dropped_before_it_is_looked_at():
    loops._session = loops._Session(None, "nowhere")
    try:
        raykube.report({"loss": object()})
    finally:
        loops._session = None


@pytest.mark.parametrize(
    ("loop", "config", "takes"),
    [
        (nothing, {}, False),
        (lambda config: config, {}, True),
        (lambda config: config, {"lr": 1}, True),
        (lambda config=None: config, {}, False),
        (lambda config=None: config, {"lr": 1}, True),
        (lambda *given, **named: (given, named), {"lr": 1}, True),
        (functools.partial(lambda a, b: (a, b), 1), {}, True),
        (functools.partial(lambda config: config, config={}), {}, False),
    ],
)
def test_loop_takes_its_config_or_nothing(loop, config, takes):
    assert takes_config(loop, config) is takes


@pytest.mark.parametrize(
    ("loop", "config"),
    [
        (nothing, {"lr": 1}),
        (lambda *, config: config, {}),
        (lambda *, config: config, {"lr": 1}),
        (lambda *, config=None: config, {"lr": 1}),
        (lambda **named: named, {"lr": 1}),
    ],
)
def test_loop_that_cannot_take_its_config_is_refused(loop, config):
    with pytest.raises(ConfigError, match="takes no config"):
        Task(loop, config)


def test_loop_with_several_arguments_to_do_without_is_not_given_a_config_as_any_of_them():
    def loop(model=None, config=None):
        return model or config

    Task(loop, {})
    with pytest.raises(ConfigError, match="2 arguments to do without"):
        Task(loop, {"lr": 1})


def test_loop_of_two_arguments_is_refused():
    with pytest.raises(ConfigError, match="2 arguments"):
        Task(lambda model, data: (model, data))


async def awaited(config):
    return config


def yielding(config):
    yield config


class Awaited:
    async def __call__(self, config):
        return config


@pytest.mark.parametrize("loop", [awaited, yielding, Awaited(), functools.partial(awaited, {})])
def test_loop_that_a_call_does_not_run_is_refused(loop):
    with pytest.raises(ConfigError, match="does not run it"):
        Task(loop)


def wrapped(loop):
    @functools.wraps(loop)
    def call(*args):
        return loop(*args)

    return call


@pytest.mark.parametrize(
    "loop",
    [wrapped(awaited), wrapped(yielding), lambda config: yielding(config), functools.partial(Awaited())],  # noqa: PLW0108
)
@pytest.mark.filterwarnings("error")
def test_wrapped_loop_that_a_call_does_not_run_is_refused_once_called(loop):
    with pytest.raises(ConfigError, match="is a generator or a coroutine"):
        loops.call(loop, {"lr": 1})


def test_loop_may_return_what_could_be_awaited_of_ray():
    loops.call(lambda: ray.ObjectRef(bytes(28)), {})


def test_loop_takes_what_its_decorator_takes():
    def loop(config, data):
        return config, data

    given = functools.wraps(loop)(lambda config: loop(config, []))
    passed_on = functools.wraps(nothing)(lambda *args, **named: (nothing(), args, named))
    assert takes_config(given, {"lr": 1})
    assert not takes_config(passed_on, {})
    with pytest.raises(ConfigError, match="takes no config"):
        Task(passed_on, {"lr": 1})


@pytest.mark.parametrize(("verb", "asked"), [("train", {}), ("sweep", {"trials": 1, "metric": "x", "mode": "min"})])
def test_config_that_is_no_dict_is_refused_with_what_makes_one(verb, asked):
    with pytest.raises(ConfigError, match=r"not Namespace\n  next: write vars\(config\)"):
        getattr(raykube, verb)(lambda config: config, argparse.Namespace(lr=1), **asked)


def test_what_pickle_does_not_take_of_a_config_is_named():
    cloudpickle = pytest.importorskip("ray.cloudpickle")
    config = {"lr": 0.1, "lock": threading.Lock(), "f": lambda: 1}
    with pytest.raises(ConfigError) as caught, sent_by_pickle(config):
        cloudpickle.dumps(config)
    assert [(each.path, "pickle" in each.what) for each in caught.value.problems] == [("config.lock", True)]
    with pytest.raises(ValueError, match="of something else"), sent_by_pickle({"lr": 0.1}):
        raise ValueError("of something else")


def test_mode_must_be_min_or_max():
    with pytest.raises(ConfigError, match="biggest"):
        Task(nothing, mode="biggest")


def test_best_leaves_out_what_is_no_number():
    task = Task(nothing, metric="loss")
    scored = [("a", {"loss": float("nan")}), ("b", {"loss": 2.0}), ("c", {"other": 1.0}), ("d", {"loss": 3.0})]
    assert task.best(scored) == ("b", {"loss": 2.0})
    assert task.best(scored[:1]) is None


@pytest.mark.parametrize(("metric", "notes"), [("los", 1), ("loss", 0), (None, 0)])
def test_checkpoint_that_the_metric_did_not_choose_is_noted_and_logged_with_the_names_that_there_are(
    tmp_path, caplog, metric, notes
):
    stage = Stage(Place("demo", str(tmp_path)), "train-1", str(tmp_path / "demo"))
    recorder = Recorder(stage.metrics, 1)
    recorder.add({"step": 1})
    recorder.add({"loss": 0.5, "epoch": 1}, "checkpoint_1")
    recorder.close()
    result = wire.Result("train", "demo", stage.path, {"loss": 0.5, "epoch": 1}, "checkpoint_1")
    judged = training._judged(stage, Task(nothing, {}, metric), result)
    note = (
        "no checkpoint was reported with a number for the metric 'los', so this is the last one; "
        "the metrics of checkpoints are: loss, epoch"
    )
    assert judged.notes == tuple(caplog.messages) == (note,) * notes


def stage_with_result(tmp_path, attempt):
    stage = Stage(Place("demo", str(tmp_path), attempt=attempt), "train-1", str(tmp_path / "demo"))
    return stage, stage.finish(wire.Result("train", "demo", stage.path, metrics={"loss": 1.0}))


def test_finished_run_is_not_run_again(tmp_path):
    stage, _ = stage_with_result(tmp_path, attempt=1)
    with pytest.raises(Conflict, match="demo has finished"):
        stage.finished()


def test_retry_keeps_the_result_of_a_finished_stage(tmp_path):
    stage, result = stage_with_result(tmp_path, attempt=2)
    assert stage.finished() == result


def test_retry_gives_the_run_the_result_of_its_last_stage(tmp_path):
    stage, result = stage_with_result(tmp_path, attempt=2)
    (tmp_path / "demo" / wire.RESULT_FILE).unlink()  # as where the first attempt ended between its two writes
    stage.finished()
    assert wire.Result.from_json((tmp_path / "demo" / wire.RESULT_FILE).read_text()) == result


TRAINING = work("train", nothing, "loss", "min")


def of_a_script(tmp_path, attempt):
    """Let another process begin the first stage of a run."""
    stage = Stage(Place("demo", str(tmp_path), attempt=attempt), "train-1", str(tmp_path / "demo"))
    names = "from raykube.inside.stages import Place, Stage; from raykube.wire import Scale"
    code = f"{names}; {stage!r}.begin({TRAINING!r})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("changed", [{"loop": "other.loop"}, {"metric": "accuracy"}, {"mode": "max"}])
def test_stage_of_another_script_is_refused_in_every_attempt(tmp_path, changed):
    stage = Stage(Place("demo", str(tmp_path)), "train-1", str(tmp_path / "demo"))
    assert stage.begin(TRAINING) is None
    stage.finish(wire.Result("train", "demo", stage.path))
    for attempt in (1, 2, 3):
        later = replace(stage, place=replace(stage.place, attempt=attempt))
        with pytest.raises(Conflict, match="second script of this run calls train"):
            later.begin(TRAINING | changed)
    assert later.begin(TRAINING) == wire.Result("train", "demo", stage.path)


def test_stage_of_the_same_call_in_a_second_script_is_refused_in_a_retry(tmp_path):
    assert of_a_script(tmp_path, 1).returncode == 0
    stage, _ = stage_with_result(tmp_path, attempt=2)
    assert of_a_script(tmp_path, 2).returncode == 0
    with pytest.raises(Conflict, match="second script"):
        stage.begin(TRAINING)
    assert "has finished" in of_a_script(tmp_path, 1).stderr


def test_unfinished_stage_goes_on_in_any_process(tmp_path):
    assert [of_a_script(tmp_path, attempt).stderr for attempt in (1, 1, 2, 2)] == [""] * 4


@pytest.mark.parametrize(("command", "name"), [(["-m", "pack.script"], "pack.script"), (["pack/script.py"], "script")])
def test_loop_of_a_script_is_named_after_the_script(tmp_path, command, name):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "script.py").write_text(
        "import functools\nfrom raykube.inside.stages import work\n"
        "def loop(config, n): pass\n"
        "print(work('train', functools.partial(loop, n=1), None, 'min')['loop'])\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(raykube.__file__).parents[1])}
    ended = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environ, capture_output=True, text=True, check=True
    )
    assert ended.stdout == f"{name}.loop\n"


def searched(verb):
    if verb == "train":
        return {"x": 1}
    from ray import tune

    return {"x": tune.uniform(0, 1)}


@pytest.mark.parametrize(("kind", "asked"), [("train", {}), ("sweep", {"trials": 1, "metric": "x", "mode": "min"})])
def test_call_whose_stage_is_another_scripts_is_refused_before_ray_is_asked(tmp_path, monkeypatch, kind, asked):
    run = f"second-{kind}"
    monkeypatch.setenv(wire.STORAGE, str(tmp_path))
    monkeypatch.setenv(wire.RUN_NAME, run)
    Stage(Place(run, str(tmp_path)), f"{kind}-1", str(tmp_path / run)).begin({**TRAINING, "kind": kind})
    with pytest.raises(Conflict, match=rf"second script of this run calls {kind}"):
        getattr(raykube, kind)(lambda config: config, searched(kind), **asked)


class NoModel:
    pass


@pytest.mark.parametrize(
    ("asked", "path"),
    [
        ({"model": "x"}, "model"),
        ({"model": NoModel()}, "model"),
        ({"model": nothing}, "model"),  # it takes no folder
        ({"model": lambda width, height: width * height}, "model"),  # it takes two numbers
        ({"metric": 3}, "metric"),
        ({"metric": ""}, "metric"),
        ({"experiment": None}, "experiment"),
        ({"experiment": ""}, "experiment"),
    ],
)
@pytest.mark.parametrize("verb", ["train", "sweep"])
def test_wrong_argument_is_refused_before_anything_starts(tmp_path, monkeypatch, verb, asked, path):
    monkeypatch.setenv(wire.STORAGE, str(tmp_path))
    if verb == "sweep":
        asked = {"trials": 1, "metric": "loss", "mode": "min", **asked}
    with pytest.raises(ConfigError) as caught:
        getattr(raykube, verb)(lambda config: config, searched(verb), **asked)
    assert [problem.path for problem in caught.value.problems] == [path]
    assert list(tmp_path.iterdir()) == []


def test_model_itself_is_not_taken_for_what_makes_one():
    (problem,) = wrong_arguments("digits", None, torch.nn.Linear(1, 1))
    assert problem.what == "is itself a model, a Linear"
    assert wrong_arguments("digits", "loss", lambda folder, device="cpu": (folder, device)) == []


@pytest.mark.parametrize("verb", ["train", "sweep"])
def test_call_within_a_loop_is_refused_and_touches_nothing(tmp_path, monkeypatch, verb):
    monkeypatch.setenv(wire.STORAGE, str(tmp_path))
    asked = {"trials": 1, "metric": "loss", "mode": "min"} if verb == "sweep" else {}
    monkeypatch.setattr(loops, "_session", loops._Session(None, "nowhere"))
    with pytest.raises(ConfigError, match=rf"raykube\.{verb} was called within a training loop"):
        getattr(raykube, verb)(lambda config: config, searched(verb), **asked)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["train(print)", "sweep(print, {'x': 1}, trials=1, metric='x', mode='min')"])
def test_call_without_ray_says_how_to_install_it(tmp_path, call):
    script = f"import sys; sys.modules['ray'] = None; import raykube; raykube.{call}"
    done = finished("python", "-c", script, **{wire.STORAGE: str(tmp_path), wire.TRACKING: "off"})
    assert "ConfigError: train and sweep need Ray, which is not installed" in done.stderr
    assert done.stderr.rstrip().endswith("pip install '.[local]'")


def test_config_of_any_names_is_published(tmp_path):
    holds_itself = {}
    holds_itself["me"] = holds_itself
    config = {
        0: {1: "a", "out": 2, ("x", 2): [{None: 3}]},
        "kept": (1, 0.5, True, None, "word"),
        "object": Path("here"),
        "me": holds_itself,
    }
    stage, _ = stage_with_result(tmp_path, attempt=2)
    result = stage.finish(wire.Result("train", "demo", stage.path, params=published(config)))
    assert stage.finished() == result
    assert result.params == {
        "0": {"1": "a", "out": 2, "('x', 2)": [{"None": 3}]},
        "kept": [1, 0.5, True, None, "word"],
        "object": "here",
        "me": "{'me': {...}}",
    }


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (lambda: np.int64(10), 10),
        (lambda: np.bool_(False), False),
        (lambda: np.float32(0.5), 0.5),
        (lambda: np.array([3]), 3),
        (lambda: torch.tensor(0.5, requires_grad=True), 0.5),
        (lambda: np.array([1, 2]), "[1 2]"),
        (lambda: torch.float32, "torch.float32"),
        (lambda: torch.zeros((), device="meta"), "tensor(..., device='meta', size=())"),
    ],
)
def test_number_of_numpy_or_torch_in_a_config_is_published_as_a_number(value, expected):
    (found,) = published({"x": [value()]})["x"]
    assert (found, type(found)) == (expected, type(expected))


class BrokenTracker(tracking.Tracker):
    def conclude(self, result, model=None):
        raise LookupError(f"no class for {result.run} in {model}")


def test_result_is_kept_when_its_model_cannot_be_registered(tmp_path):
    stage, result = stage_with_result(tmp_path, attempt=2)
    with pytest.raises(RunFailed, match="model could not be loaded and logged: LookupError: no class") as caught:
        stage.conclude(result, BrokenTracker(), nothing)
    assert (caught.value.reason, type(caught.value.__cause__)) == ("ModelFailed", LookupError)
    assert caught.value.next_step.endswith(f"is safe in {result.checkpoint or stage.path}")
    kept = stage.finished()
    assert kept.metrics == result.metrics
    assert "not registered" in kept.notes[0]


def test_result_of_a_stage_is_also_the_runs(tmp_path):
    _, result = stage_with_result(tmp_path, attempt=1)
    assert wire.Result.from_json((tmp_path / "demo" / wire.RESULT_FILE).read_text()) == result


def test_failure_shows_the_bug_and_not_the_broken_connections_around_it():
    error = GroupError({0: raised(RuntimeError("connection closed")), 1: raised(KeyError("lr"))})
    failure, cause = explain(error)
    assert failure.reason == "LoopFailed"
    assert failure.message == "KeyError: 'lr' (worker 1)"
    assert failure.tail[-1] == "KeyError: 'lr'"
    assert isinstance(cause, KeyError)


def test_failure_of_a_loop_that_uses_raykube_wrongly_has_the_words_and_the_step_of_that():
    wrong = ConfigError("reported unequally often", why="all are waited for", next_step="report on every rank")
    failure, _ = explain(LoopError({1: wrong}))
    assert failure.message == "reported unequally often: all are waited for (worker 1)"
    assert failure.next_step == "report on every rank"


def test_failure_that_came_without_a_traceback_sends_nobody_to_one():
    steps = [explain(LoopError({0: error}))[0].next_step for error in (KeyError("lr"), raised(KeyError("lr")))]
    assert steps == ["", "read the traceback below; it is the loop's own"]


def test_failure_of_a_lost_worker_is_told_apart():
    failure, _ = explain(GroupError({0: lost("a\nThe actor is dead because of x\nb")}))
    assert failure.reason == "WorkerDied"
    assert failure.message == "worker 0: The actor is dead because of x"


MONITOR = "3 worker(s) were killed due to the node running low on memory. Memory was 7GB used / 8GB limit"


def lost(words):
    return type("Lost", (Exception,), {"__module__": "ray.exceptions"})(words)


def test_kill_by_the_memory_monitor_is_named_before_the_connections_that_it_broke():
    failure, _ = explain(GroupError({0: raised(RuntimeError("connection closed")), 1: lost(f"a\n{MONITOR}\nb")}))
    assert (failure.reason, failure.next_step) == ("OutOfMemory", MEMORY_STEP)
    assert failure.message == f"worker 1: Ray's memory monitor killed it: {MONITOR}"


def test_error_of_a_worker_is_told_before_another_that_was_lost():
    failure, _ = explain(GroupError({0: lost("The actor is dead because of x"), 1: raised(RuntimeError("no kernel"))}))
    assert (failure.reason, failure.message) == ("LoopFailed", "RuntimeError: no kernel (worker 1)")


def test_worker_that_died_before_it_had_a_rank_is_given_none():
    failure, _ = explain(GroupError({STARTING: lost("The actor is dead because of x")}))
    assert failure.message == "a worker, at its start: The actor is dead because of x"


def test_death_of_the_controller_is_not_taken_for_a_workers():
    failure, _ = explain(lost("class_name: TrainController\nThe actor is dead because of x"))
    assert failure.reason == "ControllerDied"
    assert failure.message == "the controller of the training: The actor is dead because of x"


def test_gpu_without_memory_is_named_and_tried_again():
    full = raised(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    failure, _ = explain(GroupError({0: raised(RuntimeError("NCCL error")), 1: full}))
    assert (failure.reason, failure.next_step) == ("GpuOutOfMemory", GPU_MEMORY_STEP)
    assert not is_bug(full)
    taken, _ = explain(GroupError({0: raised(RuntimeError("CUDA error: out of memory\nFor debugging consider x"))}))
    assert (taken.reason, taken.message) == ("GpuOutOfMemory", "RuntimeError: CUDA error: out of memory (worker 0)")


def tries_of(stage):
    return Tries(stage.path, "train-1", 3, stage.ended)


@pytest.fixture
def troubled(tmp_path):
    """Return a stage of a second attempt, and what is told of the run's trouble."""
    stage = Stage(Place("demo", str(tmp_path), attempt=2), "train-1", str(tmp_path / "demo"))
    path = tmp_path / "demo" / wire.TROUBLE_FILE
    return stage, lambda: wire.trouble(path.read_text() if path.exists() else "", 2).partition(" ")[2]


def test_wait_for_what_others_hold_is_told_until_the_workers_start(troubled, monkeypatch):
    stage, told = troubled
    monkeypatch.setattr(room, "_settled_slots", lambda *_: 2)
    monkeypatch.setattr(room, "_note_idle_gpus", lambda _: None)
    monkeypatch.setattr(room, "_FREED_S", 0.0)
    monkeypatch.setattr(room, "_free", lambda _: 2)
    room.require(wire.Scale(), 2, stage.troubles.wait)
    assert told() == ""
    monkeypatch.setattr(room, "_free", lambda _: 0)
    room.room(wire.Scale(), 2, stage.troubles.wait)
    assert told().startswith("train-1: waiting for 2 workers x 1 CPU: there is room for 0 now")
    controller.WorkerWatch(stage.troubles, tries_of(stage)).after_worker_group_start(None)
    assert told() == ""


def test_lost_worker_is_told_after_others_have_started(troubled):
    stage, told = troubled
    of_ray = controller.Controller(stage.path, 2, stage.troubles, tries_of(stage))
    of_ray.after_exception(None, {0: raised(RuntimeError("no network"))})
    assert told() == ""
    of_ray.after_exception(None, {1: lost("The actor is dead because of x")})
    controller.WorkerWatch(stage.troubles, tries_of(stage)).after_worker_group_start(None)
    assert told() == "train-1: worker 1: The actor is dead because of x"


def test_lost_worker_is_told_although_it_broke_the_connections_of_others(troubled):
    stage, told = troubled
    of_ray = controller.Controller(stage.path, 2, stage.troubles, tries_of(stage))
    gone = lost("A worker health check failed.\nThe actor died because its node has died. Node Id: x\n\tby SIGTERM")
    of_ray.after_exception(None, {0: raised(RuntimeError("Connection reset by peer")), 1: gone})
    assert told() == "train-1: worker 1: The actor died because its node has died. Node Id: x"


@pytest.mark.parametrize("ended", [False, True])
def test_worker_that_dies_because_tune_has_ended_its_trial_is_no_trouble(troubled, caplog, ended):
    run, told = troubled
    caplog.set_level("WARNING", "ray.train")
    stage = replace(run, parent=str(Path(run.place.path, "sweep-1", "a")))
    if ended:
        write(stage.ended, "")
    of_ray = controller.Controller(stage.path, 2, stage.troubles, tries := tries_of(stage))
    tries.begin()
    of_ray.after_exception(None, {0: lost("The actor is dead because its owner has died. Owner Id: x")})
    of_ray._not_started({-1: lost("The actor is dead because its owner has died. Owner Id: x")})
    logging.getLogger("ray.train.v2").error("Error in control loop iteration")
    assert (told() == "", caplog.messages == []) == (ended, ended)


def test_workers_on_a_node_that_is_taken_away_are_told_before_they_are_lost(troubled):
    stage, told = troubled
    workers = controller.WorkerWatch(stage.troubles, tries_of(stage))
    workers.after_worker_group_poll_status(poll.WorkerGroupPollStatus({0: poll.WorkerStatus(running=True)}))
    assert told() == ""
    leaving = poll.WorkerStatus(running=True, preemption_info=poll.PreemptionInfo(None, {"node": [1, 2]}))
    workers.after_worker_group_poll_status(poll.WorkerGroupPollStatus({0: leaving}))
    assert told().startswith("train-1: workers 1, 2: on a node that is taken away")
    workers.after_worker_group_poll_status(object())  # as it may be in another Ray


class TwoArguments(LookupError):
    """One that pickle cannot make again."""

    def __init__(self, code, detail):
        super().__init__(f"{code}: {detail}")


class Locked(Exception):
    """One that pickle cannot send."""

    def __init__(self, words):
        super().__init__(words)
        self.lock = threading.Lock()


def arrived(error):
    """Return an exception of a loop as it arrives in the driver, by what the worker sends for it."""
    mark(error, f"Traceback\n  line\n{type(error).__name__}: {error}")
    cloudpickle = pytest.importorskip("ray.cloudpickle")
    return cloudpickle.loads(cloudpickle.dumps(brought(error)))


@pytest.mark.parametrize(
    ("error", "words", "bug"),
    [
        (TwoArguments(3, "gone"), "TwoArguments: 3: gone", True),
        (Locked("shut"), "Locked: shut", False),
        (KeyError("lr"), "KeyError: 'lr'", True),
    ],
)
def test_exception_that_pickle_does_not_bring_is_told_in_its_words(error, words, bug):
    failure, cause = explain(GroupError({0: arrived(error)}))
    assert (failure.reason, failure.message) == ("LoopFailed", f"{words} (worker 0)")
    assert failure.tail == ["Traceback", "  line", words]
    assert is_bug(cause) is bug


@pytest.mark.parametrize("form", [lambda error: error.as_instanceof_cause(), lambda error: error])
def test_bug_in_a_task_that_a_loop_calls_is_told_in_the_tasks_words(form):
    exceptions = pytest.importorskip("ray.exceptions")
    text = "ray::task()\n  line\nValueError: bad"
    error = arrived(form(exceptions.RayTaskError("task", text, ValueError("bad"), "ray::task", 1, "127.0.0.1")))
    failure, _ = explain(GroupError({0: raised(RuntimeError("connection closed")), 1: error}))
    assert (failure.reason, failure.message) == ("LoopFailed", "ValueError: bad (worker 1)")
    assert any("ValueError: bad" in line for line in failure.tail)
    assert is_bug(error)


@pytest.fixture
def rank_0(monkeypatch, tmp_path):
    """Be the worker of rank 0; return its stage."""
    pytest.importorskip("ray.train")
    recorder = Recorder(str(tmp_path / wire.METRICS_FILE), 1)
    monkeypatch.setattr(loops, "_session", loops._Session(recorder, str(tmp_path)))
    yield tmp_path
    recorder.close()


def test_rows_of_before_a_checkpoint_are_in_the_file_when_ray_is_told_of_it(rank_0):
    raykube.report({"step": 1})
    with pytest.raises(RuntimeError):  # Ray has no training to report to
        raykube.report({"step": 2}, {"epoch": 1})
    assert [row["metrics"]["step"] for row in rows(str(rank_0 / wire.METRICS_FILE))] == [1, 2]


def test_checkpoint_that_pickle_does_not_take_is_no_row_and_not_tried_again(rank_0):
    with pytest.raises((pickle.PicklingError, AttributeError)) as caught:
        raykube.report({"loss": 1.0}, {"schedule": lambda: 0.1})
    assert is_bug(raised(caught.value))
    assert is_bug(raised(pickle.PicklingError("Can't pickle it")))
    assert (loops._session.recorder.flush(), rows(str(rank_0 / wire.METRICS_FILE))) == (None, [])


def test_checkpoint_that_is_none_is_refused_in_plain_words(rank_0):
    (rank_0 / "model.pt").touch()
    for given, why in [
        (str(rank_0 / "model.pt"), "is a file"),
        (rank_0 / "lost", "is not there"),
        (nothing, "not function"),
    ]:
        with pytest.raises(ConfigError, match=why) as caught:
            raykube.report({"loss": 1.0}, given)
        assert "dict of states" in caught.value.next_step


@pytest.mark.parametrize("returns", [yielding, awaited])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.filterwarnings("error")
def test_loop_that_has_reported_may_return_a_generator_or_a_coroutine(rank_0, monkeypatch, rank, returns):
    if rank:
        monkeypatch.setattr(loops, "_session", loops._Session(None, str(rank_0)))

    def loop(config):
        raykube.report({"loss": 1.0})
        return returns(config)

    with pytest.raises(ConfigError, match="is a generator or a coroutine"):
        loops.call(wrapped(returns), {"lr": 1})  # nothing was reported yet
    loops.call(loop, {"lr": 1})


@pytest.mark.usefixtures("rank_0")
def test_loop_that_has_reported_to_ray_alone_may_return_a_generator():
    pytest.importorskip("ray.train.v2")
    from ray.train.v2._internal.execution import train_fn_utils

    utils = train_fn_utils.LocalTrainFnUtils("demo")
    train_fn_utils.set_train_fn_utils(utils)
    try:
        with loops._clean_reports(None, "min"):
            loops.call(lambda config: utils.report({"loss": 1.0}) or yielding(config), {"lr": 1})
    finally:
        train_fn_utils.set_train_fn_utils(None)


def test_bugs_end_a_run_and_lost_devices_do_not():
    assert is_bug(raised(TypeError()))
    assert not is_bug(raised(RuntimeError("CUDA error")))


def test_loop_error_survives_the_way_between_processes():
    assert pickle.loads(pickle.dumps(LoopError({1: ValueError("x")}))).failures[1].args == ("x",)


def test_checkpoint_gives_back_what_was_saved(tmp_path):
    checkpoints.save({"weights": torch.arange(3), "epoch": 4}, tmp_path)
    state = checkpoints.load(tmp_path)
    assert state["epoch"] == 4
    assert state["weights"].tolist() == [0, 1, 2]


class Unsaveable:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        raise OSError(f"no space, with {[path.name for path in self.folder.glob('checkpoint_*')]} there")


def test_checkpoint_has_its_name_only_when_it_is_complete(tmp_path):
    with pytest.raises(OSError, match=r"with \[\] there"):
        checkpoints.save({"weights": torch.arange(3), "bad": Unsaveable(tmp_path)}, tmp_path / "checkpoint_1")
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_leaves_other_files_of_its_folder(tmp_path):
    (tmp_path / "other").write_text("kept")
    checkpoints.save({"epoch": 1}, tmp_path)
    checkpoints.save({"epoch": 2}, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", checkpoints.STATE_FILE]
    assert checkpoints.load(tmp_path)["epoch"] == 2


def test_drafts_of_a_killed_writer_are_removed_and_checkpoints_kept(tmp_path):
    checkpoints.save({"epoch": 1}, tmp_path / "checkpoint_1")
    (tmp_path / ".checkpoint_2.abc.draft").mkdir()
    checkpoints.remove_drafts(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_1"]


@pytest.fixture
def killed(tmp_path):
    """Return a stage with a checkpoint that Ray lists, one that a killed worker left, and one by another name."""
    names = [checkpoints.new_name(when) for when in (1.5, 2.5)]
    for name in (*names, "checkpoint_of_mine"):
        checkpoints.save({"epoch": 1}, tmp_path / name)
    listed = {"checkpoint_results": [{"checkpoint_dir_name": names[0], "metrics": {}}]}
    (tmp_path / checkpoints._LIST).write_text(json.dumps(listed))
    return tmp_path, *names


def folders(stage):
    return {path.name for path in stage.iterdir() if path.is_dir()}


def test_checkpoint_that_ray_did_not_hear_of_is_removed(killed):
    stage, listed, _ = killed
    checkpoints.remove_unheard(str(stage), listed)
    assert folders(stage) == {listed, "checkpoint_of_mine"}


@pytest.mark.parametrize("known", [None, "", '{"checkpoint_results": [{"checkpoint_dir_name": "NAME', '"NAME"', "{}"])
def test_no_checkpoint_is_removed_by_a_list_that_cannot_be_read(killed, known):
    stage, listed, _ = killed
    before = folders(stage)
    (stage / checkpoints._LIST).unlink()
    if known is not None:
        (stage / checkpoints._LIST).write_text(known.replace("NAME", listed))
    checkpoints.remove_unheard(str(stage), listed)
    assert folders(stage) == before


def test_no_checkpoint_is_removed_by_a_list_older_than_the_start(killed):
    stage, _, newer = killed
    before = folders(stage)
    checkpoints.remove_unheard(str(stage), newer)
    assert folders(stage) == before


def test_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NotFound, match="no state"):
        checkpoints.load(tmp_path)


def test_checkpoint_with_code_is_read_only_when_trusted(tmp_path):
    checkpoints.save({"place": Place("a", "b")}, tmp_path)
    with pytest.raises(ConfigError, match="trusted"):
        checkpoints.load(tmp_path)
    assert checkpoints.load(tmp_path, trusted=True)["place"].run == "a"


def test_result_of_a_run_stays_where_a_second_process_of_an_attempt_is_refused(tmp_path):
    stage, _ = stage_with_result(tmp_path, attempt=2)
    assert of_a_script(tmp_path, 2).returncode == 0
    whole = Path(stage.parent) / wire.RESULT_FILE
    whole.write_text("of a later stage")
    with pytest.raises(Conflict, match="second script"):
        stage.begin(TRAINING)
    assert whole.read_text() == "of a later stage"


def test_memory_kill_is_the_death_of_an_actor_and_travels():
    from raykube.inside.deaths import MemoryKill

    words = "1 worker(s) were killed due to the node running low on memory."
    kill = pickle.loads(pickle.dumps(MemoryKill(words)))
    assert isinstance(kill, ray.exceptions.OutOfMemoryError)
    assert isinstance(kill, ray.exceptions.RayActorError)
    assert (str(kill), kill.preempted) == (words, False)


#: Calls that fail as in a cluster, without one.
FAILING = """
import contextlib
from raykube.errors import Failure, RunFailed
from raykube.inside import joining, training, tuning

def fails(*_):
    raise RunFailed.of("a", Failure("LoopFailed", "ValueError: x (worker 1)"))

joining.connected = contextlib.nullcontext
training.require = tuning._hush = tuning._check = lambda *_: None
training.fit = tuning._search_and_conclude = fails

def loop(config):
    pass

"""


@pytest.mark.parametrize("call", ["training.train(loop)", "tuning.sweep(loop, {}, trials=1, metric='y', mode='min')"])
def test_call_that_fails_and_so_ends_its_script_leaves_why(tmp_path, call):
    environ = {wire.RUN_NAME: "a", wire.STORAGE: str(tmp_path), wire.TRACKING: "off"}
    assert finished(sys.executable, "-c", FAILING + call, **environ).returncode == wire.UNCAUGHT
    assert json.loads((tmp_path / "a" / wire.FAILURE_FILE).read_text())["message"] == "ValueError: x (worker 1)"


@pytest.mark.parametrize("call", ["training.train(loop)", "tuning.sweep(loop, {}, trials=1, metric='y', mode='min')"])
def test_first_call_of_a_process_says_its_run_and_folder(tmp_path, call):
    environ = {wire.RUN_NAME: "a", wire.STORAGE: str(tmp_path), wire.TRACKING: "off"}
    stage = f"{call[call.index('.') + 1 : call.index('(')]}-1"
    told = finished(sys.executable, "-c", FAILING + call, **environ).stdout
    assert told == f"raykube: run a, {stage}, files in {tmp_path}/a/{stage}\n"
