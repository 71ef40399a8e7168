"""What every backend must do. A backend's own test module subclasses this and gives the fixture `place`."""

import contextlib
import json
import shlex
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

import raykube as rk
from raykube import api
from raykube.errors import Conflict, NotFound, RunStopped, WaitTimeout
from raykube.names import MAX_NAME
from tests.support import run

WAIT_S = 120


def output(run, **kwargs):
    """Return the script's own lines of a run's log: Ray writes a line before and after its runtime environment."""
    rays = ("Runtime env is setting up", "Running entrypoint for job")
    return (line for line in run.logs(**kwargs) if not any(words in line for words in rays))


def write_scripts(folder):
    """Write a few scripts into a working directory, and return it."""
    (folder / "hello.py").write_text("import sys\nfor n in range(3): print('line', n)\nprint(sys.argv[1:])\n")
    (folder / "fails.py").write_text("import sys\nfor n in range(30): print('line', n)\nsys.exit(3)\n")
    (folder / "sleeps.py").write_text("import time\nprint('started', flush=True)\ntime.sleep(600)\n")
    return folder


def job(script, *args, name="", **fields):
    """Return a job that runs a script; by default of a name as long as may be: KubeRay shortens what is longer."""
    name = name or f"c-{uuid.uuid4().hex[:8]}-".ljust(MAX_NAME, "x")
    return rk.Job(entrypoint=" ".join(["python", script, *args]), name=name, **fields)


@dataclass(frozen=True)
class Ended:
    """A run that has ended well.

    Attributes:
        job: what was submitted.
        waited: what waiting for it returned.
        states: those that who waited was told.
    """

    job: rk.Job
    run: rk.Run
    waited: rk.Run
    states: tuple


class BackendContract:
    """Facts about runs that hold on every place."""

    @pytest.fixture(scope="class")
    @classmethod
    def own_place(cls):
        """Return where a run has a cluster of its own, if it can; given by each backend's subclass."""
        pytest.fail("the subclass gives this fixture")

    @pytest.fixture
    def place(self):
        """Return the Cluster to run on; given by each backend's subclass."""
        pytest.fail("the subclass gives this fixture")

    @pytest.fixture
    def code(self, tmp_path):
        """Return a working directory with a few scripts."""
        return write_scripts(tmp_path)

    @pytest.fixture(scope="class")
    @classmethod
    def forget(cls):
        """Return a function that deletes a run after its test."""
        return lambda run: run.delete()

    @pytest.fixture
    def submit(self, place, code, forget):
        """Return a function that submits a script of `code`; its runs are deleted afterwards."""
        names = []

        def submit(script, *args, **fields):
            asked = job(script, *args, working_dir=code, **fields)
            names.append(asked.name)
            return rk.submit(asked, place)

        yield submit
        for name in set(names):
            with contextlib.suppress(NotFound):
                forget(api.attach(name, place))

    @pytest.fixture(scope="class")
    @classmethod
    def ended(cls, own_place, tmp_path_factory, forget):
        """Give a run that has ended well, for the tests that only read of it."""
        asked, told = job("hello.py", "a", "b", working_dir=write_scripts(tmp_path_factory.mktemp("code"))), []
        run = rk.submit(asked, own_place)
        waited = run.wait(timeout_s=WAIT_S, on_event=told.append)
        yield Ended(asked, run, waited, tuple(event.status.state for event in told))
        forget(run)

    def test_run_that_ends_well_is_succeeded_with_its_log(self, ended):
        assert ended.waited == ended.run
        status = ended.run.status()
        assert (status.state, status.failure, status.attempt) == ("SUCCEEDED", None, 1)
        assert list(output(ended.run)) == ["line 0", "line 1", "line 2", "['a', 'b']"]

    def test_times_of_a_run_are_in_order(self, ended):
        status = ended.run.status()
        assert status.submitted <= status.started <= status.ended

    def test_run_without_a_result_has_none(self, ended):
        assert ended.run.result() is None

    def test_wait_tells_every_change_once(self, ended):
        assert ended.states[-1] == "SUCCEEDED"
        assert ended.states.count("SUCCEEDED") == 1

    def test_run_on_a_cluster_of_others_is_told_as_one_on_its_own(self, submit):
        told = []
        run = submit("hello.py").wait(timeout_s=WAIT_S, on_event=lambda event: told.append(event.status.state))
        status = run.status()
        assert status.submitted <= status.started <= status.ended
        assert (told.count("SUCCEEDED"), run.result()) == (1, None)

    def test_same_name_and_plan_is_the_same_run(self, ended, own_place):
        before = ended.run.status().ended
        assert rk.submit(ended.job, own_place).status().ended == before

    def test_run_is_found_from_another_process(self, ended, own_place):
        done = run("raykube", "job", "status", "--on", own_place.name, "--json", ended.run.name)
        assert json.loads(done.stdout)["state"] == "SUCCEEDED"

    def test_failed_run_says_reason_exit_code_and_last_lines_and_why_says_it_later(self, submit):
        run = submit("fails.py")
        with pytest.raises(rk.RunFailed) as raised:
            run.wait(timeout_s=WAIT_S)
        error = raised.value
        assert (error.reason, error.exit_code) == ("EntrypointFailed", 3)
        assert error.tail == tuple(f"line {n}" for n in range(10, 30))
        assert "raykube job logs" in str(error)
        assert run.why().exit_code == 3

    def test_same_name_with_another_plan_is_a_conflict_that_names_the_difference(self, submit):
        first = submit("hello.py", "one")
        with pytest.raises(Conflict) as raised:
            submit("hello.py", "two", name=first.name)
        assert "two" in raised.value.why

    def test_two_submits_of_one_plan_at_once_are_one_run(self, submit, place):
        barrier, name = threading.Barrier(2), f"c-{uuid.uuid4().hex[:8]}"
        runs = []

        def send():
            barrier.wait()
            runs.append(submit("hello.py", name=name))

        threads = [threading.Thread(target=send) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert runs[0].wait(timeout_s=WAIT_S) == runs[1].wait(timeout_s=WAIT_S)
        assert list(output(runs[0])).count("line 0") == 1
        assert [run.name for run in rk.runs(place)].count(name) == 1

    def test_unknown_name_is_not_found(self, place):
        with pytest.raises(NotFound, match="no-such-run"):
            rk.attach("no-such-run", place)

    def test_stopped_run_keeps_its_log(self, submit):
        run = submit("sleeps.py")
        assert next(output(run, follow=True)) == "started"
        run.stop()
        assert run.status().state == "STOPPED"
        assert next(output(run)) == "started"
        with pytest.raises(RunStopped):
            run.wait(timeout_s=WAIT_S)

    def test_deleted_run_is_gone(self, submit, place):
        run = submit("hello.py").wait(timeout_s=WAIT_S)
        run.delete()
        with pytest.raises(NotFound):
            run.status()
        assert run.name not in [other.name for other in rk.runs(place)]

    def test_run_that_is_deleted_while_it_is_waited_for_is_told_as_deleted(self, submit):
        run = submit("sleeps.py")
        assert next(output(run, follow=True)) == "started"
        with ThreadPoolExecutor(1) as pool:
            heard = threading.Event()
            waiting = pool.submit(run.wait, timeout_s=WAIT_S, on_event=lambda _: heard.set())
            assert heard.wait(WAIT_S)
            run.delete()
            with pytest.raises(RunStopped, match="somebody deleted run"):
                waiting.result()

    def test_wait_that_times_out_leaves_the_run_alone(self, submit):
        run = submit("sleeps.py")
        assert next(output(run, follow=True)) == "started"
        with pytest.raises(WaitTimeout, match="still RUNNING"):
            run.wait(timeout_s=0)
        assert run.status().state == "RUNNING"
        assert run.url.startswith("http")

    def test_retry_runs_the_next_attempt(self, submit, code):
        (code / "twice.py").write_text("import os, sys\nprint('attempt', os.environ['RAYKUBE_ATTEMPT'])\n"
                                       "sys.exit(os.environ['RAYKUBE_ATTEMPT'] == '1')\n")  # fmt: skip
        run = submit("twice.py", max_retries=1).wait(timeout_s=WAIT_S)
        assert run.status().attempt == 2
        assert list(output(run)) == ["attempt 1", "attempt 2"]

    def test_failed_run_submitted_again_within_other_limits_is_its_next_attempt(self, submit, code):
        (code / "once.py").write_text("import os, pathlib, sys\n"
                                      "mark = pathlib.Path(os.environ['RAYKUBE_STORAGE'], "
                                      "os.environ['RAYKUBE_RUN_NAME'], 'mark')\n"
                                      "mark.parent.mkdir(parents=True, exist_ok=True)\n"
                                      "print('done before:', mark.exists())\n"
                                      "if not mark.exists(): mark.touch(); sys.exit(1)\n")  # fmt: skip
        run = submit("once.py")
        with pytest.raises(rk.RunFailed):
            run.wait(timeout_s=WAIT_S)
        again = submit("once.py", name=run.name, timeout_s=WAIT_S, max_retries=1).wait(timeout_s=WAIT_S)
        assert again.status().attempt == 2
        assert list(output(again)) == ["done before: False", "done before: True"]

    def test_timeout_ends_the_run(self, submit):
        run = submit("sleeps.py", timeout_s=1)
        with pytest.raises(rk.RunFailed) as raised:
            run.wait(timeout_s=WAIT_S)
        assert raised.value.reason == "DeadlineExceeded"

    def test_words_and_environment_arrive_byte_for_byte_in_script_and_tasks(self, submit, code):
        (code / "echo.py").write_text("import json, os, ray, sys\nthere = ray.remote(lambda: os.environ['ODD'])\n"
                                      "print(json.dumps([sys.argv[1], os.environ['ODD'], ray.get(there.remote())]))\n"
                                      )  # fmt: skip
        odd = "a $HOME ${HOME} $${0} `id` \"q\" 'p' \\ é\n\ttail"
        run = submit("echo.py", shlex.quote(odd), env_vars={"ODD": odd}).wait(timeout_s=WAIT_S)
        assert [odd, odd, odd] in [json.loads(line) for line in output(run) if line.startswith('["')]

    def test_many_lines_all_arrive_in_order(self, submit, code):
        (code / "many.py").write_text("for n in range(100_000): print(n)\n")
        assert list(output(submit("many.py"), follow=True)) == [str(n) for n in range(100_000)]

    def test_bytes_that_are_not_text_do_not_stop_the_log(self, submit, code):
        (code / "bytes.py").write_text(
            "import sys\nsys.stdout.buffer.write(b'a\\xff\\xfeb\\n')\nprint('after', flush=True)\n"
        )
        assert list(output(submit("bytes.py"), follow=True)) == ["a\ufffd\ufffdb", "after"]
