"""What can never run on this machine, and what is planned for it."""

import pytest

import raykube as rk


@pytest.mark.parametrize("cpus", [0.5, 1])
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


@pytest.mark.parametrize(("storage", "shown"), [("s3://bucket/runs", True), ("s3://KEY:hunter2@bucket/runs", False)])
def test_storage_that_is_no_folder_is_named_without_its_password(tmp_path, monkeypatch, storage, shown):
    monkeypatch.setenv("RAYKUBE_STORAGE", storage)
    with pytest.raises(rk.ConfigError, match="is not a folder of this machine") as caught:
        rk.plan(rk.Job(entrypoint="true", name="a", working_dir=tmp_path))
    assert (storage in str(caught.value), "hunter2" in str(caught.value)) == (shown, False)
