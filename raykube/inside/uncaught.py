"""Keeps why a script ended, for whoever asks later: a failure of raykube's that the script did not catch.

The traceback is in the log, but not always at its end: Ray prints there what its workers have said meanwhile.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import sys
import time
import weakref
from collections.abc import Iterator

from raykube import wire
from raykube.errors import RunFailed
from raykube.inside import storage
from raykube.inside.failures import TRACEBACK_STEP
from raykube.inside.place import Place


@contextlib.contextmanager
def kept(place: Place) -> Iterator[None]:
    """Have a RunFailed of the block written into the run's folder, if it is what ends this script.

    That is known only at exit, when ``sys.last_value`` holds the exception that nobody caught. So a script that catches
    the failure leaves no file, whatever ends the script later.
    """
    try:
        yield
    except RunFailed as error:
        atexit.register(_write, place, weakref.ref(error))  # weak: its traceback holds what was trained
        raise


def _write(place: Place, failed: weakref.ref[RunFailed]) -> None:
    error = getattr(sys, "last_value", None)
    if not isinstance(error, RunFailed) or error is not failed():
        return
    step = "" if error.next_step == TRACEBACK_STEP else error.next_step  # no traceback is below it elsewhere
    note = {"reason": error.reason, "message": error.why, "next_step": step}
    whole = {"time": time.time(), "attempt": place.attempt, **note}
    with contextlib.suppress(OSError, ValueError):  # the script has failed anyway, and its log says why
        storage.write_text(storage.join(place.path, wire.FAILURE_FILE), json.dumps(whole))
