"""Writing plain data as YAML that every YAML parser reads alike, and reading YAML as plain data."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """Writes each value in full instead of an alias, and text of several lines as a block."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True


class _Loader(yaml.SafeLoader):
    """Reads YAML as other parsers of manifests do: no dates, because JSON has none, and each key is text, only once.

    ``22:30`` is no number, unlike in YAML 1.1.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._seen: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge ``<<`` keys. Raises ConstructorError for a key that is there twice: the last one would win."""
        if id(node) not in self._seen:  # checked before merged keys are among its own
            self._seen.add(id(node))
            _take_keys(node)
        super().flatten_mapping(node)


def _take_keys(node: yaml.MappingNode) -> None:
    """Make a mapping's keys the text that is written: ``ON`` and ``YES`` are two names, not ``True`` twice."""
    known: set[str] = set()
    for index, (key, value) in enumerate(node.value):
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if key.value in known:
                what = f"the key {key.value!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, what, key.start_mark)
            known.add(key.value)
            # A new node, because an alias may use the old one as a value.
            text = yaml.ScalarNode("tag:yaml.org,2002:str", key.value, key.start_mark, key.end_mark)
            node.value[index] = (text, value)


#: Text that YAML parsers other than Python's take for a number or a boolean: ``y``, ``1e3``, ``0o17``.
_AMBIGUOUS = re.compile(r"[yYnN]|[-+]?(0[xob][0-9a-fA-F_]+|([0-9][0-9_]*[.]?[0-9_]*|[.][0-9]+)([eE][-+]?[0-9]+)?)")


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else '"' if _AMBIGUOUS.fullmatch(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _date(loader: _Loader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int | str:
    return str(node.value) if ":" in node.value else int(loader.construct_yaml_int(node))


def _float(loader: _Loader, node: yaml.ScalarNode) -> float | str:
    return str(node.value) if ":" in node.value else float(loader.construct_yaml_float(node))


_Dumper.add_representer(str, _text)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _date)
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


def as_yaml(value: Any, *, sort_keys: bool = False) -> str:
    """Return plain data as YAML; the same value always gives the same text."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=sort_keys, width=sys.maxsize)


def documents(text: str) -> Iterator[Any]:
    """Yield the documents of a manifest or of a job's file.

    Raises:
        yaml.YAMLError: the text is not YAML, or holds what cannot be sent: JSON has no NaN, bytes or cycles.
    """
    try:
        for document in yaml.load_all(text, Loader=_Loader):
            sent = json.dumps(document, allow_nan=False, ensure_ascii=False).encode()
            # Not `document` itself: there, an anchor and its aliases share one value, and an edit would change all.
            yield json.loads(sent)
    except UnicodeEncodeError as error:  # its message would show the text
        what = f"half a character, {error.object[error.start : error.end]!a}, which no text can have"
        raise yaml.YAMLError(what) from None
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (ValueError, TypeError) as error:  # a value does not fit its tag, or JSON
        raise yaml.YAMLError(str(error)) from error
