import json
import os
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace

import pytest
import torch

import raykube
from raykube import wire
from raykube.inside import checkpoints, tracking
from raykube.inside.mlflowrun import RUN_FILE, Subject
from raykube.inside.place import Place
from tests.local.inside.support import MARKS

pytestmark = MARKS


def loop(config):
    for step in range(50):
        raykube.report({"step": step, "loss": 1.0 / (step + 1), "note": "text"})
    raykube.report({"step": 50, "loss": 0.0}, {"weight": torch.ones(1, 1) * config["scale"]})


def load(checkpoint):
    model = torch.nn.Linear(1, 1, bias=False)
    model.load_state_dict({"weight": checkpoints.load(checkpoint)["weight"]})
    return model


def test_run_is_in_the_store_with_metrics_params_tags_and_model(here, monkeypatch):
    monkeypatch.setenv(wire.TRACKING, "on")
    monkeypatch.setenv(wire.GIT_COMMIT, "abc123")
    result = raykube.train(loop, {"scale": 3.0}, experiment="tracked", metric="loss", model=load)
    assert result.notes == ()
    assert result.model_uri == "models:/tracked/1"
    assert "MLFLOW_TRACKING_URI" not in os.environ  # where another training would send its own
    with closing(sqlite3.connect(here.storage / "mlflow.db")) as store:
        steps = store.execute("select step from metrics where key = 'loss' order by step").fetchall()
        params = dict(store.execute("select key, value from params").fetchall())
        tags = dict(store.execute("select key, value from tags").fetchall())
        status = store.execute("select status from runs").fetchall()
    assert [step for (step,) in steps] == list(range(51))
    assert params == {"scale": "3.0"}
    assert tags["raykube.run"] == here.run
    assert tags["raykube.workers"] == "1"
    assert tags["mlflow.source.git.commit"] == "abc123"
    assert status == [("FINISHED",)]

    from mlflow import MlflowClient

    from raykube.inside.serving import open_model, resolve

    client = MlflowClient(f"sqlite:///{here.storage}/mlflow.db")
    client.set_registered_model_alias("tracked", "champion", "1")
    for reference in (result.model_uri, "models:/tracked@champion"):
        model = open_model(resolve(reference), load)
        assert model(torch.ones(1, 1)).item() == 3.0


def no_loader(checkpoint):
    raise LookupError(f"no class for {checkpoint}")


def test_training_is_kept_when_its_model_cannot_be_loaded(here, monkeypatch):
    monkeypatch.setenv(wire.TRACKING, "on")
    with pytest.raises(raykube.errors.RunFailed, match="ModelFailed") as told:
        raykube.train(loop, {"scale": 1.0}, experiment="kept", model=no_loader)
    kept = wire.Result.from_json((here.folder / "train-1" / wire.RESULT_FILE).read_text())
    assert kept.metrics["step"] == 50
    assert checkpoints.load(kept.checkpoint)["weight"].item() == 1.0
    assert "not registered" in kept.notes[0]
    assert "no class for" in str(told.value)
    assert kept.checkpoint in told.value.next_step


def test_training_goes_on_without_the_mlflow_server_and_says_so(here, monkeypatch, caplog):
    monkeypatch.setenv(wire.TRACKING, "on")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    result = raykube.train(loop, {"scale": 1.0}, model=load)
    assert result.metrics["step"] == 50
    assert result.model_uri is None
    assert "127.0.0.1:9" in result.notes[0]
    assert caplog.text.count("training goes on") == 1
    assert not (here.storage / "mlflow.db").exists()


def test_trial_points_at_its_sweep_even_if_it_was_quicker(here):
    place = Place.from_environ("nested")
    place.prepare()
    opened = threading.Event()
    sweep_path, trial_path = str(here.folder / "sweep-1"), str(here.folder / "sweep-1" / "trial_a")
    place = replace(place, tracking=True)
    trial = tracking.start(place, Subject("nested", trial_path, parent=sweep_path), after=opened)
    with tracking.record(place, Subject("nested", sweep_path)) as sweep:
        assert sweep.tried.wait(60)
        opened.set()
        trial.end("FINISHED")
    parent = json.loads((here.folder / "sweep-1" / RUN_FILE).read_text())["run_id"]
    with closing(sqlite3.connect(here.storage / "mlflow.db")) as store:
        tagged = store.execute("select value from tags where key = 'mlflow.parentRunId'").fetchall()
    assert tagged == [(parent,)]
