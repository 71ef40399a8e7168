"""What is kept of a training worker's output."""

import pytest

from raykube.inside import outputs
from raykube.inside.outputs import Printed


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
    assert outputs._copied(printed, str(target), failing=False)
    target.parent.unlink()
    add(sources[0], "two\n")
    assert not outputs._copied(printed, str(target), failing=True)
    assert target.read_text() == "one\ntwo\n"
