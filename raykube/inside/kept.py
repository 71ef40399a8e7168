"""What a run keeps of itself while it goes on: its attempts and log in its storage, its state in Ray's log folder."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from raykube import wire
from raykube.inside import outputs, storage
from raykube.inside.noted import RunRecord

#: What a storage raises when it fails, or gives only part of a file.
UNUSABLE = (OSError, ValueError)
INSIST_S = 6.0
_PAUSE_S = 1.0


class Kept:
    """Writes what a run keeps; what the storage does not take is tried again with the next write."""

    def __init__(self, run: RunRecord) -> None:
        self._run = run
        self._output = outputs.Driver(run.path)
        self._noting = threading.Lock()
        self._owed: list[dict[str, Any]] = []
        self._told: dict[str, str] = {}
        self._report: Any = None
        self._since = time.monotonic()

    def replay(self) -> None:
        """Print what earlier attempts printed."""
        self._output.replay()

    def note(self, *rows: dict[str, Any]) -> Exception | None:
        """Note starts and ends of attempts; if that fails, return why, and note them with the next call."""
        with self._noting:
            self._owed += rows
            try:
                if self._owed:
                    self._run.note(*self._owed)
            except UNUSABLE as error:
                return error
            self._owed = []
            return None

    def keep(self, attempt: int, *, last: bool = False) -> Exception | None:
        """Copy the log and write the state; if that fails, return why, and copy the rest with the next call."""
        try:
            self._output.keep(last=last)
            self._tell(attempt)
        except UNUSABLE as error:
            return error
        return None

    def keep_rest(self, attempt: int) -> None:
        """Write all that is due; if the storage fails for some seconds, say so and give up: the run's end stands."""
        until = time.monotonic() + INSIST_S
        while any(errors := [self.note(), self.keep(attempt, last=True)]):
            if time.monotonic() > until:
                why = next(filter(None, errors))
                outputs.say(f"how the run ended could not all be kept in {self._run.path}: {why!r}", sys.stderr)
                return
            time.sleep(_PAUSE_S)

    def _tell(self, attempt: int) -> None:
        """Write the state of the run, and where its ranks are, into the folder that the dashboard serves."""
        report = _last_report(self._run.path)
        state = {
            "attempt": attempt,
            "attempts": self._run.rows(),
            "progress": report.get("metrics", {}),
            "quiet_s": self._quiet_s(report),
            "trouble": storage.read_from(storage.join(self._run.path, wire.TROUBLE_FILE)).decode(),
            "result": storage.read_from(storage.join(self._run.path, wire.RESULT_FILE)).decode(),
            "log_starts_at": self._output.starts_at,
            "log_replayed": self._output.replayed,
        }
        self._leave(wire.state_file(self._run.name), json.dumps(state))
        ranks = storage.read_from(storage.join(self._run.path, wire.RANKS_FILE)).decode()
        self._leave(wire.ranks_file(self._run.name), ranks)

    def _quiet_s(self, report: dict[str, Any]) -> float:
        """Return for how long there was no new report, by the clock of this process: those of others may differ."""
        if (stamp := report.get("time")) != self._report:
            self._report, self._since = stamp, time.monotonic()
        return wire.quiet_s(time.monotonic() - self._since) if stamp else 0.0

    def _leave(self, name: str, text: str) -> None:
        """Write a file into Ray's log folder if its text has changed."""
        if self._output.folder and text != self._told.get(name):
            storage.write_text(str(self._output.folder / name), text)
            self._told[name] = text


def _last_report(path: str) -> dict[str, Any]:
    """Return the row that was reported last."""
    if not storage.is_uri(path):
        return wire.last_report(Path(path))
    last = storage.newest(path, wire.METRICS_FILE)
    return wire.last_row(storage.read_from(last)) if last else {}
