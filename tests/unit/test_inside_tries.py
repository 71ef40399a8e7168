"""Which try of a training comes after one that failed."""

import json

import pytest

from raykube.inside import checkpoints
from raykube.inside.failures import LoopError, explain, mark
from raykube.inside.tries import Tries

MOST = 3


def raised(words, line=7, kind=RuntimeError):
    error = kind(words)
    mark(error, f'Traceback\n  File "/a/job.py", line {line}, in loop\n    x\n{kind.__name__}: {words}')
    return error


def lost(words="The actor is dead because of x", *, preempted=False):
    error = type("Lost", (Exception,), {"__module__": "ray.exceptions"})(words)
    error.preempted = preempted
    return error


class Training:
    """One whose tries fail as told."""

    def __init__(self, path):
        self.tries = Tries(str(path), "train-1", MOST)

    def fails(self, *failures, saved=0):
        self.tries.begin()
        for _ in range(saved):
            self.tries.save()
        return self.tries.end(dict(enumerate(failures)))


@pytest.fixture
def training(tmp_path):
    return Training(tmp_path)


@pytest.mark.parametrize("kind", [RuntimeError, MemoryError, FileNotFoundError])
def test_error_that_comes_again_ends_the_training(training, kind):
    ends = [training.fails(raised("shapes cannot be multiplied", kind=kind)) for _ in range(2)]
    assert ends == [False, True]


def test_error_of_other_words_or_another_line_is_another(training):
    errors = [raised("a"), raised("b"), raised("b", line=8), raised("a")]
    assert [training.fails(error) for error in errors] == [False] * 4


@pytest.mark.parametrize(
    "error",
    [
        raised("CUDA error: an illegal memory access was encountered"),
        raised("CUDA out of memory. Tried to allocate 2.00 GiB."),
        raised("NCCL error in: x.cpp:1, unhandled system error"),
        raised("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"),
        raised("Connection reset by peer", kind=ConnectionResetError),
        raised("the store did not answer", kind=TimeoutError),
        raised("Stale file handle", kind=OSError),
        lost(),
    ],
    ids=str,
)
def test_error_of_a_device_a_connection_or_a_lost_worker_keeps_all_its_retries(training, error):
    assert [training.fails(error) for _ in range(MOST + 1)] == [False] * 4


def test_error_beside_a_lost_worker_keeps_its_retries(training):
    assert [training.fails(raised("no answer of rank 1"), lost()) for _ in range(2)] == [False, False]


def test_error_after_more_progress_than_before_is_not_the_same(training):
    assert [training.fails(raised("a"), saved=saved) for saved in (5, 3, 2)] == [False, False, False]


@pytest.mark.parametrize("saved", [(5, 0), (1, 1)])
def test_error_of_a_step_that_no_try_gets_past_ends_the_training(training, saved):
    assert [training.fails(raised("a"), saved=each) for each in saved] == [False, True]


def test_try_that_ray_tells_of_again_has_failed_once(training, caplog):
    training.fails(raised("a"))
    assert training.tries.end({0: raised("a")}) is False
    assert len(caplog.messages) == 1


def test_restart_is_logged_with_what_failed_and_which_try_comes(training, caplog, tmp_path):
    training.fails(raised("a\nb"))
    listed = {"checkpoint_results": [], "latest_checkpoint_result": {"checkpoint_dir_name": "checkpoint_1"}}
    (tmp_path / checkpoints._LIST).write_text(json.dumps(listed))
    training.fails(lost("The actor is dead", preempted=True))
    training.tries.fail({-1: lost()})
    training.fails(lost())
    training.fails(lost())
    assert caplog.messages == [
        "train-1 starts again from the beginning (retry 1 of 3): worker 0, /a/job.py line 7: RuntimeError: a",
        "train-1 starts again from checkpoint_1 (not counted: its node was taken away): worker 0: The actor is dead",
        "train-1 starts again from checkpoint_1 (retry 2 of 3): a worker, at its start: The actor is dead because of x",
        "train-1 starts again from checkpoint_1 (retry 3 of 3): worker 0: The actor is dead because of x",
    ]


def test_error_of_a_rank_is_told_before_the_connections_that_it_broke():
    failure, _ = explain(LoopError({0: raised("Connection closed by peer"), 1: raised("shapes")}))
    assert failure.message == "RuntimeError: shapes (worker 1, /a/job.py line 7)"
