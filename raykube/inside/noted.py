"""Which run this is, and the notes on its attempts in its storage: a row for each start and each end."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass, replace
from typing import Any

from raykube import wire
from raykube.inside import addresses, storage


@dataclass(frozen=True)
class RunRecord:
    """Which run this is: its folder, the first attempt of this submission, its retries, and its time limit.

    `submission` is Ray's id: KubeRay keeps it when it starts a run again, and takes a new one for each RayJob. `work`
    is a hash of the run's command and code.
    """

    name: str
    path: str
    first: int
    retries: int
    timeout_s: float = math.inf
    submission: str = ""
    work: str = ""

    @classmethod
    def from_environ(cls, retries: int) -> RunRecord:
        """Read the run from the ``RAYKUBE_*`` environment and Ray's metadata of the job."""
        name = os.environ[wire.RUN_NAME]
        first, limit = int(os.environ.get(wire.ATTEMPT) or 1), float(os.environ.get(wire.TIMEOUT) or math.inf)
        told = _metadata()
        submission, work = (str(told.get(key) or "") for key in ("job_submission_id", wire.WORK_KEY))
        return cls(name, storage.join(addresses.base(), name), first, retries, limit, submission, work)

    def after(self, rows: list[dict[str, Any]]) -> RunRecord:
        """Return the run with its first attempt after those of other submissions, which use up none of its retries."""
        others = {row["attempt"] for row in rows if "started" in row} - self.own(rows)
        return replace(self, first=max(self.first, *(number + 1 for number in others))) if others else self

    def own(self, rows: list[dict[str, Any]]) -> set[int]:
        """Return the numbers of this submission's attempts."""
        starts = [row for row in rows if "started" in row]
        return {row["attempt"] for row in starts if row.get("submission", self.submission) == self.submission}

    def has_ended_well(self, rows: list[dict[str, Any]]) -> bool:
        """Whether this very submission ended well: KubeRay starts it again if its head goes before that was read."""
        own = self.own([row for row in rows if self.submission and "submission" in row])
        return any(row.get("exit_code") == 0 and row["attempt"] in own for row in rows)

    def belongs_to_other_work(self, rows: list[dict[str, Any]]) -> bool:
        """Whether the folder has attempts of other work, whose results are not this run's and which it must not end."""
        return bool(self.work) and any(row.get("work", self.work) != self.work for row in rows)

    def rows(self) -> list[dict[str, Any]]:
        """Return what is noted of the run's attempts: a row for each start and each end."""
        text = storage.read_from(storage.join(self.path, wire.ATTEMPTS_FILE)).decode()
        return [json.loads(line) for line in text.splitlines() if line]

    def note(self, *rows: dict[str, Any]) -> None:
        """Note starts and ends, but none twice: a row may be there although writing it failed."""
        known = self.rows()
        new = [row for row in rows if row not in known]
        path = storage.join(self.path, wire.ATTEMPTS_FILE)
        storage.write_text(path, "".join(json.dumps(row) + "\n" for row in [*known, *new]))

    def start(self, attempt: int) -> dict[str, Any]:
        """Return the row for the start of an attempt."""
        whose = {"submission": self.submission, "work": self.work, "host": os.uname().nodename}
        return {"attempt": attempt, "started": time.time(), **whose}


def end(attempt: int, code: int | None, reason: str, message: str = "") -> dict[str, Any]:
    """Return the row for the end of an attempt; `reason` is "" for a good one."""
    row = {"attempt": attempt, "ended": time.time(), "exit_code": code, "reason": reason}
    return row | ({"message": message} if message else {})


def ended(rows: list[dict[str, Any]]) -> set[int]:
    """Return the attempts whose end is noted."""
    return {row["attempt"] for row in rows if "ended" in row}


def _metadata() -> dict[str, Any]:
    """Return Ray's metadata of this job: its submission id, and what raykube has added; {} outside of a job."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    return dict(config.get("metadata") or {})
