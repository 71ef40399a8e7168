"""One thing that was looked at, and what errors mean as such a thing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from raykube.errors import ConfigError, Forbidden, RaykubeError


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what was found, and what to do when it is not `ok`.

    `ok` is None for what is absent and needed only for some uses, and for what this user cannot see.
    """

    name: str
    ok: bool | None
    found: str
    next_step: str = ""


def looked(name: str, look: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """Yield what `look` finds; if it fails, yield its error as what was found, so that the next look can go on."""
    try:
        yield from look()
    except RaykubeError as error:
        yield refused(name, error)


def refused(name: str, error: RaykubeError) -> Check:
    """Return an error as a check; what this user may not see is unknown, not wrong."""
    parts = (error.what, error.why, *(error.problems if isinstance(error, ConfigError) else ()))
    text = ": ".join(str(part) for part in parts if part)
    return Check(name, None if isinstance(error, Forbidden) else False, text, error.next_step or "see what it says")
