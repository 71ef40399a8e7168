"""Plain data as YAML text that every reader of YAML reads alike, and YAML that somebody wrote as plain data."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """Writes each value where it stands, and text of several lines as such."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True


class _Loader(yaml.SafeLoader):
    """Reads a date as the text that it is: JSON, in which all is sent, has none."""


#: What other readers of YAML than Python's take for a number or a truth value: ``y``, ``1e3``, ``0o17``.
_AMBIGUOUS = re.compile(r"[yYnN]|[-+]?(0[xob][0-9a-fA-F_]+|([0-9][0-9_]*[.]?[0-9_]*|[.][0-9]+)([eE][-+]?[0-9]+)?)")


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else '"' if _AMBIGUOUS.fullmatch(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _date(loader: _Loader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


_Dumper.add_representer(str, _text)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _date)


def as_yaml(value: Any, *, sort_keys: bool = False) -> str:
    """Return plain data as YAML, the same value always as the same text."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=sort_keys, width=sys.maxsize)


def documents(text: str) -> Iterator[Any]:
    """Yield the documents of a manifest or of a job's file.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    yield from yaml.load_all(text, Loader=_Loader)
