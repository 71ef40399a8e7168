"""The clock of an API server, read from its answers: times in Kubernetes objects are by that clock."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

import httpx

from raykube.backends.kubernetes.refusals import is_passed_on

#: Clocks that differ by less count as the same: answers tell the time in whole seconds, and take time to arrive.
_SAME_CLOCK_S = 2.0


def clock_of(date: str) -> float:
    """Return the likeliest Unix time for the ``Date`` of an answer, which is cut to whole seconds."""
    return parsedate_to_datetime(date).timestamp() + 0.5


class Clock:
    """The server's time. Does not refer to the client whose hook it is, which then would never be collected."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def now(self) -> float:
        """Return the time in Unix seconds."""
        return time.time() + self._ahead

    def compare(self, response: httpx.Response) -> None:
        """Take the time from an answer."""
        date = response.headers.get("date")
        if date and not is_passed_on(response.request.url.path):  # there a pod answers, by its own clock
            ahead = clock_of(date) - time.time()
            self._ahead = ahead if abs(ahead) > _SAME_CLOCK_S else 0.0
