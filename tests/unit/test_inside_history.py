import math
import threading

import pytest

from raykube import wire
from raykube.inside import history
from raykube.inside.history import (
    Follower,
    Narrator,
    Recorder,
    describe,
    following,
    heal,
    rows,
)
from raykube.inside.scalars import scalars
from raykube.inside.scores import as_reported, is_number, scored
from tests.support import Later, file_size_limited

torch = Later("torch")


def test_recorder_writes_every_row_in_order(tmp_path):
    recorder = Recorder(str(tmp_path / "deep" / "m.jsonl"), attempt=2)
    for step in range(1000):
        recorder.add({"step": step}, "checkpoint_1" if step == 500 else None)
    recorder.close()
    rows = list(wire.read_rows(tmp_path / "deep" / "m.jsonl"))
    assert [row["metrics"]["step"] for row in rows] == list(range(1000))
    assert rows[500]["checkpoint"] == "checkpoint_1"
    assert {row["attempt"] for row in rows} == {2}


def test_recorder_loses_no_row_that_is_added_while_it_writes(tmp_path):
    recorder = Recorder(str(tmp_path / "m.jsonl"), attempt=1)
    flushes = threading.Thread(target=lambda: [recorder.flush() for _ in range(200)])
    flushes.start()
    for step in range(20_000):
        recorder.add({"step": step})
    flushes.join()
    recorder.close()
    assert [row["metrics"]["step"] for row in wire.read_rows(tmp_path / "m.jsonl")] == list(range(20_000))


def test_recorder_writes_by_itself(tmp_path):
    recorder = Recorder(str(tmp_path / "m.jsonl"), attempt=1)
    arrived = threading.Event()
    follower = Follower([str(tmp_path / "m.jsonl")], [lambda _: arrived.set()])
    follower.start()
    recorder.add({"step": 1})
    assert arrived.wait(10)
    follower.stop()
    recorder.close()


def test_recorder_that_cannot_write_lets_training_go_on(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    recorder = Recorder(str(tmp_path / "file" / "m.jsonl"), attempt=1)
    recorder.add({"step": 1})
    recorder.flush()
    recorder.add({"step": 2})
    recorder.close()
    assert caplog.text.count("cannot be written now") == 1


def test_rows_that_a_full_storage_took_in_part_are_whole_when_there_is_room_again(tmp_path, caplog):
    path = tmp_path / "m.jsonl"
    recorder = Recorder(str(path), attempt=1)
    with file_size_limited(100):
        for step in range(5):
            recorder.add({"step": step})
        recorder.flush()
        taken = path.read_bytes()
    recorder.add({"step": 5})
    recorder.close()
    assert len(taken) == 100
    assert not taken.endswith(b"\n")
    assert [row["metrics"]["step"] for row in wire.read_rows(path)] == list(range(6))
    assert caplog.text.count("cannot be written now") == 1


def test_row_that_cannot_be_written_is_the_only_one_that_is_lost(tmp_path, caplog):
    recorder = Recorder(str(tmp_path / "m.jsonl"), attempt=1)
    for metrics in ({"step": 1}, {"step": 10**5000}, {"step": 2}, {(0, 1): 1}, {"step": 3}):
        recorder.add(metrics)
    recorder.flush()
    recorder.add({"step": 4})
    recorder.close()
    assert steps(rows(str(tmp_path / "m.jsonl"))) == [1, 2, 3, 4]
    assert caplog.text.count("a row is left out") == 1
    assert "2 rows are missing" in caplog.text


def test_rows_beyond_what_is_kept_are_counted(tmp_path, caplog, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(history, "_UNSENT_MAX", 100)
    recorder = Recorder(str(tmp_path / "file" / "m.jsonl"), attempt=1)
    for step in range(5):
        recorder.add({"step": step})
        recorder.flush()
    recorder.close()
    assert caplog.text.count("rows are lost from now on") == 1
    assert "3 rows are missing" in caplog.text


def test_half_a_line_of_a_killed_writer_is_cut_off(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"a": 1}\n{"a"')
    heal(path)
    assert path.read_text() == '{"a": 1}\n'


def test_follower_hands_on_only_new_rows_and_all_of_them(tmp_path):
    path = str(tmp_path / "m.jsonl")
    old = Recorder(path, attempt=1)
    old.add({"step": 0})
    old.close()
    found = []
    follower = Follower([path], [found.extend])
    follower.start()
    new = Recorder(path, attempt=2)
    for step in range(1, 4):
        new.add({"step": step})
    new.close()
    follower.stop()
    assert [row["metrics"]["step"] for row in found] == [1, 2, 3]


def recorded(path, *steps):
    recorder = Recorder(path, attempt=2)
    for step in steps:
        recorder.add({"step": step})
    recorder.close()


def steps(found):
    return [row["metrics"]["step"] for row in found]


def test_follower_begins_at_the_row_after_half_a_line_of_a_killed_writer(tmp_path):
    path = tmp_path / "m.jsonl"
    recorded(str(path), 0)
    with path.open("a") as file:
        file.write('{"time": 1, "metr')
    found = []
    with following([str(path)], [found.extend]) as follower:
        recorded(str(path), 1, 2)
    assert (steps(found), follower.troubles) == ([1, 2], ())
    assert steps(rows(str(path))) == [0, 1, 2]


def test_follower_goes_on_once_its_storage_can_be_read_again(tmp_path, caplog):
    path, found, warned = tmp_path / "m.jsonl", [], threading.Event()
    follower = Follower([str(path)], [found.extend])
    path.mkdir()  # which is no file that can be read
    caplog.handler.addFilter(lambda _: warned.set() or True)
    follower.start()
    assert warned.wait(10)
    path.rmdir()
    recorded(str(path), 1)
    follower.stop()
    assert (steps(found), follower.troubles) == ([1], ())
    assert caplog.text.count("read later") == 1


def test_follower_that_pauses_while_its_storage_cannot_be_read_reads_that_later(tmp_path, caplog):
    path, found = tmp_path / "m.jsonl", []
    follower = Follower([str(path)], [found.extend])
    path.mkdir()  # which is no file that can be read
    follower.start()
    follower.pause()
    assert not follower.is_reading
    path.rmdir()
    recorded(str(path), 1)
    follower.start()
    follower.stop()
    assert (steps(found), follower.troubles, "not followed" in caplog.text) == ([1], (), False)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_follower_tells_the_row_that_ended_it_and_not_an_earlier_silence_of_its_storage(tmp_path):
    path = tmp_path / "m.jsonl"
    follower = Follower([str(path)], [])
    path.mkdir()  # which is no file that can be read
    follower.start()
    follower.pause()
    path.rmdir()
    path.write_text("no row\n")
    follower.start()
    follower.stop()
    assert "JSONDecodeError" in follower.troubles[0]


def test_follower_reads_all_files_of_a_stage(tmp_path):
    paths, found = [str(tmp_path / name) for name in ("m.jsonl", "m.jsonl.plain")], []
    with following(paths, [found.extend]):
        for step, path in enumerate(paths):
            recorded(path, step)
    assert sorted(steps(found)) == [0, 1]


def test_follower_hands_on_the_rows_of_two_files_by_their_time(tmp_path):
    paths, found = [str(tmp_path / name) for name in ("m.jsonl", "m.jsonl.plain")], []
    follower = Follower(paths, [found.extend])
    for step, path in enumerate(reversed(paths)):
        recorded(path, step)
    follower.start()
    follower.stop()
    assert steps(found) == [0, 1]


def test_narrator_says_every_checkpoint_and_otherwise_one_row_a_second(caplog):
    caplog.set_level("INFO", "raykube")
    narrator = Narrator("trial a")
    told = [{"metrics": {"step": step}, "checkpoint": "c" if step == 3 else None} for step in range(5)]
    narrator(told[:2])
    assert narrator._next > 0
    narrator._next = math.inf  # of the second that is not over yet
    narrator(told[2:])
    narrator._next = 0.0
    narrator(told[4:])
    assert caplog.messages == ["trial a step 1", "trial a step 3 (checkpoint)", "trial a step 4"]


@pytest.mark.parametrize("value", [None, "0.5", float("nan"), float("inf"), float("-inf")])
def test_metric_that_is_no_number_is_the_worst_for_ray_and_none_for_us(value):
    metrics = {"loss": 1.0, "val": value}
    assert scored(metrics, "val", "max")["val"] < -(10**300)
    assert scored(metrics, "val", "min")["val"] > 10**300
    for mode in ("min", "max"):
        assert not is_number(scored(metrics, "val", mode)["val"])
        reported = as_reported(scored(metrics, "val", mode), "val")
        assert {name: str(value) for name, value in reported.items()} == (
            {"loss": "1.0", "val": "nan"} if isinstance(value, float) else {"loss": "1.0"}
        )
        assert as_reported({"val": math.inf}, "val") == {"val": math.inf}  # not scored: without a checkpoint
        assert scored({"val": 0.5}, "val", mode) == {"val": 0.5}
        assert scored(metrics, None, mode) is metrics


def test_number_of_any_size_can_be_compared():
    assert is_number(10**400 // 10**200)
    assert not is_number(10**400)  # of no float


def test_recorder_keeps_what_can_be_read_where_a_device_has_failed(tmp_path, caplog):
    recorder = Recorder(str(tmp_path / "m.jsonl"), 1)
    recorder.add({"step": 1})
    for step in (2, 3):
        recorder.add(scalars({"step": step, "loss": torch.zeros((), device="meta")}, defer=True))
    recorder.close()
    assert [row["metrics"] for row in rows(str(tmp_path / "m.jsonl"))] == [{"step": 1}, {"step": 2}, {"step": 3}]
    (said,) = caplog.messages
    assert said.startswith("left out where they cannot be read from their device: loss: ")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_follower_whose_sink_fails_says_so(tmp_path):
    def sink(rows):
        raise KeyError(rows[0]["metrics"]["step"])

    path = str(tmp_path / "m.jsonl")
    with following([path], [sink]) as follower:
        recorder = Recorder(path, attempt=1)
        recorder.add({"step": 17})
        recorder.close()
    (trouble,) = follower.troubles
    assert "KeyError: 17" in trouble


def test_row_reads_as_words():
    row = {"metrics": {"step": 120, "loss": 0.0312345}, "checkpoint": "checkpoint_1"}
    assert describe(row) == "step 120 loss 0.03123 (checkpoint)"


def test_rows_leave_out_what_is_none(tmp_path):
    (tmp_path / "m.jsonl").write_text('\0\0\n\n[1]\n{"metrics": {"step": 1}}\n{\n')
    assert rows(str(tmp_path / "m.jsonl")) == [{"metrics": {"step": 1}}]
