"""The code of runs and services on this machine: a zip for each version of it, named by its content."""

from __future__ import annotations

import contextlib
from pathlib import Path

from raykube import package, wire
from raykube.backends.local import disk, records
from raykube.errors import BackendError
from raykube.package import Package


def folder() -> Path:
    """Return the folder of the zips; it need not exist."""
    return wire.home() / "packages"


def path_of(code: Package) -> Path:
    """Return the zip of some code, which the URI of a run or service names; it need not exist."""
    return folder() / f"{code.hash}.zip"


def keep(code: Package) -> None:
    """Write the zip of some code, unless it is there. The caller holds the head's lock.

    Raises:
        BackendError: the disk is full or not writable. Nothing is left behind.
        ConfigError: the code changed since it was looked at.
    """
    path = path_of(code)
    if path.exists():
        return
    with disk.errors(where=path):
        path.parent.mkdir(exist_ok=True, mode=0o700)
        with disk.whole(path) as file:
            package.zip_into(file, code)


def remove_unused() -> None:
    """Remove the zips that no record names. The caller holds the lock, as do those who write zips and records."""
    with contextlib.suppress(BackendError):  # a record cannot be read: it may name any of them
        plans_of_all = "".join(records.texts())
        for path in folder().glob("*.zip"):
            if path.name not in plans_of_all:
                path.unlink()
