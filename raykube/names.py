"""Which names and texts the places accept, and the nearest known word to an unknown one.

Separate from the specs, so that a module which needs only this does not wait for pydantic.
"""

from __future__ import annotations

import difflib
import random
import re
import shlex
import string
from collections.abc import Iterable
from pathlib import PurePosixPath

from raykube.errors import ConfigError

MAX_NAME = 47  # RayJob and RayService append up to 16 characters to make names of at most 63
_LONGEST = 253  # the longest name that a Kubernetes object can have
_LONGEST_LABEL = 63
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_DNS_1123 = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "did you mean …?" with the nearest of the `known` words, or the list of them."""
    words = sorted(known)
    close = difflib.get_close_matches(word, words, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(words) or 'none'}"


def name_problem(name: str, limit: int = MAX_NAME) -> str:
    """Return why Kubernetes would refuse `name`; "" when it would accept it (DNS-1035, at most `limit` characters)."""
    if len(name) > limit:
        return f"{name!r} has {len(name)} characters; Kubernetes takes {limit} here"
    if not _DNS_1035.fullmatch(name):
        return f"{name!r} is a name that Kubernetes would refuse: use a-z, 0-9 and '-', begin with a letter"
    return ""


def made_name(entrypoint: str) -> str:
    """Return a new name that says what runs: ``digits-xkqzp`` for ``python -m jobs.digits --lr 1``."""
    try:
        words = shlex.split(entrypoint)
    except ValueError:
        words = entrypoint.split()
    words = [word for word in words if not re.fullmatch(r"\w+=.*", word)] or ["job"]
    interpreter = re.fullmatch(r"python[\d.]*", PurePosixPath(words[0]).name)
    words = words[1:] if interpreter and "-c" not in words else words
    target = next((word for word in words if not word.startswith("-")), "job")
    stem = re.sub(r"\.(py|sh)$", "", PurePosixPath(target).name).split(".")[-1].lower()
    slug = re.sub(r"[^a-z0-9]+", "-", stem).lstrip("-0123456789")[:30].rstrip("-")
    return f"{slug or 'job'}-{''.join(random.choices(string.ascii_lowercase, k=5))}"  # noqa: S311 - a name, no secret


def unsendable(text: str) -> str:
    """Return why no place could accept a text; "" when all can. The text itself is left out: it may be a secret."""
    if "\0" in text:
        return "has a NUL character, which no process can be given"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"cannot be sent as UTF-8: {error.reason} (at character {error.start})"
    return ""


def is_object_name(name: str) -> bool:
    """Whether `name` is valid for a Kubernetes object (DNS-1123): in a URL, any other could lead elsewhere."""
    return len(name) <= _LONGEST and bool(_DNS_1123.fullmatch(name))


def is_namespace(name: str) -> bool:
    """Whether `name` is valid for a Kubernetes namespace."""
    return len(name) <= _LONGEST_LABEL and bool(_DNS_1123.fullmatch(name)) and "." not in name


def asked_for(name: str, noun: str = "job") -> str:
    """Return `name` if a job, service or cluster, whoever made it, can have it.

    In the URL of a request for one object, any other name could lead elsewhere: to all objects of that kind, or to
    something of another kind.

    Raises:
        ConfigError: nothing can have this name.
    """
    if not isinstance(name, str):
        step = f"list the names that exist: raykube {noun} list"
        raise ConfigError(f"{name!r:.80} is not a valid name", why="a name is text", next_step=step)
    if is_object_name(name):
        return name
    if len(name) > _LONGEST:
        what, why = f"a name of {len(name)} characters is too long", f"{_LONGEST} are the most that Kubernetes takes"
        raise ConfigError(what, why=why, next_step=f"list the names that exist: raykube {noun} list")
    last = name.rpartition("/")[2]
    if last != name and is_object_name(last):
        what, why, step = f"{name!r} is not a valid name", "a name has no '/' in it", f"write {last}, not {name}"
    else:
        what = f"{name!r} is not a valid name" if name else f"the name of a {noun} is empty"
        why, step = "names are of a-z, 0-9, '-' and '.'", f"list the names that exist: raykube {noun} list"
    raise ConfigError(what, why=why, next_step=step)
