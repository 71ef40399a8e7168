import pytest

from raykube import wire
from raykube.inside.place import Place
from raykube.inside.tracking import MlflowTracker, Subject

pytest.importorskip("mlflow")


class OldStore(MlflowTracker):
    """A store whose database raises what is no error of MLflow."""

    def _send(self):
        raise LookupError("no such column: runs.kind")


@pytest.mark.filterwarnings("ignore")
def test_unexpected_error_of_the_store_is_noted_in_the_result(tmp_path, caplog):
    tracker = OldStore(Place("demo", str(tmp_path)), Subject("tests", str(tmp_path)), "sqlite:///unused.db")
    tracker.rows([{"time": 1.0, "metrics": {"loss": 1.0}, "checkpoint": None}])
    result = tracker.conclude(wire.Result("train", "demo", str(tmp_path)))
    assert "LookupError: no such column: runs.kind" in result.notes[0]
    assert caplog.text.count("training goes on") == 1
