"""The module that makes a run's attempts in the head's pod, as a child process with its output in a file."""

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raykube import wire
from raykube.backends import endings

COUNT = "echo attempt $RAYKUBE_ATTEMPT; test $RAYKUBE_ATTEMPT = {last}"
#: How pods run the module, and how tests do: with other pauses, which make no difference but to how long they take.
AS_IN_PODS = ("-m", "raykube.inside.attempts")
WITH_PAUSES = """
import json, sys
from raykube.inside import attempts
vars(attempts).update(json.loads(sys.argv.pop(1)))
sys.exit(attempts.main(int(sys.argv[1]), sys.argv[2]))
"""
QUICK = {"_LOOK_S": 0.05}


@pytest.fixture
def storage(tmp_path):
    (tmp_path / "storage").mkdir()
    return tmp_path / "storage"


@pytest.fixture
def start(storage, tmp_path):
    """Return a function that starts the module, its output going to a log as in Ray's log folder."""
    started = []

    def start(command, retries=0, pauses=QUICK, **environ):
        log = tmp_path / f"logs-{len(started)}" / "job-driver.log"
        log.parent.mkdir()
        module = ("-c", WITH_PAUSES, json.dumps(pauses)) if pauses else AS_IN_PODS
        words = [sys.executable, *module, str(retries), command]
        environ = {wire.RUN_NAME: "a", wire.STORAGE: str(storage)} | environ
        with log.open("wb") as file:
            process = subprocess.Popen(
                words, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environ}, start_new_session=True
            )
        started.append(process)
        return process, log

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):  # the entrypoint may outlive the module
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def finished(start):
    """Return a function that runs the module to its end, for the exit code, the log and what it tells readers."""

    def finish(command, retries=0, **how):
        process, log = start(command, retries, **how)
        code = process.wait(timeout=30)
        told = log.parent / wire.state_file("a")
        return code, log.read_text(), json.loads(told.read_text()) if told.exists() else {}

    return finish


def rows(storage):
    return [json.loads(line) for line in (storage / "a" / wire.ATTEMPTS_FILE).read_text().splitlines()]


def wait_until(fact, process):
    while not fact():
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)


def begun(process, storage):
    """Return the file of attempts, once there is one."""
    path = storage / "a" / wire.ATTEMPTS_FILE
    wait_until(path.exists, process)
    return path


def kept(storage):
    path = storage / "a" / wire.LOG_FILE
    return path.read_text() if path.exists() else ""


def unreadable(path):
    (path.parent / "broken").symlink_to(".")
    (path.parent / "broken").replace(path)


def torn(path):
    (path.parent / "broken").write_text(path.read_text()[:20])
    (path.parent / "broken").replace(path)


def limit_files(process, size=None):
    """Have it fail to write beyond a size, as on a full volume, or no longer."""
    _, most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most if size is None else size, most))


def breaking(storage):
    """Return a command that has the file of attempts there and yet not to be opened: a link that leads nowhere else."""
    return f"(cd {storage}/a && cp attempts.jsonl whole && ln -s loop loop && cp -P loop x && mv -T x attempts.jsonl)"


def mending(storage):
    return f"mv -T {storage}/a/whole {storage}/a/attempts.jsonl"


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
    begun(process, storage)
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


def submission(name):
    """Return what Ray sets for the driver of a submission."""
    return {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"metadata": {"job_submission_id": name}})}


def test_attempt_of_a_submission_that_was_deleted_takes_no_retry_of_the_next(finished, start, storage):
    process, _ = start("sleep 60", **submission("first"))
    begun(process, storage)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    code, log, _ = finished("echo again", **submission("second"))
    assert (code, log) == (0, "again\n")
    assert [row["attempt"] for row in rows(storage) if "started" in row] == [1, 2]


def test_submission_has_all_its_retries_however_many_attempts_were_before(finished, storage):
    finished("exit 1", retries=2, **submission("first"))
    finished("exit 1", retries=2, RAYKUBE_ATTEMPT="2", **submission("second"))
    assert [row["attempt"] for row in rows(storage) if "started" in row] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("retries", [0, 1])
def test_submission_that_ended_well_is_not_run_again_when_its_head_is_lost(finished, storage, retries):
    finished("echo work", retries, **submission("first"))
    code, log, told = finished("echo again", retries, **submission("first"))
    assert (code, log.splitlines()[0], len(log.splitlines()), told["attempt"]) == (0, "work", 2, 1)
    assert [(row["attempt"], row.get("exit_code")) for row in rows(storage)] == [(1, None), (1, 0)]


def test_submission_under_the_name_of_one_that_ended_well_runs(finished):
    finished("echo work", **submission("first"))
    code, log, told = finished("echo again", **submission("second"))
    assert (code, log, told["attempt"]) == (0, "work\nagain\n", 2)


def test_attempt_that_was_overtaken_ends(start, storage):
    process, log = start("sleep 60")
    path = begun(process, storage)
    path.write_text(path.read_text() + '{"attempt": 2, "started": 2.0}\n')
    assert process.wait(timeout=30) == 75
    assert "a later one has taken over" in log.read_text()


def test_deadline_ends_the_entrypoint_and_starts_no_other(start, storage):
    process, log = start("echo up; sleep 60", retries=3, RAYKUBE_TIMEOUT_S="1")
    assert process.wait(timeout=30) == 124
    assert log.read_text() == "up\nraykube: attempt 1 ends after 1 s (timeout_s)\n"
    assert [row["reason"] for row in rows(storage) if "ended" in row] == ["DeadlineExceeded"]


def test_deadline_ends_an_entrypoint_that_does_not_listen(start, storage):
    process, _ = start("trap '' TERM; sleep 60", pauses=QUICK | {"_END_S": 0.2}, RAYKUBE_TIMEOUT_S="1")
    assert process.wait(timeout=30) == -signal.SIGKILL
    assert [row["reason"] for row in rows(storage) if "ended" in row] == ["DeadlineExceeded"]


def test_deadline_ends_the_entrypoint_while_the_storage_gives_no_answer(start, storage):
    """A pipe that nobody writes to takes the place of a file: who opens it waits."""
    script = f"mkfifo {storage}/a/{wire.TROUBLE_FILE}; exec sleep 60"
    process, _ = start(script, pauses=QUICK | {"_JOIN_S": 0.2}, RAYKUBE_TIMEOUT_S="2")
    assert process.wait(timeout=30) == 124
    assert [row["reason"] for row in rows(storage) if "ended" in row] == ["DeadlineExceeded"]


@pytest.mark.parametrize("code", [0, 3])
def test_deadline_leaves_alone_what_has_ended_while_the_storage_gives_no_answer(start, storage, code):
    """A pipe takes the place of the file of attempts: who reads it waits for a writer."""
    script = f"cd {storage}/a && mkfifo pipe && mv attempts.jsonl whole && ln pipe attempts.jsonl; exit {code}"
    process, log = start(script, RAYKUBE_TIMEOUT_S="1")
    path = storage / "a" / wire.ATTEMPTS_FILE
    wait_until(path.is_fifo, process)
    wait_until(lambda: len([*Path(f"/proc/{process.pid}/task").iterdir()]) == 2, process)  # the timer's thread is gone
    (storage / "a" / "whole").replace(path)
    os.close(os.open(storage / "a" / "pipe", os.O_WRONLY | os.O_NONBLOCK))
    assert (process.wait(timeout=30), log.read_text()) == (code, "")
    assert [row["exit_code"] for row in rows(storage) if "ended" in row] == [code]


def test_stopped_attempt_is_not_followed_by_another(start, storage):
    process, log = start("trap 'exit 7' TERM; echo up; sleep 60 & wait", retries=3)
    wait_until(lambda: "up" in log.read_text(), process)
    os.killpg(process.pid, signal.SIGTERM)  # as ``ray job stop`` does
    assert process.wait(timeout=30) == 7
    assert len([row for row in rows(storage) if "started" in row]) == 1


def test_storage_that_cannot_be_written_is_said(finished, tmp_path):
    (tmp_path / "file").touch()
    code, log, _ = finished("echo never", RAYKUBE_STORAGE=str(tmp_path / "file"))
    assert code == 1
    assert f"the storage {tmp_path / 'file'}/a cannot be used" in log
    assert "never" not in log


def test_storage_of_a_kind_that_is_not_known_is_said(finished):
    code, log, _ = finished("echo never", RAYKUBE_STORAGE="foo://bucket/runs")
    assert (code, len(log.splitlines())) == (1, 1)
    assert "the storage foo://bucket/runs/a cannot be used" in log


def test_file_of_attempts_that_is_torn_is_said(finished, storage):
    (storage / "a").mkdir()
    (storage / "a" / wire.ATTEMPTS_FILE).write_text('{"attempt": 1, "star')
    code, log, _ = finished("echo never")
    assert (code, len(log.splitlines())) == (1, 1)
    assert f"{storage}/a/{wire.ATTEMPTS_FILE} is torn" in log
    assert "may write" not in log


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


@pytest.mark.parametrize("damage", [unreadable, torn])
def test_look_that_fails_is_followed_by_others(start, storage, tmp_path, damage):
    script = f"for word in one two; do until test -e {tmp_path}/$word; do sleep 0.02; done; echo $word; done; sleep 20"
    process, _ = start(script)
    path = begun(process, storage)
    whole = path.read_text()
    damage(path)
    for word in ("one", "two"):  # the second one is kept by a look after one that has failed
        (tmp_path / word).touch()
        wait_until(lambda word=word: word in kept(storage), process)
    (tmp_path / "whole").write_text(whole + '{"attempt": 2, "started": 2.0}\n')
    (tmp_path / "whole").replace(path)
    assert process.wait(timeout=30) == 75


def test_deadline_ends_the_entrypoint_while_nothing_can_be_written(start, storage, tmp_path):
    script = f"trap 'touch {tmp_path}/cut; exit' TERM; sleep 20 & wait"
    process, log = start(script, retries=3, RAYKUBE_TIMEOUT_S="1")
    begun(process, storage)
    limit_files(process, 0)
    wait_until((tmp_path / "cut").exists, process)
    limit_files(process)
    assert process.wait(timeout=30) == 124
    assert log.read_text() == ""
    assert [row["reason"] for row in rows(storage) if "ended" in row] == ["DeadlineExceeded"]


def test_end_that_cannot_be_noted_is_said_once_and_changes_no_exit_code(finished, storage):
    code, log, _ = finished(breaking(storage), pauses=QUICK | {"_INSIST_S": 0.5})
    assert code == 0
    assert log.startswith(f"raykube: how the run ended could not all be kept in {storage}/a: OSError")
    assert len(log.splitlines()) == 1


def test_end_that_cannot_be_noted_takes_no_retry_and_is_noted_with_the_next(finished, storage):
    script = (
        f"echo $RAYKUBE_ATTEMPT; test $RAYKUBE_ATTEMPT = 2 && {mending(storage)} || {{ {breaking(storage)}; exit 3; }}"
    )
    code, log, _ = finished(script, retries=1)
    assert (code, log) == (0, "1\n2\n")
    assert [(row["attempt"], row.get("reason")) for row in rows(storage)] == [
        (1, None),
        (1, "EntrypointFailed"),
        (2, None),
        (2, ""),
    ]


def test_metrics_of_another_program_are_not_told(finished, storage):
    code, _, told = finished(f"mkdir {storage}/a/b && echo '{{\"loss\": 1}}' > {storage}/a/b/{wire.METRICS_FILE}")
    assert (code, told["progress"]) == (0, {})


def test_log_is_kept_once_when_the_run_ends_while_it_is_copied(start, storage, tmp_path):
    """A pipe takes the place of the kept log: it tells when the copy has begun, and holds it up while nobody reads.

    The pauses are those of pods: the first look is to find all that is printed.
    """
    target = storage / "a" / wire.LOG_FILE
    process, log = start(
        f"mkfifo {tmp_path}/pipe && mv {tmp_path}/pipe {target} && head -c 300000 /dev/zero | tr '\\0' x;"
        f"until test -e {tmp_path}/go; do sleep 0.02; done",
        pauses={},
    )
    wait_until(target.is_fifo, process)
    pipe = os.open(target, os.O_RDONLY | os.O_NONBLOCK)
    assert select.select([pipe], [], [], 30)[0]
    (tmp_path / "go").touch()
    wait_until(lambda: "ended" in rows(storage)[-1], process)
    os.set_blocking(pipe, True)
    text = b""
    while process.poll() is None:
        text += os.read(pipe, 2**16)
    text += os.read(pipe, 2**20)
    os.close(pipe)
    assert text == log.read_bytes()


def test_log_is_kept_once_when_the_volume_took_a_part_of_it(start, storage, tmp_path):
    process, log = start(
        f"until test -e {tmp_path}/go; do sleep 0.02; done; ulimit -S -f unlimited;"
        f"head -c 100000 /dev/zero | tr '\\0' x; until test -e {tmp_path}/space; do sleep 0.02; done"
    )
    begun(process, storage)
    limit_files(process, 70000)
    (tmp_path / "go").touch()
    wait_until(lambda: len(kept(storage)) == 70000, process)
    limit_files(process)
    (tmp_path / "space").touch()
    assert process.wait(timeout=30) == 0
    assert kept(storage) == log.read_text()


def of_work(work):
    return {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"metadata": {"job_submission_id": work, "raykube.work": work}})}


def test_folder_of_other_work_is_neither_gone_on_with_nor_written_to(finished, storage):
    assert finished("echo mine", **of_work("one"))[0] == 0
    before = rows(storage), kept(storage)
    code, log, told = finished("echo yours", 2, **of_work("two"))
    assert (code, "yours" in log, "mine" in log, told) == (1, False, False, {})
    assert endings.ending(f"Job entrypoint command failed with exit code 1\n{log}").reason == "NameTaken"
    assert (rows(storage), kept(storage)) == before


def failing(storage, attempt="$RAYKUBE_ATTEMPT", code=1, time="$(date +%s.%N)"):
    """Return a command that ends as a script does that train has failed, with an exit code."""
    note = f'{{"time": {time}, "attempt": {attempt}, "reason": "LoopFailed", "message": "bad", "next_step": "look"}}'
    return f"echo {json.dumps(note)} > {storage}/a/{wire.FAILURE_FILE}; exit {code}"


def test_failure_that_ended_an_attempt_is_noted_and_the_last_one_is_the_last_line(finished, storage):
    code, log, _ = finished(failing(storage), retries=1)
    assert (code, log) == (1, "raykube: attempt 2 failed: LoopFailed: bad (next: look)\n")
    assert [(row["reason"], row["message"]) for row in rows(storage) if "ended" in row] == 2 * [("LoopFailed", "bad")]
    message = f"Job entrypoint command failed with exit code 1, last available logs:\n{log}"
    told = endings.ending(message)
    assert (told.reason, told.message, told.exit_code, told.next_step) == ("LoopFailed", "bad", 1, "look")
    assert told.tail == tuple(log.splitlines())


@pytest.mark.parametrize("how", [{"attempt": 7}, {"code": 3}, {"time": 5}])
def test_failure_of_another_attempt_or_end_is_not_that_of_this(finished, storage, how):
    _, log, _ = finished(failing(storage, **how))
    assert (log, rows(storage)[-1]["reason"]) == ("", "EntrypointFailed")


def test_failure_of_an_earlier_submission_is_not_the_last_line_of_a_later_one(finished, storage):
    finished(failing(storage))
    _, log, _ = finished("exit 1", RAYKUBE_ATTEMPT="2")
    assert log.splitlines()[1:] == ["raykube: attempt 2 begins"]
    assert rows(storage)[-1]["reason"] == "EntrypointFailed"
