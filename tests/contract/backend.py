"""What every backend must do. A backend's own test module subclasses this and gives the fixture `place`."""

import contextlib
import json
import threading
import uuid

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


class BackendContract:
    """Facts about runs that hold on every place."""

    @pytest.fixture
    def place(self):
        """Return the Cluster to run on; given by each backend's subclass."""
        pytest.fail("the subclass gives this fixture")

    @pytest.fixture
    def code(self, tmp_path):
        """Return a working directory with a few scripts."""
        (tmp_path / "hello.py").write_text("import sys\nfor n in range(3): print('line', n)\nprint(sys.argv[1:])\n")
        (tmp_path / "fails.py").write_text("import sys\nfor n in range(30): print('line', n)\nsys.exit(3)\n")
        (tmp_path / "sleeps.py").write_text("import time\nprint('started', flush=True)\ntime.sleep(600)\n")
        return tmp_path

    @pytest.fixture
    def forget(self):
        """Return a function that deletes a run after its test."""
        return lambda run: run.delete()

    @pytest.fixture
    def submit(self, place, code, forget):
        """Return a function that submits a script of `code`; its runs are deleted afterwards."""
        names = []

        def submit(script, *args, **fields):
            # As long as one may be: KubeRay shortens what is longer by its own ending.
            name = fields.pop("name", f"c-{uuid.uuid4().hex[:8]}-".ljust(MAX_NAME, "x"))
            names.append(name)
            return rk.submit(
                rk.Job(entrypoint=" ".join(["python", script, *args]), name=name, working_dir=code, **fields), place
            )

        yield submit
        for name in set(names):
            with contextlib.suppress(NotFound):
                forget(api.attach(name, place))

    def test_run_that_ends_well_is_succeeded_with_its_log(self, submit):
        run = submit("hello.py", "a", "b")
        assert run.wait(timeout_s=WAIT_S) == run
        status = run.status()
        assert (status.state, status.failure, status.attempt) == ("SUCCEEDED", None, 1)
        assert list(output(run)) == ["line 0", "line 1", "line 2", "['a', 'b']"]

    def test_times_of_a_run_are_in_order(self, submit):
        status = submit("hello.py").wait(timeout_s=WAIT_S).status()
        assert status.submitted <= status.started <= status.ended

    def test_run_without_a_result_has_none(self, submit):
        assert submit("hello.py").wait(timeout_s=WAIT_S).result() is None

    def test_failed_run_says_reason_exit_code_and_last_lines_and_why_says_it_later(self, submit):
        run = submit("fails.py")
        with pytest.raises(rk.RunFailed) as raised:
            run.wait(timeout_s=WAIT_S)
        error = raised.value
        assert (error.reason, error.exit_code) == ("EntrypointFailed", 3)
        assert error.tail == tuple(f"line {n}" for n in range(10, 30))
        assert "raykube job logs" in str(error)
        assert run.why().exit_code == 3

    def test_same_name_and_plan_is_the_same_run(self, submit):
        first = submit("hello.py").wait(timeout_s=WAIT_S)
        ended = first.status().ended
        again = submit("hello.py", name=first.name)
        assert again.status().ended == ended

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

    def test_wait_that_times_out_leaves_the_run_alone(self, submit):
        run = submit("sleeps.py")
        assert next(output(run, follow=True)) == "started"
        with pytest.raises(WaitTimeout, match="still RUNNING"):
            run.wait(timeout_s=0)
        assert run.status().state == "RUNNING"
        assert run.url.startswith("http")

    def test_wait_tells_every_change_once(self, submit):
        seen = []
        submit("hello.py").wait(timeout_s=WAIT_S, on_event=lambda event: seen.append(event.status.state))
        assert seen[-1] == "SUCCEEDED"
        assert seen.count("SUCCEEDED") == 1

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

    def test_environment_arrives_byte_for_byte(self, submit, code):
        (code / "env.py").write_text("import json, os\nprint(json.dumps(os.environ['ODD']))\n")
        odd = "a $HOME ${HOME} $${0} `id` \"q\" 'p' \\ é\n\ttail"
        run = submit("env.py", env_vars={"ODD": odd}).wait(timeout_s=WAIT_S)
        assert json.loads(next(output(run))) == odd

    def test_many_lines_all_arrive_in_order(self, submit, code):
        (code / "many.py").write_text("for n in range(100_000): print(n)\n")
        assert list(output(submit("many.py"), follow=True)) == [str(n) for n in range(100_000)]

    def test_bytes_that_are_not_text_do_not_stop_the_log(self, submit, code):
        (code / "bytes.py").write_text(
            "import sys\nsys.stdout.buffer.write(b'a\\xff\\xfeb\\n')\nprint('after', flush=True)\n"
        )
        assert list(output(submit("bytes.py"), follow=True)) == ["a\ufffd\ufffdb", "after"]

    def test_run_is_found_from_another_process(self, submit, place):
        submitted = submit("hello.py").wait(timeout_s=WAIT_S)
        done = run("raykube", "job", "status", "--on", place.name, "--json", submitted.name)
        assert json.loads(done.stdout)["state"] == "SUCCEEDED"
