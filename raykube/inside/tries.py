"""The tries of one training: whether a try failed by the same error as the one before, and which one comes next."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping

from raykube.inside import checkpoints, joining, storage
from raykube.inside.failures import describe, is_of_taken_node, recurring, worst

log = logging.getLogger("raykube")


class Tries:
    """Counts the failed tries as Ray does. Lives in the process of Ray's controller.

    Args:
        stage: the stage's folder or URI.
        name: the stage's name in the log.
        most: how many failures the training survives.
        ended: the file that says that Tune has ended the trial, if the training is one's.
    """

    def __init__(self, stage: str, name: str, most: int, ended: str = "") -> None:
        self._stage = stage
        self._name = name
        self._most = most
        self._ended = ended
        self._failed = 0
        self._runs = False
        self._saved = 0
        self._before: tuple[str, int] = "", 0

    @property
    def are_over(self) -> bool:
        """Whether Tune has ended this trial: then its processes die one after the other, which is no failure."""
        with contextlib.suppress(OSError):  # if the storage does not answer, a death counts as a failure
            return bool(self._ended) and storage.exists(self._ended)
        return False

    def begin(self) -> None:
        """Begin a try: its workers have started."""
        self._runs = True
        self._saved = 0

    def save(self) -> None:
        """Count a checkpoint that this try has reported."""
        self._saved += 1

    def end(self, failures: Mapping[int, BaseException]) -> bool:
        """End a try whose workers failed; return whether it failed as the try before, so that a retry is useless.

        If it has reported a checkpoint, the training has made progress, and a retry may make more. But if each try
        reports the same number of checkpoints, the error belongs to what follows a checkpoint.
        """
        if not self._runs:  # Ray reports failed workers repeatedly, until it replaces them
            return False
        self._runs = False
        error, (before, saved) = recurring(failures), self._before
        self._before = error, self._saved
        if error and error == before and self._saved in {0, saved}:
            return True
        self.fail(failures)
        return False

    def fail(self, failures: Mapping[int, BaseException]) -> None:
        """Count a failed try, also one whose workers did not start, and log which one comes next."""
        taken = is_of_taken_node(failures)
        self._failed += not taken
        if self._failed > self._most:
            return
        joining.show_progress()
        which = "not counted: its node was taken away" if taken else f"retry {self._failed} of {self._most}"
        start = checkpoints.last_listed(self._stage) or "the beginning"
        log.warning("%s starts again from %s (%s): %s", self._name, start, which, describe(*worst(failures)))
