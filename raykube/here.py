"""Paths relative to the current folder, which may have been removed, and checks of paths that may be unreadable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from raykube import wire
from raykube.errors import ConfigError


def upward() -> tuple[Path, ...]:
    """Return the current folder and those above it; nothing if the current folder was removed."""
    try:
        here = Path.cwd()
    except FileNotFoundError:
        return ()
    return (here, *here.parents)


def from_here(path: str | Path) -> Path:
    """Return a path that is relative to the current folder, or begins with ``~``, as an absolute path.

    Raises:
        ConfigError: the current folder was removed, or no user has the home folder that ``~`` names.
    """
    try:
        return wire.expanded(path).absolute()
    except FileNotFoundError as error:
        raise ConfigError(
            f"the folder that this runs in was removed, and {str(path)!r} is a path from there",
            why=str(error),
            next_step="go to a folder that exists, or write the path from the root",
        ) from None


def seems(is_so: Callable[[], bool]) -> bool:
    """Whether a check such as ``path.is_file`` succeeds; an error, as in a folder that is closed to us, means no."""
    try:
        return is_so()
    except (OSError, ValueError):  # a name that no file can have
        return False
