"""What all tests share, and the test cluster's own commands too: no more than the standard library is imported."""

import json
import threading
import time
from pathlib import Path

_LATEST_S, _PART = 1.0, 20


class NotInTime(AssertionError):
    """What was waited for has not come."""


def until(fact, what, timeout_s, *, soonest_s=0.01, poll_s=None):
    """Wait until `fact()` is true and return it.

    What has taken long is asked for less often: a question takes CPU from what it waits for. `poll_s` fixes the pace.

    Raises:
        NotInTime: it was not in time.
    """
    began = time.monotonic()
    while not (found := fact()):
        waited = time.monotonic() - began
        if waited > timeout_s:
            raise NotInTime(f"not after {timeout_s:g} s: {what}")
        threading.Event().wait(poll_s or min(_LATEST_S, max(soonest_s, waited / _PART)))
    return found


def write(path, content):
    """Write text, or a value as JSON, and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
    return path
