import functools
import json
import os
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from raykube import wire
from raykube.inside import addresses, entities, registry, tracking
from raykube.inside.mlflowrun import RUN_FILE, Subject
from raykube.inside.place import Place
from raykube.inside.stages import Stage
from raykube.inside.tracking import MlflowTracker
from raykube.inside.trials import CONFIG_FILE, Trials
from tests.basics import until, write
from tests.servers import Quiet, serving
from tests.support import Later, run

Later("mlflow")

# MLflow and its dependencies warn of each other's deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")


class OldStore(MlflowTracker):
    """A store whose database raises what is no error of MLflow."""

    def _send(self):
        raise LookupError("no such column: runs.kind")


class Server(Quiet):
    """A server of MLflow with one run: notes what it is asked for, and refuses what holds a word."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        self.answer(200, {"experiment": {"experiment_id": "1"}, "run": {"info": {"run_id": "1"}}})

    def do_POST(self):  # noqa: N802 - http.server calls it so
        body = self.body().decode()
        self.server.asked.append((self.path.partition("mlflow/")[2], body))
        if any(word in body for word in self.server.refused):
            self.answer(400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "it refuses that"})
        else:
            self.answer(200, {"run": {"info": {"run_id": "1"}}})


def calls(server, *words):
    """Return the bodies of the calls of one method that have all words."""
    return [body for method, body in server.asked if all(word in f"{method} {body}" for word in words)]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracking, "_AGAIN_S", 0.0)
    with serving(Server) as server:
        yield server


def begin(server, path, user="", **params):
    subject = Subject("tests", str(path), params)
    return MlflowTracker(Place("demo", str(path)), subject, f"http://{user}127.0.0.1:{server.server_port}")


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A store of this module, with its tables: to make those takes MLflow seconds, on a busy machine a minute."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


class Run:
    """A run of MLflow without metrics."""

    class data:  # noqa: N801 - MLflow calls it so
        @staticmethod
        def to_proto():
            from mlflow.entities import RunData

            return RunData().to_proto()


def select(database, words):
    with closing(sqlite3.connect(database)) as store:
        return store.execute(words).fetchall()


def rows(*metrics):
    return [{"time": float(number), "metrics": each, "checkpoint": None} for number, each in enumerate(metrics, 1)]


def track(database, path, params, *metrics):
    """Record a run of one place, and return its result."""
    tracker = MlflowTracker(Place("demo", str(path)), Subject(path.name, str(path), params), f"sqlite:///{database}")
    tracker.rows(rows(*metrics))
    result = tracker.conclude(wire.Result("train", "demo", str(path)))
    tracker.end("FINISHED")
    return result


@pytest.mark.parametrize("is_known", [True, False])
def test_rows_that_an_earlier_attempt_could_not_send_are_sent_by_the_next(tmp_path, database, is_known):
    def begin(attempt):
        subject = Subject(f"unsent-{is_known}", str(tmp_path), files=(str(tmp_path / "metrics.jsonl"),))
        return MlflowTracker(Place("demo", str(tmp_path), attempt=attempt), subject, f"sqlite:///{database}")

    told = [row | {"attempt": 1} for row in rows({"lost": 1.0}, {"lost": 2.0}, {"lost": 3.0})]
    if is_known:
        first = begin(1)
        first.rows(told[:1])
        first.end("KILLED")
    now = {"time": 9.0, "attempt": 2, "metrics": {"lost": 4.0}, "checkpoint": None}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*told, now)))
    second = begin(2)
    second.rows([now])
    assert second.conclude(wire.Result("train", "demo", str(tmp_path))).notes == ()
    second.end("FINISHED")
    run_id = json.loads((tmp_path / RUN_FILE).read_text())["run_id"]
    found = select(database, f"select value, step from metrics where run_uuid = '{run_id}' order by timestamp")
    assert found == [(1.0, 1), (2.0, 2), (3.0, 3), (4.0, 4)]


RECORDS = """
import sys
sys.modules["mlflow"] = None  # what imports it, or looks for it, finds none
from raykube import wire
from raykube.inside import tracking
from raykube.inside.mlflowrun import Subject
from raykube.inside.place import Place
place = Place("demo", sys.argv[1])
with tracking.record(place, Subject("tests", place.path, {"lr": 0.1})) as tracker:
    tracker.rows([{"time": 1.0, "metrics": {"loss": 1.0}, "checkpoint": None}])
    result = tracker.conclude(wire.Result("train", "demo", place.path, checkpoint=place.path), model=print)
print(type(tracker).__name__, result.notes, result.model_uri)
"""


def test_nothing_is_recorded_where_mlflow_is_absent(tmp_path):
    done = run("python", "-c", RECORDS, str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "Tracker () None\n", "")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_recorded_where_tracking_is_off(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    place = Place.from_environ("tests", {wire.TRACKING: "off", wire.STORAGE: str(tmp_path)})
    with tracking.record(place, Subject("tests", place.path, {"lr": 0.1})) as tracker:
        tracker.rows(rows({"loss": 1.0}))
        result = tracker.conclude(wire.Result("train", place.run, place.path, checkpoint=place.path), model=print)
    assert (type(tracker), result.notes, result.model_uri) == (tracking.Tracker, (), None)
    assert list(tmp_path.iterdir()) == []


def test_unexpected_error_of_the_store_is_noted_in_the_result(tmp_path, caplog):
    tracker = OldStore(Place("demo", str(tmp_path)), Subject("tests", str(tmp_path)), "sqlite:///unused.db")
    tracker.rows(rows({"loss": 1.0}))
    result = tracker.conclude(wire.Result("train", "demo", str(tmp_path)))
    assert "LookupError: no such column: runs.kind" in result.notes[0]
    assert caplog.text.count("training goes on") == 1


NAMES = ["loss", "acc@1", "f1(macro)", "a/b c:d.e-f_g", "größe", ".hidden", "a/..b"]
PATHS = ["", ".", "..", "..a", "/a", "//a", "a/", "a//b", "a/./b", "a/../b", "../a", "./a", "x" * 300, "x" * 249 + "/y"]


@pytest.mark.parametrize("name", [*NAMES, *PATHS])
def test_name_is_one_that_mlflow_allows_and_the_same_if_it_was(name):
    from mlflow.exceptions import MlflowException
    from mlflow.utils import validation

    def check(text):
        validation._validate_metric(text, 1.0, 1, 1)
        validation._validate_param(text, "1")

    (found,) = entities.Names().named({name: 1})
    check(found)
    try:
        check(name)
    except MlflowException:
        assert found != name
    else:
        assert found == name


def test_names_that_become_one_are_told_apart():
    same = {"acc@1": 1, "acc_1": 2, "acc#1": 3, 4: 4}
    assert entities.Names().named(same) == {"acc_1": 2, "acc_1_2": 1, "acc_1_3": 3, "4": 4}
    assert len(entities.Names().named({"x" * 300: 1, "x" * 301: 2})) == 2


def test_name_stays_the_same_for_a_run_s_length(tmp_path):
    names = entities.Names()
    earlier = json.dumps({"attempt": 1, **rows({"acc@1": 0.5})[0]}) + "\n"
    (tmp_path / "metrics.jsonl").write_text(earlier)
    assert len(entities.unsent([str(tmp_path / "metrics.jsonl")], 2, Run(), names)) == 1
    told = entities.points(rows({"acc#1": 1.0}, {"acc@1": 2.0, "acc_1": 3.0}, {"acc#1": 4.0}), 0, names)
    assert [(metric.key, metric.value) for metric in told] == [
        *(("acc_1_2", 1.0), ("acc_1", 2.0), ("acc_1_3", 3.0), ("acc_1_2", 4.0)),
    ]


def test_row_without_a_step_comes_after_the_highest_so_far():
    assert entities.steps(rows({"a": 1}, {"step": 100}, {"val": 1}, {"step": 50}, {"val": 2}), 4) == [
        5,
        100,
        101,
        50,
        102,
    ]
    assert entities.steps(rows({"step": 2**63 - 1}, {"val": 1}), 0) == [2**63 - 1] * 2


def test_rows_without_a_step_go_on_in_later_batches(server, tmp_path):
    tracker = begin(server, tmp_path)
    for metrics in ({"loss": 1.0, "step": 100}, {"loss": 2.0}, {"loss": 3.0}):
        tracker.rows(rows(metrics))
        until(functools.partial(calls, server, "log-batch", f'"value": {metrics["loss"]}'), "it is sent", 60)
    tracker.end("FINISHED")
    sent = [json.loads(body)["metrics"] for body in calls(server, "log-batch", '"metrics"')]
    assert [metric["step"] for batch in sent for metric in batch] == [100, 101, 102]


def test_numbers_beyond_what_mlflow_holds_are_left_out():
    told = entities.points(rows({"huge": 10**400, "loss": 1.0, "step": 2**63}), 4, entities.Names())
    assert [(metric.key, metric.value, metric.step) for metric in told] == [("loss", 1.0, 5)]


def test_name_that_mlflow_refuses_keeps_nothing_back(database, tmp_path):
    params = {"lr@head": 0.1, "lr#head": 0.2}
    assert track(database, tmp_path, params, {"acc@1": 0.5, "acc#1": 0.5, "f1(macro)": 0.6, "loss": 1.0}).notes == ()
    run = f"run_uuid in (select run_uuid from tags where value = '{tmp_path}')"
    metrics = dict(select(database, f"select key, value from metrics where {run}"))
    assert metrics == {"acc_1": 0.5, "acc_1_2": 0.5, "f1_macro_": 0.6, "loss": 1.0}
    assert dict(select(database, f"select key, value from params where {run}")) == {
        "lr_head": "0.1",
        "lr_head_2": "0.2",
    }


EXPERIMENTS = ["digits", "v1.2 größe-x", "/Users/me/exp", "team/exp:2", "..", ".", "..a", "../../up", "x" * 400]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_artifacts_of_an_experiment_lie_in_one_folder_of_the_storage(experiment):
    name = entities.folder(experiment)
    assert Path("/runs", "mlartifacts", name).resolve().parent == Path("/runs/mlartifacts")
    assert len(name.encode()) < 255
    assert (name == experiment) == (experiment in EXPERIMENTS[:2])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_model_s_name_is_one_that_mlflow_allows_and_its_experiment_s_if_it_may_be(experiment):
    from mlflow.utils.validation import _validate_model_name

    _validate_model_name(name := registry.model_name(experiment))
    assert (name == experiment) == (experiment in EXPERIMENTS[:2])


def test_experiment_named_like_a_path_keeps_its_artifacts_in_the_storage(database, tmp_path):
    place = Place("demo", str(tmp_path))
    store = tmp_path / "mlflow.db"
    store.write_bytes(database.read_bytes())
    with tracking.record(place, Subject("/Users/me/exp", place.path)) as tracker:
        assert tracker.conclude(wire.Result("train", "demo", place.path)).notes == ()
    (found,) = select(store, "select artifact_location from experiments where name = '/Users/me/exp'")
    assert found[0] == (tmp_path / "mlartifacts" / "_Users_me_exp").as_uri()


def test_model_is_registered_beside_a_run_that_the_script_has_open(database, tmp_path, monkeypatch):
    import mlflow

    torch = pytest.importorskip("torch")
    (tmp_path / "mlflow.db").write_bytes(database.read_bytes())
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = mlflow.MlflowClient(uri)
    run = client.create_run(client.create_experiment("beside", artifact_location=(tmp_path / "files").as_uri()))
    with mlflow.start_run() as own:
        model = registry.register(lambda _: torch.nn.Linear(1, 1), str(tmp_path), "beside", run.info.run_id, uri)
        assert mlflow.active_run().info.run_id == own.info.run_id
    assert model == "models:/beside/1"
    assert "mlflow.parentRunId" not in client.get_run(run.info.run_id).data.tags


def test_registration_that_fails_is_told_and_the_run_has_ended_well(server, tmp_path, caplog):
    server.refused.add("registered")
    tracker = begin(server, tmp_path)
    tracker.rows(rows({"loss": 1.0}))

    def load(folder):
        raise OSError(f"no weights in {folder}")

    result = tracker.conclude(wire.Result("train", "demo", str(tmp_path), checkpoint=str(tmp_path)), load)
    tracker.end("FINISHED")
    assert result.model_uri is None
    assert "did not register the model" in result.notes[0]
    assert "run:demo" in result.notes[0]
    assert f"no weights in {tmp_path}" in result.notes[0]
    assert "training goes on" not in caplog.text
    assert calls(server, "runs/update", "FINISHED")
    assert calls(server, "runs/update", "FAILED") == []


def test_param_that_is_no_text_of_unicode_is_sent_as_near_as_can_be():
    assert [param.value for param in entities.params({"data": os.fsdecode(b"/caf\xe9"), "lr": 0.1})] == ["/caf?", "0.1"]


def test_params_that_mlflow_refuses_are_apart_from_the_run(server, tmp_path):
    server.refused.add('"params"')
    tracker = begin(server, tmp_path, lr=0.1)
    until(lambda: len(calls(server, "log-batch", '"params"')) > 1, "the params are sent again", 60)
    tracker.rows(rows({"loss": 1.0}))
    result = tracker.conclude(wire.Result("train", "demo", str(tmp_path)))
    tracker.end("FINISHED")
    assert len(calls(server, "runs/create")) == 1
    assert json.loads((tmp_path / RUN_FILE).read_text()) == {"run_id": "1"}
    assert len(calls(server, "log-batch", "loss")) == 1
    assert len(calls(server, "runs/update", "FINISHED")) == 1
    assert "it refuses that" in result.notes[0]


def test_run_is_kept_in_mind_until_its_file_can_be_written(server, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    tracker = begin(server, blocked)
    until(lambda: "training goes on" in caplog.text, "the file cannot be written", 60)
    blocked.unlink()
    until((blocked / RUN_FILE).exists, "the file is written", 60)
    tracker.end("FINISHED")
    assert len(calls(server, "runs/create")) == 1


def test_retry_goes_on_behind_the_rows_of_the_first_attempt(database, tmp_path):
    assert track(database, tmp_path, {"device": "<cpu at 0x1>"}, {"loss": 3.0}, {"loss": 2.0}).notes == ()
    assert track(database, tmp_path, {"device": "<cpu at 0x2>", "more": 1}, {"loss": 1.0}).notes == ()
    (run,) = select(database, f"select run_uuid from tags where value = '{tmp_path}'")
    found = f"where run_uuid = '{run[0]}' order by key"
    assert select(database, f"select step, value from metrics {found}, step") == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert select(database, f"select value from latest_metrics {found}") == [(1.0,)]
    assert select(database, f"select key, value from params {found}") == [("device", "<cpu at 0x1>"), ("more", "1")]


@pytest.mark.parametrize(
    ("uri", "safe"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://user:pw@host:5000/at", "https://host:5000/at"),
        ("https://token@host", "https://host"),
        ("https://me@corp.com:p@ss@host", "https://host"),
        ("postgresql+psycopg2://user:p/w@db/mlflow", "postgresql+psycopg2://db/mlflow"),
        (
            "postgresql://db/mlflow?user=me&password=pw&sslmode=require",
            "postgresql://db/mlflow?user=me&password=***&sslmode=require",
        ),
        ("sqlite:////home/me@corp/mlflow.db", "sqlite:////home/me@corp/mlflow.db"),
        ("databricks://profile", "databricks://profile"),
    ],
)
def test_uri_is_shown_without_user_and_password(uri, safe):
    assert addresses.shown(uri, uri) == safe
    assert (
        addresses.shown(f"API request to {uri}/api failed: {uri!r}", "", uri)
        == f"API request to {safe}/api failed: {safe!r}"
    )


def test_uri_that_is_not_the_own_is_shown_without_user_and_password():
    text = "(https://user:pw@other/a, http://host/b by me@corp)"
    assert addresses.shown(text, "http://127.0.0.1:5000") == "(https://other/a, http://host/b by me@corp)"


class Telling(MlflowTracker):
    """A store whose own error tells where it is."""

    def _send(self):
        raise LookupError(f"nothing at {self._uri}")


@pytest.mark.parametrize(("tracker", "port"), [(MlflowTracker, None), (MlflowTracker, 9), (Telling, 9)])
def test_password_of_the_server_is_nowhere_to_be_read(tracker, port, server, tmp_path, caplog, capfd):
    uri = f"http://user:s3cret@127.0.0.1:{port or server.server_port}"
    tracker = tracker(Place("demo", str(tmp_path)), Subject("tests", str(tmp_path)), uri)
    result = tracker.conclude(wire.Result("train", "demo", str(tmp_path)))
    tracker.end("FINISHED")
    assert len(calls(server, "runs/update", "FINISHED")) == (not port)
    assert len(result.notes) == bool(port)
    said = [caplog.text, *result.notes, *capfd.readouterr()]
    assert "s3cret" not in " ".join(said)


class Silent(Quiet):
    """A server that answers nobody before its test ends."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        self.server.over.wait()
        self.answer(503, {})


def sweep(server, folder, monkeypatch):
    """Begin to record a sweep of four trials; return its tracker, and what watches them."""
    for trial in "abcd":
        write(folder / "sweep-1" / trial / CONFIG_FILE, {"lr": 0.1})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    place = Place("demo", str(folder))
    tracker = tracking.start(place, Subject("tests", str(folder / "sweep-1")))
    return tracker, Trials(Stage(place, "sweep-1", str(folder)), "tests", tracker)


def test_run_is_tagged_with_its_scale():
    tags = entities.tags(Place("demo", "unused", wire.Scale(workers=2, cpus=3, gpus=1)), "unused", parent="")
    names = ("raykube.workers", "raykube.cpus_per_worker", "raykube.gpus_per_worker")
    assert [float(tags[name]) for name in names] == [2, 3, 1]


def test_each_trial_ends_with_its_status(server, tmp_path, monkeypatch):
    tracker, trials = sweep(server, tmp_path, monkeypatch)
    trials.statuses = {"a": "FINISHED", "b": "FAILED", "c": "FINISHED"}
    with trials:
        pass
    ends = [json.loads(body)["status"] for body in calls(server, "runs/update")]
    assert sorted(ends) == ["FAILED", "FINISHED", "FINISHED", "KILLED"]
    tracker.end("FINISHED")
    assert len(calls(server, "runs/update")) == 5


def test_sweep_waits_for_a_silent_server_once_and_not_for_each_trial(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "_PATIENCE_S", 3.0)
    monkeypatch.setattr(tracking, "_LEAST_PATIENCE_S", 0.5)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with serving(Silent) as server:
        server.over = threading.Event()
        tracker, trials = sweep(server, tmp_path, monkeypatch)
        began = time.monotonic()
        with trials:
            pass
        result = tracker.conclude(wire.Result("sweep", "demo", str(tmp_path)))
        tracker.end("FINISHED")
        took = time.monotonic() - began
        server.over.set()
        for thread in threading.enumerate():
            if thread.name == "raykube-mlflow":
                thread.join()
    assert took < 3 * 3.0
    assert "no answer in time" in result.notes[0]
