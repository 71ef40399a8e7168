"""What holds up a run that goes on: the last such note, in its folder, for whoever asks for the run's status."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass

from raykube import wire
from raykube.inside import storage

log = logging.getLogger("raykube")


@dataclass(frozen=True)
class Troubles:
    """The note, as one stage of a run writes it.

    Attributes:
        stage: the stage's folder or URI.
        run: the run's folder or URI.
        attempt: the run's attempt.
    """

    stage: str
    run: str
    attempt: int

    @property
    def name(self) -> str:
        """What the stage is called: its path within the run."""
        return self.stage.removeprefix(self.run).strip("/")

    def note(self, words: str) -> None:
        """Note what has happened; if the note cannot be written, log it: the run goes on all the same."""
        self._write(words, waits=False)

    def wait(self, words: str) -> None:
        """Note what the stage waits for, until :meth:`wait_is_over`."""
        self._write(words, waits=True)

    def wait_is_over(self) -> None:
        """Remove the note of :meth:`wait`; one of :meth:`note` since then stays."""
        try:
            if wire.row_of(storage.read_from(self._path)).get("waits"):
                storage.remove(self._path)
        except OSError as error:
            log.warning("the run waits no longer, and is still told to: %s", error)

    @property
    def _path(self) -> str:
        return storage.join(self.run, wire.TROUBLE_FILE)

    def _write(self, words: str, *, waits: bool) -> None:
        note = {"time": time.time(), "attempt": self.attempt, "message": f"{self.name}: {words}", "waits": waits}
        try:
            storage.write_text(self._path, json.dumps(note))
        except OSError as error:
            log.warning("%s; %s", note["message"], error)
