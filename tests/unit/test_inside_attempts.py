"""The module that makes a run's attempts in the head's pod, as a child process with its output in a file."""

import json
import os
import signal
import subprocess
import sys

import pytest

from raykube import wire

COUNT = "echo attempt $RAYKUBE_ATTEMPT; test $RAYKUBE_ATTEMPT = {last}"


@pytest.fixture
def storage(tmp_path):
    (tmp_path / "storage").mkdir()
    return tmp_path / "storage"


@pytest.fixture
def start(storage, tmp_path):
    """Return a function that starts the module, its output going to a log as in Ray's log folder."""
    number = iter(range(9))

    def start(command, retries=0, **environ):
        log = tmp_path / f"logs-{next(number)}" / "job-driver.log"
        log.parent.mkdir()
        words = [sys.executable, "-m", "raykube.inside.attempts", str(retries), command]
        environ = {wire.RUN_NAME: "a", wire.STORAGE: str(storage)} | environ
        with log.open("wb") as file:
            process = subprocess.Popen(
                words, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environ}, start_new_session=True
            )
        return process, log

    return start


@pytest.fixture
def finished(start):
    """Return a function that runs the module to its end, for the exit code, the log and what it tells readers."""

    def finish(command, retries=0, **environ):
        process, log = start(command, retries, **environ)
        code = process.wait(timeout=30)
        told = log.parent / wire.state_file("a")
        return code, log.read_text(), json.loads(told.read_text()) if told.exists() else {}

    return finish


def rows(storage):
    return [json.loads(line) for line in (storage / "a" / wire.ATTEMPTS_FILE).read_text().splitlines()]


def test_entrypoint_that_fails_is_run_again_with_the_next_number(finished, storage):
    code, log, told = finished(COUNT.format(last=3), retries=2)
    assert (code, log) == (0, "attempt 1\nattempt 2\nattempt 3\n")
    assert told["attempt"] == 3
    assert [row.get("reason") for row in rows(storage) if "ended" in row] == [
        "EntrypointFailed",
        "EntrypointFailed",
        "",
    ]


def test_exit_code_is_that_of_the_last_attempt(finished):
    assert finished("exit 3", retries=1)[0] == 3
    assert finished("kill -9 $$", RAYKUBE_ATTEMPT="5")[0] == 137


def test_log_is_kept_and_begins_the_next_submissions(finished, storage):
    finished("echo one; exit 1")
    code, log, told = finished("echo two", RAYKUBE_ATTEMPT="2")
    assert (code, log) == (0, "one\ntwo\n")
    assert (storage / "a" / wire.LOG_FILE).read_text() == "one\ntwo\n"
    assert (told["log_starts_at"], told["log_replayed"]) == (0, 4)


def test_attempt_whose_head_was_lost_counts(finished, start, storage):
    process, _ = start("echo begun; sleep 60", retries=1)
    while not (storage / "a" / wire.ATTEMPTS_FILE).exists():
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert finished(COUNT.format(last=2), retries=1)[0] == 0
    assert [row.get("reason") for row in rows(storage) if "ended" in row] == ["HeadLost", ""]


def test_run_without_retries_is_not_done_twice_when_its_head_was_lost(finished, storage):
    (storage / "a").mkdir()
    (storage / "a" / wire.ATTEMPTS_FILE).write_text('{"attempt": 1, "started": 1.0}\n')
    code, log, _ = finished("echo again")
    assert code == 1
    assert "no attempt is left" in log
    assert "again\n" not in log


def test_attempt_that_was_overtaken_ends(start, storage):
    process, log = start("sleep 60")
    path = storage / "a" / wire.ATTEMPTS_FILE
    while not path.exists():
        assert process.poll() is None
    path.write_text(path.read_text() + '{"attempt": 2, "started": 2.0}\n')
    assert process.wait(timeout=30) == 75
    assert "a later one has taken over" in log.read_text()


def test_deadline_ends_the_entrypoint_and_starts_no_other(start, storage):
    process, log = start("echo up; sleep 60", retries=3, RAYKUBE_TIMEOUT_S="1")
    assert process.wait(timeout=30) == 124
    assert log.read_text() == "up\nraykube: attempt 1 ends after 1 s (timeout_s)\n"
    assert [row["reason"] for row in rows(storage) if "ended" in row] == ["DeadlineExceeded"]


def test_stopped_attempt_is_not_followed_by_another(start, storage):
    process, log = start("trap 'exit 7' TERM; echo up; sleep 60 & wait", retries=3)
    while "up" not in log.read_text():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGTERM)  # as ``ray job stop`` does
    assert process.wait(timeout=30) == 7
    assert len([row for row in rows(storage) if "started" in row]) == 1


def test_storage_that_cannot_be_written_is_said(finished, tmp_path):
    (tmp_path / "file").touch()
    code, log, _ = finished("echo never", RAYKUBE_STORAGE=str(tmp_path / "file"))
    assert code == 1
    assert f"the storage {tmp_path / 'file'}/a cannot be used" in log
    assert "never" not in log


def test_ranks_are_left_to_readers_in_a_file_of_their_own(finished, storage, tmp_path):
    finished(f'echo \'[["node", "worker"]]\' > {storage}/a/ranks.json')
    assert json.loads((tmp_path / "logs-0" / wire.ranks_file("a")).read_text()) == [["node", "worker"]]


def test_result_and_metrics_are_told_to_readers(finished, storage):
    script = (
        f"mkdir -p {storage}/a/train-1 && echo '{{\"kind\": 1}}' > {storage}/a/result.json && "
        f'echo \'{{"metrics": {{"loss": 0.5}}}}\' > {storage}/a/train-1/metrics.jsonl && '
        f"echo x > {storage}/a/trouble.json"
    )
    _, _, told = finished(script)
    assert json.loads(told["result"]) == {"kind": 1}
    assert told["progress"] == {"loss": 0.5}
    assert told["trouble"] == "x\n"
