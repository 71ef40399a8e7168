"""What is kept of the output of a run's driver and training workers."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from raykube import wire
from raykube.inside import kept, outputs
from raykube.inside.noted import RunRecord
from raykube.inside.outputs import Printed
from tests.support import file_size_limited


@pytest.fixture
def sources(tmp_path):
    """Give a worker's two files, standard output first."""
    paths = (tmp_path / "worker-1.out", tmp_path / "worker-1.err")
    for path in paths:
        path.touch()
    return paths


def add(path, text):
    with path.open("a") as file:
        file.write(text)


def test_silence_is_told_by_the_clock_of_the_head_alone(tmp_path, monkeypatch):
    clock, log, metrics = [7.0], tmp_path / "logs" / "driver.log", tmp_path / "a" / "train-1" / wire.METRICS_FILE
    for path in (log, metrics):
        path.parent.mkdir(parents=True)
    log.touch()
    monkeypatch.setattr(outputs, "_own_output", lambda: log)
    monkeypatch.setattr(kept, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    run = kept.Kept(RunRecord("a", str(tmp_path / "a"), 1, 0))

    def quiet(after, line=""):
        clock[0] += after
        add(metrics, line)
        assert run.keep(1) is None
        return json.loads((log.parent / wire.state_file("a")).read_text())["quiet_s"]

    row = '{"time": %d, "metrics": {"loss": NaN}}\n'
    assert [quiet(90.0), quiet(0.0, row % 5)] == [0.0, 0.0]
    assert [quiet(59.0), quiet(90.0), quiet(0.0, row % 6)] == [0.0, 120.0, 0.0]


def test_output_is_kept_in_whole_lines_as_it_grows(sources, tmp_path):
    out, err = sources
    printed = Printed(sources, str(tmp_path / "train-1" / "rank-0.log"))
    add(out, ":job_id:01\n:actor_name:RayTrainWorker\none\ntw")
    printed.copy()
    add(err, "warned\n")
    add(out, "o\nlast")
    printed.copy()
    kept = tmp_path / "train-1" / "rank-0.log"
    assert kept.read_text() == "one\ntwo\nwarned\n"
    printed.copy(last=True)
    assert kept.read_text() == "one\ntwo\nwarned\nlast"


def test_worker_that_printed_nothing_leaves_an_empty_file_at_its_end(sources, tmp_path):
    printed, kept = Printed(sources, str(tmp_path / "rank-0.log")), tmp_path / "rank-0.log"
    add(sources[1], ":job_id:01\n")
    printed.copy()
    assert not kept.exists()
    printed.copy(last=True)
    assert kept.read_text() == ""
    before = kept.stat().st_mtime_ns
    printed.copy(last=True)
    assert kept.stat().st_mtime_ns == before, "what is there is not written again"


def test_output_of_a_later_start_follows_that_of_the_one_before(sources, tmp_path):
    target = tmp_path / "rank-0.log"
    target.write_text("first\n")
    add(sources[0], "second\n")
    Printed(sources, str(target)).copy()
    assert target.read_text() == "first\nsecond\n"


def test_output_that_is_too_much_ends_with_a_word_of_that(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "_MOST", 10)
    target = tmp_path / "rank-0.log"
    printed = Printed(sources, str(target))
    add(sources[0], "four\n" * 3)
    for _ in range(2):
        printed.copy()
        add(sources[0], "more\n")
    assert target.read_text() == "four\nfour\n" + outputs._FULL.decode()


def test_output_that_could_not_be_kept_is_kept_later(sources, tmp_path):
    target = tmp_path / "stage" / "rank-0.log"
    target.parent.write_text("not a folder")
    printed = Printed(sources, str(target))
    add(sources[0], "one\n")
    assert outputs._try_copy(printed, str(target), failing=False)
    target.parent.unlink()
    add(sources[0], "two\n")
    assert not outputs._try_copy(printed, str(target), failing=True)
    assert target.read_text() == "one\ntwo\n"


def test_output_of_which_the_disk_took_a_part_is_kept_whole_later(sources, tmp_path):
    target = tmp_path / "rank-0.log"
    printed = Printed(sources, str(target))
    add(sources[0], "".join(f"line {number:03}\n" for number in range(40)))
    with file_size_limited(100):
        assert outputs._try_copy(printed, str(target), failing=False)
    assert target.stat().st_size == 100
    add(sources[0], "last\n")
    printed.copy(last=True)
    assert target.read_text() == sources[0].read_text()


#: In a process whose output is a file, as a driver's is: `grow` has more of it, `peak` tells what a block held at most.
DRIVER = """
import os, sys, tracemalloc
from contextlib import contextmanager
from raykube.inside import outputs
from raykube.inside.storage import upload, size
run = sys.argv[1]
driver = outputs.Driver(run)
def grow(mib): os.ftruncate(1, os.fstat(1).st_size + mib * 2**20)
def kept(): return size(run + "/driver.log") // 2**20
upload(run + "/other", [b"x"])  # pyarrow is imported before anything is measured
@contextmanager
def peak(mib):
    tracemalloc.start()
    yield
    assert tracemalloc.get_traced_memory()[1] < mib * 2**20, tracemalloc.get_traced_memory()
    tracemalloc.stop()
"""


@pytest.fixture
def driver(tmp_path):
    """Return a function that runs lines in a process with a driver's output, of which a bucket has a copy."""

    def run(lines):
        words = [sys.executable, "-c", DRIVER + lines, (tmp_path / "run").as_uri()]
        with (tmp_path / "driver.log").open("wb") as file:
            done = subprocess.run(words, stdout=file, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr

    return run


def test_log_is_kept_in_a_bucket_without_being_held_in_memory(driver):
    driver("grow(64)\nwith peak(4): driver.keep()\nassert kept() == 64")


def test_log_of_earlier_attempts_is_printed_again_without_what_was_before_its_end(driver):
    driver(
        "upload(run + '/driver.log', (b'x' * 2**20 for _ in range(64)))\n"
        "with peak(20): driver.replay()\n"
        "driver.keep()\n"
        "assert (driver.replayed, kept()) == (16 * 2**20, 16)"
    )


def test_log_that_is_long_is_kept_in_a_bucket_less_often_and_at_the_end(driver):
    driver(
        "driver.keep(); grow(64); driver.keep()\n"
        "assert kept() == 64, 'a short one is kept each time'\n"
        "grow(1); driver.keep()\n"
        "assert kept() == 64\n"
        "driver.keep(last=True)\n"
        "assert kept() == 65"
    )
