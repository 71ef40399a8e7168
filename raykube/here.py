"""The folder that this runs in, which somebody may have removed since, and looks at what may be closed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from raykube import wire
from raykube.errors import ConfigError


def upward() -> tuple[Path, ...]:
    """Return the folder that this runs in and those above it; none where it was removed."""
    try:
        here = Path.cwd()
    except FileNotFoundError:
        return ()
    return (here, *here.parents)


def from_here(path: str | Path) -> Path:
    """Return a path from here, or from the home folder, as one from the root.

    Raises:
        ConfigError: it is from here, and here was removed; or from the home folder of nobody.
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
    """Whether a look at a path says yes, as ``path.is_file``; below a folder that may not be entered, nothing does."""
    try:
        return is_so()
    except (OSError, ValueError):  # a name that no file can have
        return False
