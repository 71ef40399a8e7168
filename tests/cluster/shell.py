"""Commands and their failures, and the steps that a person watches."""

import os
import subprocess
import threading
import time
from contextlib import contextmanager

from rich.console import Console

from tests import basics
from tests.basics import write  # noqa: F401 - the cluster's modules take it from here

console = Console(stderr=True, highlight=False)
_SOONEST_S = 0.1


class ClusterError(Exception):
    """What went wrong, why, and what to do about it."""


def run(*argv, stdin=None, cwd=None, env=None, timeout_s=900, check=True):
    """Run a command and return what it printed; ClusterError with its own words if it fails."""
    command = [str(word) for word in argv]
    environ = {**os.environ, **(env or {})}
    try:
        done = subprocess.run(
            command, input=stdin, cwd=cwd, env=environ, capture_output=True, timeout=timeout_s, check=False
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{command[0]} is not installed: see tests/cluster/README.md, what it needs") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"no end after {timeout_s} s: {' '.join(command)[:300]}") from error
    output = done.stdout.decode(errors="replace")
    if check and done.returncode:
        said = f"{output}\n{done.stderr.decode(errors='replace')}".strip()[-3000:]
        raise ClusterError(f"exit code {done.returncode} of {' '.join(command)[:300]}\n{said}")
    return output


@contextmanager
def step(text):
    """Tell that something is being done, and afterwards how long it took."""
    start = time.monotonic()
    with console.status(f"{text} …") if console.is_terminal else _said_if_long(text):
        yield
    console.print(f"{time.monotonic() - start:7.1f} s  {text}")


@contextmanager
def _said_if_long(text):
    """Say in a pipe what is going on once it takes longer than two seconds."""
    timer = threading.Timer(2.0, console.print, [f"           {text} …"])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def until(fact, what, timeout_s, *, poll_s=None):
    """Wait as `tests.basics.until` does, and ask not too often: most facts here take a command to know.

    Raises:
        ClusterError: it was not in time.
    """
    try:
        return basics.until(fact, what, timeout_s, soonest_s=_SOONEST_S, poll_s=poll_s)
    except basics.NotInTime as late:
        raise ClusterError(str(late)) from None
