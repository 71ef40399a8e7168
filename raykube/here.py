"""The folder that this runs in, which somebody may have removed since."""

from __future__ import annotations

from pathlib import Path

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
        ConfigError: it is from here, and here was removed.
    """
    try:
        return Path(path).expanduser().absolute()
    except FileNotFoundError as error:
        raise ConfigError(
            f"the folder that this runs in was removed, and {str(path)!r} is a path from there",
            why=str(error),
            next_step="go to a folder that exists, or write the path from the root",
        ) from None
