"""What tests share."""

import contextlib
import functools
import importlib.util
import io
import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from raykube import cli
from raykube.cli import place

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[1]
#: What all ways to train digits are compared by.
DIGITS = ("python", "-m", "jobs.digits", "--epochs", "10")


class Later:
    """A module that is imported when it is first used: each process of tests reads this file, and few run its tests."""

    def __init__(self, name):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed", allow_module_level=True)
        self._name = name

    def __getattr__(self, name):
        if name.startswith("_"):  # pytest asks each object that a test file names for some of its own
            raise AttributeError(name)
        return getattr(importlib.import_module(self._name), name)


def run(*command, cwd=None, timeout=120, prefix=(), **environ):
    """Run a command of the virtual environment and return its finished process, with text output."""
    program = str(BIN / command[0]) if (BIN / command[0]).exists() else command[0]
    return subprocess.run(
        [*prefix, program, *command[1:]],
        cwd=cwd,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def pressed(*_, **__):
    """Stand for the step of a command at which Ctrl-C is pressed."""
    raise KeyboardInterrupt


def typed(*words, cwd, **environ):
    """Type a raykube command in this process, which spares the start of one; return it as `run` does."""
    logger, code = logging.getLogger("raykube"), 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
    ):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["raykube", *words])
        patch.setattr(logger, "level", logger.level)
        patch.setattr(place, "_PLACE_WORDS", [])
        for key, value in environ.items():
            patch.setenv(key, value)
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code or 0
    return subprocess.CompletedProcess(words, code, stdout.getvalue(), stderr.getvalue())


def without_root_rights():
    """Return the command prefix that makes root obey permission bits, as everybody else does."""
    if os.geteuid() != 0:
        return ()
    setpriv = shutil.which("setpriv")
    assert setpriv, "setpriv (Debian's util-linux) is needed to test permissions as root"
    return (setpriv, "--bounding-set", "-dac_override,-dac_read_search", "--")


def run_without_root_rights(*command, **kwargs):
    """Run a command that obeys permission bits even when the tests run as root."""
    return run(*command, prefix=without_root_rights(), **kwargs)


@contextlib.contextmanager
def file_size_limited(size):
    """Have no file of this process grow beyond a size, as on a full disk; with 0 none takes anything."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@functools.cache
def plain_digits():
    """Train digits on two workers as a plain script, once for all tests, and return what it printed.

    Its own Ray leaves no token in the home.
    """
    with tempfile.TemporaryDirectory() as folder:
        environ = {"RAYKUBE_WORKERS": "2", "RAYKUBE_STORAGE": folder, "RAYKUBE_TRACKING": "off", "HOME": folder}
        done = run(*DIGITS, cwd=ROOT, timeout=600, **environ)
        assert not Path(folder, ".ray").exists()
    assert done.returncode == 0, done.stderr
    return done.stdout
