"""Files that are written and removed whole."""

import os

import pytest

import raykube as rk
from raykube.backends.local import disk


@pytest.mark.parametrize(("owner", "user", "foreign"), [(7, 7, False), (0, 7, False), (8, 7, True), (7, 0, False)])
def test_home_of_another_user_is_foreign_to_all_but_root(owner, user, foreign):
    assert disk.is_foreign(owner, user) == foreign


@pytest.mark.parametrize("call", ["rmdir", "unlink"])
def test_folder_is_removed_whatever_appears_in_it_or_vanishes_from_it_meanwhile(tmp_path, monkeypatch, call):
    folder, act, once = tmp_path / "run", getattr(os, call), iter([True])
    (folder / "train-1").mkdir(parents=True)
    (folder / "train-1" / "metrics.jsonl").write_text("{}\n")

    def meddled(path, **options):
        for _ in once:
            (folder / "late").write_text("")
            if call == "unlink":
                act(path, **options)
        act(path, **options)

    monkeypatch.setattr(os, call, meddled)
    disk.remove_tree(folder)
    assert not folder.exists()


def test_folder_that_may_not_be_removed_says_which_and_why(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(rk.BackendError, match=r"cannot remove .*file\n  why:  Not a directory"):
        disk.remove_tree(tmp_path / "file")
