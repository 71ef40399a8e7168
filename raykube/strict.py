"""The base of the specs, and the two checks that every part of the outside plane shares.

Turns pydantic's errors into one `ConfigError` that lists every problem by its path.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from raykube.errors import ConfigError, Problem

MAX_NAME = 47  # RayJob and RayService append up to 16 characters to make names of at most 63
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "did you mean …?" with the nearest of the `known` words, or the list of them."""
    words = sorted(known)
    close = difflib.get_close_matches(word, words, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(words) or 'none'}"


def name_problem(name: str, limit: int = MAX_NAME) -> str:
    """Return what Kubernetes would refuse about `name`, "" when it takes it (DNS-1035, at most `limit`)."""
    if len(name) > limit:
        return f"{name!r} has {len(name)} characters; Kubernetes takes {limit} here"
    if not _DNS_1035.fullmatch(name):
        return f"{name!r} is a name that Kubernetes would refuse: use a-z, 0-9 and '-', begin with a letter"
    return ""


class Spec(BaseModel):
    """Base of all specs: frozen, strict about keys, and every error is one `ConfigError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            found = tuple(_problems(error, type(self)))
            raise ConfigError.of(f"this {type(self).__name__} cannot be made", found) from None


def _problems(error: ValidationError, kind: type[Spec]) -> Iterator[Problem]:
    for item in error.errors():
        path = _path(item["loc"])
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError) and cause.problems:
            yield from (Problem(_joined(path, inner.path), inner.what, inner.next_step) for inner in cause.problems)
        elif item["type"] == "extra_forbidden":
            yield Problem(path, "unknown key", nearest(str(item["loc"][-1]), kind.model_fields))
        elif item["type"] == "missing":
            yield Problem(path, "is required")
        elif cause is not None:
            yield Problem(path, str(cause))
        else:
            yield Problem(path, f"{item['msg'][0].lower()}{item['msg'][1:]}, got {item['input']!r:.80}")


def _path(loc: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


def _joined(outer: str, inner: str) -> str:
    return f"{outer}.{inner}" if outer and inner and not inner.startswith("[") else outer + inner
