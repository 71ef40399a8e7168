"""What is known on disk of the runs of this machine."""

from raykube.backends.local import head, records


def test_folder_that_can_be_no_runs_is_left_alone(record):
    assert records.load("a") == record
    for name in (".ipynb_checkpoints", "@eaDir", "a copy"):
        (records.folder("a").parent / name).mkdir()
    assert [each.name for each in records.every("job")] == ["a"]


def test_home_is_its_owner_s_alone_whatever_is_done_first(home, monkeypatch):
    monkeypatch.setenv("RAYKUBE_HOME", str(home / "new"))
    with head.lock():
        assert (home / "new").stat().st_mode & 0o077 == 0


def test_home_that_others_may_read_is_closed_unless_its_user_has_chosen_it(tmp_path, monkeypatch):
    usual, chosen = tmp_path / ".raykube", tmp_path / "chosen"
    for folder in (usual, chosen):
        folder.mkdir()
        folder.chmod(0o755)
    monkeypatch.setenv("RAYKUBE_HOME", str(chosen))
    records.ensure_home()
    monkeypatch.delenv("RAYKUBE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    records.ensure_home()
    assert [folder.stat().st_mode & 0o777 for folder in (usual, chosen)] == [0o700, 0o755]
