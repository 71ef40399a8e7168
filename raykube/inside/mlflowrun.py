"""One run of MLflow: opened, given its rows, params and model, and closed."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from raykube.inside import addresses, entities, registry, storage
from raykube.inside.history import Row
from raykube.inside.place import Place

RUN_FILE = "mlflow.json"
_BATCH = 900  # MLflow takes 1,000 metrics a call
_PARAMS_BATCH = 100


@dataclass(frozen=True)
class Subject:
    """What is recorded: one training, one sweep, or one trial of a sweep.

    Attributes:
        experiment: MLflow's experiment, which also names the registered model.
        path: folder or URI of its stage.
        params: what MLflow shows as params.
        name: of the MLflow run; empty to use the run's own.
        parent: path of the sweep that a trial belongs to.
        files: its metrics files.
    """

    experiment: str
    path: str
    params: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    parent: str = ""
    files: tuple[str, ...] = ()


class MlflowRun:
    """MLflow's run of a subject, which a retry continues. A method that raised may be called again.

    Raises:
        MlflowException, OSError: from any method, if MLflow refuses or cannot be reached.
    """

    def __init__(self, place: Place, subject: Subject, uri: str) -> None:
        self._place = place
        self._subject = subject
        self._uri = uri
        self._client: Any = None
        self._id = ""
        self._noted = False
        self._names = entities.Names()
        self._earlier: list[Row] = []
        self._params: list[Any] = []
        self._step = 0
        self._ended = 0.0

    def send(self, rows: Sequence[Row]) -> None:
        """Send rows, after those of earlier attempts that MLflow lacks; open the run first."""
        if not self._id:
            self._open()
        if not self._noted:
            self._note()
        due = [*self._earlier, *rows]
        metrics = entities.points(due, self._step, self._names)
        while batch := list(islice(metrics, _BATCH)):
            self._client.log_batch(self._id, metrics=batch)
        self._step = max([self._step, *entities.steps(due, self._step)])
        self._ended = due[-1]["time"] if due else self._ended
        self._earlier = []

    def _open(self) -> None:
        # New tables of MLflow's are no news, and models of one's own, loaded as they were saved, are no danger.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        logging.getLogger("mlflow.pytorch").setLevel(logging.ERROR)
        from mlflow import MlflowClient

        with _one_at_a_time(self._place, self._uri):  # MLflow makes the tables of a new store, once
            self._client = MlflowClient(self._uri, registry_uri=addresses.registry(self._uri))
            experiment = _experiment(self._client, self._subject.experiment, self._place, self._uri)
        if known := _run_id(self._subject.path):  # a retry goes on in the run of the first attempt
            self._client.update_run(known, "RUNNING")
            run = self._client.get_run(known)
        else:
            tags = entities.tags(self._place, self._subject.path, _run_id(self._subject.parent))
            run = self._client.create_run(experiment, tags=tags, run_name=self._subject.name or self._place.run)
        # Another attempt may write a value differently, as an object with its address; MLflow refuses a changed one.
        self._params = [each for each in entities.params(self._subject.params) if each.key not in run.data.params]
        # Rows without a step go on from the highest one, whose value MLflow shows as the final one.
        self._step = max([0, *(metric.step for metric in run.data.to_proto().metrics)])
        self._earlier = entities.unsent(self._subject.files, self._place.attempt, run, self._names)
        self._id, self._noted = str(run.info.run_id), bool(known)

    def _note(self) -> None:
        """Write down MLflow's id of the run before anything else can fail: else the next try would make another run."""
        storage.write_text(storage.join(self._subject.path, RUN_FILE), json.dumps({"run_id": self._id}))
        self._noted = True

    def describe(self) -> None:
        """Send the params, apart from the rows: one that MLflow refuses must not keep the rows back."""
        while self._params:
            self._client.log_batch(self._id, params=self._params[:_PARAMS_BATCH])
            del self._params[:_PARAMS_BATCH]

    def register(self, checkpoint: str, model: Callable[[str], Any]) -> str:
        """Log and register the model that `model` makes from a checkpoint; return the URI of its version."""
        return registry.register(model, checkpoint, self._subject.experiment, self._id, self._uri)

    def close(self, status: str) -> None:
        """End the run as of its last row, with MLflow's `status`; do nothing if it was never opened."""
        if self._id:
            self._client.set_terminated(self._id, status, int(self._ended * 1000) or None)


def _experiment(client: Any, name: str, place: Place, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    # A server decides by itself where artifacts go; with our own database, they lie beside it.
    own = uri == addresses.database(place.storage)
    location = Path(place.storage, "mlartifacts", entities.folder(name)).as_uri() if own else None
    return str(client.create_experiment(name, artifact_location=location))


def _run_id(path: str) -> str:
    text = storage.read_from(storage.join(path, RUN_FILE)) if path else b""
    return str(json.loads(text)["run_id"]) if text else ""


def _one_at_a_time(place: Place, uri: str) -> AbstractContextManager[None]:
    if not uri.startswith("sqlite:") or storage.is_uri(place.storage):
        return nullcontext()
    return storage.locked(storage.join(place.storage, ".mlflow.lock"))
