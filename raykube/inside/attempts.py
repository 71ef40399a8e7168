"""Runs a job's entrypoint on a cluster, attempt after attempt, and keeps what must outlive the cluster.

::

    python -m raykube.inside.attempts RETRIES 'python -m jobs.digits --epochs 20'

This does, in the head's pod and next to the driver, what the keeper does for a run on one machine:

- a failed entrypoint is started again on the same cluster within seconds, without waiting for a new cluster;
- KubeRay silently starts a job again when its head was lost. The run's storage tells that from a first start: it counts
  as an attempt, and beyond RETRIES it is refused instead of doing all the work twice. A run that had already ended well
  stays so;
- when two attempts run at once, as after a lost node comes back, the older one is ended;
- the deadline ends the entrypoint: KubeRay would only call the RayJob failed, and Ray goes on if the cluster stays;
- the output is also copied to the storage; what readers ask for most (attempt, metrics, result, where each rank's
  output is) goes to small files in Ray's log folder, which the dashboard serves.

If the storage cannot be used when the run begins, the run is refused: it could keep nothing. After that the storage may
fail for a while: what was not written is written later, and neither the exit code nor the attempts left depend on it.

It imports only the standard library, because it must start fast, and on any image.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from raykube import wire
from raykube.inside import noted, outputs, storage
from raykube.inside.kept import INSIST_S, UNUSABLE, Kept
from raykube.inside.noted import RunRecord

_LOOK_S = 1.0
_REMOTE_S = 15.0
_END_S = 5.0
_JOIN_S = 60.0
_TAKEN_OVER = 75
_TIMED_OUT = 124  # the exit code of timeout(1)


class Attempts:
    """The attempts of one run, until one succeeds or none is left."""

    def __init__(self, run: RunRecord) -> None:
        self._run = run
        self._kept = Kept(run)
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()
        self._stopped = False
        self._cut_short = 0
        self._limit = threading.Timer(min(run.timeout_s, threading.TIMEOUT_MAX), self._time_out)
        self._limit.daemon = True
        self.attempt = run.first

    def run(self, command: str) -> int:
        """Run the entrypoint; return its last exit code."""
        if not storage.is_uri(self._run.path):
            Path(self._run.path).mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGTERM, self._stop)
        rows = self._run.rows()
        if self._run.belongs_to_other_work(rows):
            outputs.say(f"{self._run.path} {wire.NAME_TAKEN}")
            return 1
        self._run = self._run.after(rows)
        known = self._run.own(rows)
        self.attempt = max([self._run.first, *(number + 1 for number in known)])
        self._kept.replay()
        for lost in sorted(known - noted.ended(rows)):
            self._run.note(noted.end(lost, None, "HeadLost"))
        if self._run.has_ended_well(rows):
            return self._leave_done()
        if self.attempt > self._run.first + self._run.retries:
            return self._refuse()
        # This write may still raise, like all before it; later ones must not.
        self._run.note(self._run.start(self.attempt))
        # Without this line, an attempt that prints nothing would seem to have failed as the one before it did.
        if any("message" in row for row in rows):
            outputs.say(f"attempt {self.attempt} begins")
        watcher = threading.Thread(target=self._look_after, daemon=True)
        for thread in (watcher, self._limit):
            thread.start()
        try:
            return self._until_well(command)
        finally:
            self._limit.cancel()
            self._wind_up(watcher)

    def _until_well(self, command: str) -> int:
        while True:
            code = self._once(command)
            if self._cut_short:
                return self._cut_short
            if self._is_last(code):
                return code
            self.attempt += 1
            self._kept.note(self._run.start(self.attempt))

    def _is_last(self, code: int) -> bool:
        return code == 0 or self._stopped or self.attempt >= self._run.first + self._run.retries

    def _once(self, command: str) -> int:
        environ = {**os.environ, wire.ATTEMPT: str(self.attempt)}
        began = time.time()
        # In a shell, as Ray itself runs an entrypoint.
        self._process = subprocess.Popen(command, shell=True, env=environ)  # noqa: S602
        code = self._process.wait()
        code = code if code >= 0 else 128 - code
        if self._is_last(code):  # before asking the storage, which may not answer
            self._limit.cancel()
        if not self._stopped:
            self._kept.note(noted.end(self.attempt, code, *self._why(code, began)))
        return code

    def _why(self, code: int, began: float) -> tuple[str, str]:
        """Return the reason and the message of an attempt's end: those of `train` or `sweep`, if that failed.

        For the last attempt, print them as the log's last line: that is in Ray's message about the job, which KubeRay
        copies, and so is known even after the cluster is gone.
        """
        if code != wire.UNCAUGHT:
            return ("EntrypointFailed" if code else ""), ""
        text = ""
        with contextlib.suppress(*UNUSABLE):
            text = storage.read_from(storage.join(self._run.path, wire.FAILURE_FILE)).decode()
        found = wire.failure(text, self.attempt, began)
        if found and self._is_last(code):
            outputs.say(wire.failure_line(self.attempt, found))
        return (found.reason, found.message) if found else ("EntrypointFailed", "")

    def _leave_done(self) -> int:
        self.attempt -= 1
        outputs.say(f"attempt {self.attempt} has ended well and its head was lost after that: nothing is done again")
        self._kept.keep_rest(self.attempt)
        return 0

    def _refuse(self) -> int:
        outputs.say(
            f"attempt {self.attempt - 1} ended with the head that ran it, and no attempt is left "
            f"(max_retries {self._run.retries}); submit the run again under its name to go on from its last checkpoint"
        )
        self._kept.keep_rest(self.attempt)
        return 1

    def _stop(self, *_: object) -> None:
        """Handle the signal of ``ray job stop``: the entrypoint gets it too, and its end is then no failure."""
        self._stopped = True

    def _look_after(self) -> None:
        looked = 0.0
        pause = _REMOTE_S if storage.is_uri(self._run.path) else _LOOK_S
        while not (self._ended.wait(_LOOK_S) or self._cut_short):
            if time.monotonic() - looked < pause:
                continue
            looked = time.monotonic()
            self._kept.note()
            self._kept.keep(self.attempt)
            if self._overtaken():
                self._cut(f"attempt {self.attempt} ends, a later one has taken over", _TAKEN_OVER)
                return

    def _overtaken(self) -> bool:
        """Whether a later attempt has begun; False while the storage cannot be read."""
        with contextlib.suppress(*UNUSABLE):
            return any(row["attempt"] > self.attempt for row in self._run.rows())
        return False

    def _time_out(self) -> None:
        """End the run at its deadline, in a thread of its own: a storage that gives no answer must not delay that."""
        words = f"attempt {self.attempt} ends after {self._run.timeout_s:g} s (timeout_s)"
        self._cut(words, _TIMED_OUT, noted.end(self.attempt, _TIMED_OUT, "DeadlineExceeded"))

    def _cut(self, words: str, code: int, *ends: dict[str, Any]) -> None:
        """End this attempt before it ends by itself, and start no other."""
        outputs.say(words)
        self._stopped, self._cut_short = True, code
        noting = threading.Thread(target=self._kept.note, args=ends, daemon=True)
        noting.start()
        noting.join(INSIST_S)  # before the signals: under Ray, SIGKILL ends this process too
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._signal(number)
            if self._ended.wait(_END_S):
                return

    def _signal(self, number: signal.Signals) -> None:
        """Signal the entrypoint and, under Ray, which gives each job its own session, all that it has started."""
        if os.getpgrp() == os.getsid(0):
            os.killpg(0, number)
        elif self._process:
            self._process.send_signal(number)

    def _wind_up(self, watcher: threading.Thread) -> None:
        """Write what is still due, once the watcher has stopped: two at once would copy the log twice."""
        self._ended.set()
        watcher.join(_JOIN_S)
        if watcher.is_alive():
            outputs.say(f"how the run ended could not be kept: {self._run.path} gives no answer", sys.stderr)
        else:
            self._kept.keep_rest(self.attempt)


def main(retries: int, command: str) -> int:
    """Run a command as the run that the environment names; return its exit code."""
    run = RunRecord.from_environ(retries)
    try:
        return Attempts(run).run(command)
    except json.JSONDecodeError as error:
        words = f"{run.path}/{wire.ATTEMPTS_FILE} is torn: {error}; remove it, and submit the run again"
    except (OSError, ImportError) as error:  # a bucket is read with pyarrow, which an image may lack
        words = f"the storage {run.path} cannot be used: {error}; let its pods' user write there, or name another one"
    outputs.say(words)
    return 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
