"""The code of the runs of this machine."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from raykube import package
from raykube.backends.local import records, zips
from raykube.errors import ConfigError
from tests.support import typed


def test_code_of_a_record_that_cannot_be_read_is_kept(record, home, code):
    (home / "packages").mkdir()
    zips = [home / "packages" / f"{name}.zip" for name in ("of-b", "of-nobody")]
    for path in zips:
        path.touch()
    records.save(replace(record, name="b"))
    (records.folder("b") / "record.json").write_text('{"plan_yaml": "of-b.zip"')
    assert typed("job", "delete", "a", cwd=code).returncode == 0
    assert [path.exists() for path in zips] == [True, False]


def test_delete_keeps_all_code_while_a_record_may_not_be_read(record, home, code):
    (home / "packages").mkdir()
    (home / "packages" / "of-b.zip").touch()
    (records.folder("b") / "record.json").mkdir(parents=True)
    done = typed("job", "delete", record.name, cwd=code)
    assert (done.returncode, done.stdout) == (0, "a deleted\n")
    assert (home / "packages" / "of-b.zip").exists()


def test_code_that_is_there_is_kept(home, code):
    packed = package.collect(code)
    zips.keep(packed)
    (path,) = (home / "packages").iterdir()
    before = path.stat()
    assert path.name == f"{packed.hash}.zip"
    zips.keep(packed)
    assert path.stat().st_ino == before.st_ino


def test_code_on_a_full_disk_leaves_nothing_and_says_what_to_do(home, code):
    (code / "a.bin").write_bytes(os.urandom(200_000))
    inner = (
        "import resource, signal\nfrom raykube.package import collect\nfrom raykube.backends.local import zips\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        f"zips.keep(collect({str(code)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", inner], capture_output=True, text=True, check=False)
    assert f"BackendError: cannot write {home}/packages/" in done.stderr
    assert "next: free" in done.stderr
    assert list((home / "packages").iterdir()) == []


@pytest.mark.parametrize("change", [lambda path: path.write_text("another"), Path.unlink], ids=["changed", "removed"])
def test_code_that_is_changed_while_it_is_kept_leaves_nothing(home, code, change):
    packed = package.collect(code)
    change(code / "hello.py")
    with pytest.raises(ConfigError, match="changed while it was packed"):
        zips.keep(packed)
    assert list((home / "packages").iterdir()) == []
