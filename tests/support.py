"""What tests share."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent


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
