"""A status on one line, for people, and a change of it: on a terminal and in a notebook. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raykube.backends import Status

_PROGRESS_KEYS = 4
#: Ray's messages that say no more than a job's state.
_NO_NEWS = ("Job is currently running.", "Job finished successfully.")


def age(seconds: float) -> str:
    """Return a duration as kubectl writes it: ``45s``, ``12m``, ``3h``, ``2d``."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"


def number(value: Any) -> str:
    """Return a metric's value in a few characters."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def progress(metrics: Mapping[str, Any]) -> str:
    """Return the first few metrics on one line: ``epoch 3 · loss 0.12``."""
    shown = list(metrics.items())[:_PROGRESS_KEYS]
    return " · ".join(f"{key} {number(value)}" for key, value in shown)


def reported(status: Status) -> str:
    """Return a run's last reported metrics, and how long it has been quiet: ``epoch 3 · no report for 5m``."""
    quiet = f"no report for {age(status.quiet_s)}" if status.quiet_s else ""
    return " · ".join(filter(None, (progress(status.progress), quiet)))


def elapsed(status: Status, now: float) -> float:
    """Return how long a run has taken since its submission, until now or its end, in seconds."""
    return (status.ended or now) - (status.submitted or now)


def status_line(status: Status, now: float) -> str:
    """Return a status on one line, for a pipe or below a scrolling log."""
    attempt = f"attempt {status.attempt}" if status.attempt > 1 else ""
    detail = "" if status.kind == "job" and status.detail in _NO_NEWS else status.detail
    parts = [f"{status.name} {status.state}", attempt, reported(status), detail, age(elapsed(status, now))]
    return " · ".join(part for part in parts if part)


@dataclass(frozen=True)
class Event:
    """A change that a wait saw.

    Attributes:
        time: Unix time in seconds.
        status: the new status.
    """

    time: float
    status: Status

    def __str__(self) -> str:
        """Return what the command line shows of it, after the time of day: ``12:00:00 digits RUNNING · epoch 3``."""
        return f"{time.strftime('%H:%M:%S', time.localtime(self.time))} {status_line(self.status, self.time)}"
