"""Runs a job's entrypoint on a cluster, attempt after attempt, and keeps what must outlive the cluster.

::

    python -m raykube.inside.attempts RETRIES 'python -m jobs.digits --epochs 20'

What the keeper does for a run on one machine, this does in the head's pod, next to the driver:

- an entrypoint that fails is started again on the same cluster, in seconds and not after a new one has come up;
- KubeRay starts a job again, in silence, when its head was lost. The run's storage tells that from a first start: it
  counts as an attempt, and beyond RETRIES it is refused instead of doing all the work twice. What had ended well by
  then has ended well;
- of two attempts that both believe to be the run's, as when a node comes back, the older one is ended;
- a deadline ends the entrypoint: KubeRay only calls the RayJob failed then, and on a cluster that stays Ray goes on;
- the output goes to the storage too, and what a reader asks for most (attempt, metrics, result; where the output of
  each rank is) to small files in Ray's log folder, which the dashboard hands out.

A storage that cannot be used when the run begins is refused: the run could keep nothing. From then on it may fail for a
moment: what was not written is written later, and neither the exit code nor the attempts left depend on it.

Only the standard library is imported: it must start fast, and on any image.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raykube import wire
from raykube.inside import addresses, outputs, storage

_LOOK_S = 1.0
_REMOTE_S = 15.0
_END_S = 5.0
_INSIST_S = 6.0
_JOIN_S = 60.0
_UNUSABLE = (OSError, ValueError)  # a storage that fails, or gives a part of a file
_TAKEN_OVER = 75
_TIMED_OUT = 124  # as timeout(1) says it


@dataclass(frozen=True)
class Run:
    """Which run this is: its folder, its first attempt of this submission, how many more it may have, and how long.

    KubeRay starts a run again under the same id of Ray's submission, and takes a new one for each RayJob. `work` is a
    hash of its command and code.
    """

    name: str
    path: str
    first: int
    retries: int
    timeout_s: float = math.inf
    submission: str = ""
    work: str = ""

    @classmethod
    def from_environ(cls, retries: int) -> Run:
        """Read the run from the ``RAYKUBE_*`` environment."""
        name = os.environ[wire.RUN_NAME]
        first, limit = int(os.environ.get(wire.ATTEMPT) or 1), float(os.environ.get(wire.TIMEOUT) or math.inf)
        told = _metadata()
        submission, work = (str(told.get(key) or "") for key in ("job_submission_id", wire.WORK_KEY))
        return cls(name, storage.join(addresses.base(), name), first, retries, limit, submission, work)

    def after(self, rows: list[dict[str, Any]]) -> Run:
        """Return the run as it begins now: what other submissions of it did takes no retry of this one."""
        others = {row["attempt"] for row in rows if "started" in row} - self.own(rows)
        return replace(self, first=max(self.first, *(number + 1 for number in others))) if others else self

    def own(self, rows: list[dict[str, Any]]) -> set[int]:
        """Return the attempts of this submission."""
        starts = [row for row in rows if "started" in row]
        return {row["attempt"] for row in starts if row.get("submission", self.submission) == self.submission}

    def has_ended_well(self, rows: list[dict[str, Any]]) -> bool:
        """Whether this very submission has: KubeRay starts it again when its head goes before that was read."""
        own = self.own([row for row in rows if self.submission and "submission" in row])
        return any(row.get("exit_code") == 0 and row["attempt"] in own for row in rows)

    def is_anothers(self, rows: list[dict[str, Any]]) -> bool:
        """Whether the folder has attempts of other work: its results are not this run's, nor is it to be ended."""
        return bool(self.work) and any(row.get("work", self.work) != self.work for row in rows)

    def rows(self) -> list[dict[str, Any]]:
        """Return what is noted of the run's attempts: a row for each start and each end."""
        text = storage.read_from(storage.join(self.path, wire.ATTEMPTS_FILE)).decode()
        return [json.loads(line) for line in text.splitlines() if line]

    def note(self, *rows: dict[str, Any]) -> None:
        """Note starts and ends, but none twice: one may be there although writing it failed."""
        known = self.rows()
        new = [row for row in rows if row not in known]
        path = storage.join(self.path, wire.ATTEMPTS_FILE)
        storage.write_text(path, "".join(json.dumps(row) + "\n" for row in [*known, *new]))


class Attempts:
    """The attempts of one run, until one succeeds or none is left."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._output = outputs.Driver(run.path)
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()
        self._stopped = False
        self._cut_short = 0
        self._limit = threading.Timer(min(run.timeout_s, threading.TIMEOUT_MAX), self._time_out)
        self._limit.daemon = True
        self._noting = threading.Lock()
        self._owed: list[dict[str, Any]] = []
        self._told: dict[str, str] = {}
        self.attempt = run.first

    def run(self, command: str) -> int:
        """Run the entrypoint; return its last exit code."""
        if not storage.is_uri(self._run.path):
            Path(self._run.path).mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGTERM, self._stop)
        rows = self._run.rows()
        if self._run.is_anothers(rows):
            outputs.say(f"{self._run.path} {wire.NAME_TAKEN}")
            return 1
        self._run = self._run.after(rows)
        known = self._run.own(rows)
        self.attempt = max([self._run.first, *(number + 1 for number in known)])
        self._output.replay()
        for lost in sorted(known - _ended(rows)):
            self._run.note(_end(lost, None, "HeadLost"))
        if self._run.has_ended_well(rows):
            return self._leave_done()
        if self.attempt > self._run.first + self._run.retries:
            return self._refuse()
        self._run.note(self._start())  # raises, as all before it: from here on nothing that is written may
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
            self._note(self._start())

    def _is_last(self, code: int) -> bool:
        return code == 0 or self._stopped or self.attempt >= self._run.first + self._run.retries

    def _start(self) -> dict[str, Any]:
        whose = {"submission": self._run.submission, "work": self._run.work, "host": os.uname().nodename}
        return {"attempt": self.attempt, "started": time.time(), **whose}

    def _once(self, command: str) -> int:
        environ = {**os.environ, wire.ATTEMPT: str(self.attempt)}
        # A shell, as Ray itself runs an entrypoint.
        self._process = subprocess.Popen(command, shell=True, env=environ)  # noqa: S602
        code = self._process.wait()
        code = code if code >= 0 else 128 - code
        if self._is_last(code):  # before the storage is asked, which may give no answer
            self._limit.cancel()
        if not self._stopped:
            self._note(_end(self.attempt, code, "" if code == 0 else "EntrypointFailed"))
        return code

    def _leave_done(self) -> int:
        self.attempt -= 1
        outputs.say(f"attempt {self.attempt} has ended well and its head was lost after that: nothing is done again")
        self._keep_rest()
        return 0

    def _refuse(self) -> int:
        outputs.say(
            f"attempt {self.attempt - 1} ended with the head that ran it, and no attempt is left "
            f"(max_retries {self._run.retries}); submit the run again under its name to go on from its last checkpoint"
        )
        self._keep_rest()
        return 1

    def _stop(self, *_: object) -> None:
        """Take the signal of ``ray job stop``, which the entrypoint gets too: what follows is no failure."""
        self._stopped = True

    def _look_after(self) -> None:
        looked = 0.0
        pause = _REMOTE_S if storage.is_uri(self._run.path) else _LOOK_S
        while not (self._ended.wait(_LOOK_S) or self._cut_short):
            if time.monotonic() - looked < pause:
                continue
            looked = time.monotonic()
            self._note()
            self._keep()
            if self._overtaken():
                self._cut(f"attempt {self.attempt} ends, a later one has taken over", _TAKEN_OVER)
                return

    def _overtaken(self) -> bool:
        """Tell whether a later attempt has begun; not while the storage cannot tell."""
        with contextlib.suppress(*_UNUSABLE):
            return any(row["attempt"] > self.attempt for row in self._run.rows())
        return False

    def _time_out(self) -> None:
        """End the run at its deadline, in a thread that waits for no storage: that of a run may give no answer."""
        words = f"attempt {self.attempt} ends after {self._run.timeout_s:g} s (timeout_s)"
        self._cut(words, _TIMED_OUT, _end(self.attempt, _TIMED_OUT, "DeadlineExceeded"))

    def _cut(self, words: str, code: int, *ends: dict[str, Any]) -> None:
        """End this attempt before it ends by itself, and start no other."""
        outputs.say(words)
        self._stopped, self._cut_short = True, code
        noting = threading.Thread(target=self._note, args=ends, daemon=True)
        noting.start()
        noting.join(_INSIST_S)  # before the signals: where Ray runs us, the last of them ends us too
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._signal(number)
            if self._ended.wait(_END_S):
                return

    def _signal(self, number: signal.Signals) -> None:
        """Signal the entrypoint with all that it has started; Ray gives each job a session of its own."""
        if os.getpgrp() == os.getsid(0):
            os.killpg(0, number)
        elif self._process:
            self._process.send_signal(number)

    def _note(self, *rows: dict[str, Any]) -> Exception | None:
        """Note starts and ends; return why that failed: they stay owed then, and go along with the next try."""
        with self._noting:
            self._owed += rows
            try:
                if self._owed:
                    self._run.note(*self._owed)
            except _UNUSABLE as error:
                return error
            self._owed = []
            return None

    def _keep(self, *, last: bool = False) -> Exception | None:
        """Copy the log and tell the state; return why that failed: what was not copied is copied next time."""
        try:
            self._output.keep(last=last)
            self._tell()
        except _UNUSABLE as error:
            return error
        return None

    def _wind_up(self, watcher: threading.Thread) -> None:
        """Write what is still due once the watcher has left the log: both at once would write it twice."""
        self._ended.set()
        watcher.join(_JOIN_S)
        if watcher.is_alive():
            outputs.say(f"how the run ended could not be kept: {self._run.path} gives no answer", sys.stderr)
        else:
            self._keep_rest()

    def _keep_rest(self) -> None:
        """Write all that is due, for some seconds if the storage fails, then say so: how the run ended is settled."""
        until = time.monotonic() + _INSIST_S
        while any(errors := [self._note(), self._keep(last=True)]):
            if time.monotonic() > until:
                why = next(filter(None, errors))
                outputs.say(f"how the run ended could not all be kept in {self._run.path}: {why!r}", sys.stderr)
                return
            time.sleep(_LOOK_S)

    def _tell(self) -> None:
        """Write the state of the run, and where its ranks are, where the dashboard hands them out."""
        state = {
            "attempt": self.attempt,
            "attempts": self._run.rows(),
            "progress": _progress(self._run.path),
            "trouble": storage.read_from(storage.join(self._run.path, wire.TROUBLE_FILE)).decode(),
            "result": storage.read_from(storage.join(self._run.path, wire.RESULT_FILE)).decode(),
            "log_starts_at": self._output.starts_at,
            "log_replayed": self._output.replayed,
        }
        self._leave(wire.state_file(self._run.name), json.dumps(state))
        ranks = storage.read_from(storage.join(self._run.path, wire.RANKS_FILE)).decode()
        self._leave(wire.ranks_file(self._run.name), ranks)

    def _leave(self, name: str, text: str) -> None:
        """Write a file into Ray's log folder, when its text has changed."""
        if self._output.folder and text != self._told.get(name):
            storage.write_text(str(self._output.folder / name), text)
            self._told[name] = text


def _metadata() -> dict[str, Any]:
    """Return what Ray tells a job of itself: the id of its submission, and what raykube has said; {} elsewhere."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    return dict(config.get("metadata") or {})


def _end(attempt: int, code: int | None, reason: str) -> dict[str, Any]:
    return {"attempt": attempt, "ended": time.time(), "exit_code": code, "reason": reason}


def _ended(rows: list[dict[str, Any]]) -> set[int]:
    return {row["attempt"] for row in rows if "ended" in row}


def _progress(path: str) -> dict[str, Any]:
    """Return the metrics that were reported last."""
    if not storage.is_uri(path):
        return wire.last_metrics(Path(path))
    last = storage.newest(path, wire.METRICS_FILE)
    return wire.last_row(storage.read_from(last)) if last else {}


def main(retries: int, command: str) -> int:
    """Run a command as the run that the environment names; return its exit code."""
    run = Run.from_environ(retries)
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
