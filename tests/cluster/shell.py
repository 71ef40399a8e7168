"""Commands and their failures, and the steps that a person watches."""

import json
import os
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

console = Console(stderr=True, highlight=False)
_SOONEST_S, _LATEST_S, _PART = 0.1, 1.0, 20


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
    """Wait until `fact()` is true and return it.

    What has taken long is asked for less often: a question takes CPU from what it waits for. `poll_s` fixes the pace.

    Raises:
        ClusterError: it was not in time.
    """
    began = time.monotonic()
    while not (found := fact()):
        waited = time.monotonic() - began
        if waited > timeout_s:
            raise ClusterError(f"not after {timeout_s:g} s: {what}")
        threading.Event().wait(poll_s or min(_LATEST_S, max(_SOONEST_S, waited / _PART)))
    return found


def write(path, content):
    """Write text, or a value as JSON, and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
    return path
