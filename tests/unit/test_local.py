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
