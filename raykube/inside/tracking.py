"""MLflow, fed from the driver: never on the training thread, and nothing when it is absent or off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from raykube import wire
from raykube.inside.history import Row
from raykube.inside.place import Place

Loader = Callable[[str], Any]


@dataclass(frozen=True)
class Subject:
    """What is recorded: one training, or one trial of a sweep.

    Attributes:
        experiment: MLflow's experiment, and the name of the registered model.
        path: folder or URI of its stage.
        params: of the loop.
        parent: the MLflow run of the sweep that a trial belongs to.
    """

    experiment: str
    path: str
    params: dict[str, Any]
    parent: str = ""


class Tracker:
    """Records nothing."""

    def rows(self, rows: list[Row]) -> None:
        """Take new rows of the metrics file."""

    def conclude(self, result: wire.Result, model: Loader | None) -> wire.Result:
        """Log the model if there is one, and return the result with what came of it."""
        del model
        return result


@contextmanager
def record(place: Place, subject: Subject) -> Iterator[Tracker]:
    """Record one training."""
    del place, subject
    yield Tracker()
