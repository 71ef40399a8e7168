"""The backend of this machine, as far as it needs no Ray."""

import pytest

import raykube as rk
from raykube.backends.local import starting


@pytest.fixture
def code(tmp_path):
    """Return a working directory with a script."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "hello.py").write_text("print('hello')\n")
    return folder


def test_relative_home_reaches_the_keeper_and_its_jobs_as_an_absolute_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYKUBE_HOME", ".rk")
    assert starting.keeper_environ()["RAYKUBE_HOME"] == str(tmp_path / ".rk")


@pytest.mark.parametrize("cpus", [0, 1])
def test_driver_larger_than_the_machine_is_refused_whatever_its_workers_need(code, cpus):
    job = rk.Job(entrypoint="python hello.py", working_dir=code, entrypoint_num_cpus=10_000)
    with pytest.raises(rk.ConfigError, match="entrypoint_num_cpus: the driver needs 10000 CPUs; this machine has"):
        rk.plan(job, rk.Cluster.local(cpus=cpus))


def planned_model(code, reference):
    """Return the model that an application gets whose service was planned with this reference."""
    app = rk.App(import_path="hello:app", model=reference)
    plan = rk.plan(rk.Service(name="s", apps=(app,), working_dir=code), "local")
    return plan.body[0]["args"]["model"]


def test_relative_path_of_a_model_is_planned_as_an_absolute_one(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert planned_model(code, "model") == str(tmp_path / "model")


@pytest.mark.parametrize("reference", ["models:/digits/1", "s3://bucket/model", "run:trained"])
def test_model_that_is_no_path_is_planned_as_it_is_named(code, tmp_path, monkeypatch, reference):
    monkeypatch.setenv("RAYKUBE_STORAGE", str(tmp_path))
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "result.json").write_text("{}")
    assert planned_model(code, reference) == reference
