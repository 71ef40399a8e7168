"""How two plans differ, told without values that may be secret. Pure functions."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from raykube.sameness import NOT_PLAN_LINE
from raykube.yamltext import as_yaml, documents

#: What stands for a field that is not there.
ABSENT: Any = object()
_MOST_LINES = 20
_MOST_FILES = 5
_VARIABLES = "env_vars"
_OURS = "RAYKUBE_"
_TEXTS = re.compile(r"\.(runtimeEnvYAML|serveConfigV2)$")
_IN_ENV = re.compile(r"\.env(\[\d+\](\.value)?)?$")


def of_texts(old: str, new: str, but: re.Pattern[str] = NOT_PLAN_LINE) -> str:
    """Return the lines in which two texts (such as the YAML of two plans) differ; "" when they do not.

    Lines that match `but` are left out. Environment variables are shown by name only: people put passwords in their
    values.
    """
    theirs, ours = _without_secrets(old, new, "there"), _without_secrets(new, old, "here")
    lines = list(difflib.unified_diff(theirs.splitlines(), ours.splitlines(), n=0, lineterm=""))[2:]
    told = [line for line in lines if line[:1] in "+-" and not but.match(line[1:])]
    return "\n".join(told[:_MOST_LINES] + (["…"] if len(told) > _MOST_LINES else []))


def _without_secrets(text: str, other: str, where: str) -> str:
    try:
        found, others = ([*documents(each)] for each in (text, other))
    except yaml.YAMLError:  # without parsing, the values of variables cannot be told apart
        return f"(the text {where}; one of the two is no YAML)" if _VARIABLES in text + other else text
    if not all(isinstance(each, (Mapping, list)) for each in found):
        return text
    beside = [*others, *[None] * len(found)]
    return "---\n".join(as_yaml(_hide(*each, where)) for each in zip(found, beside, strict=False))


def _hide(value: Any, other: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        known = other if isinstance(other, Mapping) else {}
        hide = {key: _shown_variables if key == _VARIABLES else _hide for key in value}
        return {key: hide[key](inner, known.get(key), where) for key, inner in value.items()}
    if isinstance(value, list):
        beside = [*other, *[None] * len(value)] if isinstance(other, list) else [None] * len(value)
        return [_hide(*each, where) for each in zip(value, beside, strict=False)]
    return value


def _shown_variables(value: Any, other: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        return value
    known = other if isinstance(other, Mapping) else {}
    return {name: _shown_value(name, inner, known.get(name), where) for name, inner in value.items()}


def _shown_value(name: str, value: Any, other: Any, where: str) -> Any:
    if str(name).startswith(_OURS):
        return value
    return "(as there)" if value == other else f"(the value {where})"


def of_files(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Return which files differ; each mapping is from a file's path to something that stands for its content."""
    told = [f"{path} is only {'here' if path in here else 'there'}" for path in sorted(there.keys() ^ here.keys())]
    told = [f"{path} differs" for path in sorted(there.keys() & here.keys()) if there[path] != here[path]] + told
    return ", ".join(told[:_MOST_FILES]) + (f", and {more} more" if (more := len(told) - _MOST_FILES) > 0 else "")


def of_objects(wanted: Any, known: Any, path: str, *, whole: bool = False, omits: bool = False) -> Iterator[str]:
    """Yield how fields of `wanted` differ in `known`; fields that only `known` has count only with `whole`.

    A server adds such fields. With `omits`, a field that is false or empty may be absent in `known`: Go omits those.
    """
    if isinstance(wanted, Mapping) and isinstance(known, Mapping):
        for key in {**known, **wanted} if whole else wanted:
            ours, theirs = wanted.get(key, ABSENT), known.get(key, ABSENT)
            yield from of_objects(ours, theirs, f"{path}.{key}", whole=whole, omits=omits)
    elif isinstance(wanted, (list, tuple)) and isinstance(known, list) and len(wanted) == len(known):
        for index, (ours, theirs) in enumerate(zip(wanted, known, strict=True)):
            yield from of_objects(ours, theirs, f"{path}[{index}]", whole=whole, omits=omits)
    elif wanted != known and not (known is ABSENT and _may_be_absent(wanted, whole=whole, omits=omits)):
        yield from _of_values(wanted, known, path)


def _may_be_absent(wanted: Any, *, whole: bool, omits: bool) -> bool:
    return (wanted is None and not whole) or (omits and (wanted is False or wanted in ("", {}, [])))


def _of_values(wanted: Any, known: Any, path: str) -> Iterator[str]:
    """Yield how two values differ, without the values of a container's or a job's environment variables."""
    is_text = _TEXTS.search(path)
    theirs, ours = _word(known), _word(wanted)
    if _IN_ENV.search(path):
        yield f"{path}: another one there"
    elif isinstance(wanted, str) and isinstance(known, str) and ("\n" in wanted or is_text):
        if told := of_texts(known, wanted):
            yield f"{path}:\n{told}"
        elif not is_text:
            yield f"{path}: other ends of lines there"
    else:
        yield f"{path}: another one there" if is_text or theirs == ours else f"{path}: {theirs} there, {ours} here"


def _word(value: Any) -> str:
    """Return a value in a few words; a list or mapping is never shown, because it may hold variables."""
    if isinstance(value, (Mapping, list, tuple)):
        return "something else"
    return "absent" if value is ABSENT else f"{value!r:.200}"
