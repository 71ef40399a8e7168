"""The backend of this machine, as far as it needs no Ray."""

from raykube.backends.local import starting


def test_relative_home_reaches_the_keeper_and_its_jobs_as_an_absolute_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYKUBE_HOME", ".rk")
    assert starting.keeper_environ()["RAYKUBE_HOME"] == str(tmp_path / ".rk")
