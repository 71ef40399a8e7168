"""The clock of an API server, as its answers tell it: what stands in objects is by that."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

import httpx

from raykube.backends.kubernetes.refusals import is_passed_on

#: Two clocks that differ by less are taken for the same: answers tell theirs in whole seconds, and take time.
_SAME_CLOCK_S = 2.0


def clock_of(date: str) -> float:
    """Return the ``Date`` of an answer, which is cut to whole seconds, as the likeliest Unix time."""
    return parsedate_to_datetime(date).timestamp() + 0.5


class Clock:
    """Tells the server's time. It does not know the client whose hook it is: that would never be collected then."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def now(self) -> float:
        """Return the time in Unix seconds."""
        return time.time() + self._ahead

    def compare(self, response: httpx.Response) -> None:
        """Take the time from an answer."""
        date = response.headers.get("date")
        if date and not is_passed_on(response.request.url.path):  # there a pod tells its own
            ahead = clock_of(date) - time.time()
            self._ahead = ahead if abs(ahead) > _SAME_CLOCK_S else 0.0
