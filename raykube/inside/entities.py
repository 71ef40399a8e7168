"""What MLflow is sent, in the form that it accepts: tags, params, and the numbers in rows."""

from __future__ import annotations

import contextlib
import math
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, count
from typing import Any

from raykube import wire
from raykube.inside.history import Row, rows
from raykube.inside.place import Place

_NAME_MAX = 250
_VALUE_MAX = 6000
_FOLDER_MAX = 60
_STEP_MAX = 2**63 - 1


def tags(place: Place, path: str, parent: str) -> dict[str, str]:
    """Return the tags by which a run is found: its name, folder, scale, attempt, commit, and a trial's sweep."""
    scale = place.scale.environ()
    found = {
        "raykube.run": place.run,
        "raykube.path": path,
        "raykube.attempt": str(place.attempt),
        "raykube.workers": scale[wire.WORKERS],
        "raykube.cpus_per_worker": scale[wire.CPUS],
        "raykube.gpus_per_worker": scale[wire.GPUS],
    }
    told = {"mlflow.source.git.commit": place.git_commit, "mlflow.parentRunId": parent}
    return found | {name: value for name, value in told.items() if value}


def params(values: Mapping[Any, Any]) -> list[Any]:
    """Return `values` as MLflow's params."""
    from mlflow.entities import Param

    return [Param(name, _text(value)) for name, value in Names().named(values).items()]


def _text(value: Any) -> str:
    """Return a value as text that can be sent, without the lone surrogates of a file name that is not UTF-8."""
    return str(value)[:_VALUE_MAX].encode(errors="replace").decode()


def points(found: Sequence[Row], before: int, names: Names) -> Iterator[Any]:
    """Yield the numbers in rows as MLflow's metrics, each at its row's step (:func:`steps`)."""
    from mlflow.entities import Metric

    for row, step in zip(found, steps(found, before), strict=True):
        for name, value in names.named(_numbers(row)).items():
            yield Metric(name, float(value), _milliseconds(row), step)


def steps(found: Sequence[Row], before: int) -> list[int]:
    """Return the step of each row; a row without one comes after the highest so far, which is `before` at first.

    MLflow shows the value of the highest step as the final one.
    """
    done: list[int] = []
    for row in found:
        told = row["metrics"].get("step")
        done.append(told if isinstance(told, int) and abs(told) <= _STEP_MAX else min(before + 1, _STEP_MAX))
        before = max(before, done[-1])
    return done


def _numbers(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row["metrics"].items() if name != "step" and _is_finite(value)}


def unsent(files: Sequence[str], attempt: int, run: Any, names: Names) -> list[Row]:
    """Return the rows of earlier attempts that MLflow's run lacks: those after the last that it shows.

    MLflow shows the value of the highest step, so rows that it has may be sent again, which changes nothing there.
    `names` learns the names under which earlier rows were sent.
    """
    last = max((metric.timestamp for metric in run.data.to_proto().metrics), default=0)
    earlier = sorted((row for file in files for row in _sound(file) if row["attempt"] < attempt), key=_milliseconds)
    for row in earlier:
        names.named(_numbers(row))
    return [row for row in earlier if _milliseconds(row) > last]


def _sound(file: str) -> list[Row]:
    with contextlib.suppress(ValueError):  # a damaged line must not cost the rows of this attempt
        return rows(file)
    return []


def _milliseconds(row: Row) -> int:
    return int(row["time"] * 1000)


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # a whole number too large for a float
        return False


class Names:
    """Names that MLflow allows; it refuses a whole call for one other name.

    Allowed names stay as they are. If a changed name equals another, a number is appended to the later one. A name that
    was given once stays the same from then on, so that two metrics never share a history.
    """

    def __init__(self) -> None:
        self._sent: dict[Any, str] = {}

    def named(self, values: Mapping[Any, Any]) -> dict[str, Any]:
        """Return `values` under allowed names."""
        fresh = [given for given in values if given not in self._sent]
        for given in sorted(fresh, key=lambda given: _allowed(given) != given):
            self._sent[given] = self._free(_allowed(given))
        return {self._sent[given]: value for given, value in values.items()}

    def _free(self, name: str) -> str:
        numbered = (f"{name[: _NAME_MAX - 5]}_{number}" for number in count(2))
        taken = set(self._sent.values())
        return next(free for free in chain([name], numbered) if free not in taken)


def folder(experiment: str) -> str:
    """Return the name of an experiment's folder; two may share one, since what lies there has unique names."""
    return re.sub(r"^\.+|[^\w.\- ]", "_", experiment)[:_FOLDER_MAX]


def _allowed(name: Any) -> str:
    """Return a name that MLflow allows: only these characters and, as a path, normalized, relative and not upward."""
    text = re.sub(r"[^/\w.\- :]", "_", str(name))[:_NAME_MAX]
    if posixpath.normpath(text) != text or text == "." or text.startswith(("..", "/")):
        text = re.sub(r"^\.+|/", "_", text)
    return text or "_"
