import os
import subprocess
import sys
from pathlib import Path

import pytest

from raykube import wire
from raykube.errors import ConfigError
from raykube.inside.place import Place
from raykube.inside.room import slots
from tests.support import run_without_root_rights


def node(cpus, gpus=0, *, alive=True, **others):
    return {"Alive": alive, "Resources": {"CPU": cpus, **({"GPU": gpus} if gpus else {}), **others}}


def test_place_without_a_run_name_is_new_each_time():
    first, second = (Place.from_environ("digits", {}) for _ in range(2))
    assert first.run.startswith("digits-")
    assert first.run != second.run


def test_place_reads_what_scale_wrote():
    scale = wire.Scale((2, 8), cpus=3, gpus=1, accelerator="H100")
    assert Place.from_environ(environ=scale.environ()).scale == scale


def test_place_makes_a_relative_storage_absolute():
    place = Place.from_environ(environ={wire.STORAGE: "some/where"})
    assert place.storage == str(Path.cwd() / "some/where")


def test_place_takes_the_scheme_off_a_file_uri_and_leaves_others():
    assert Place.from_environ(environ={wire.STORAGE: "file:///data/runs"}).storage == "/data/runs"
    assert Place.from_environ(environ={wire.STORAGE: "file:///my%20data/runs/"}).storage == "/my data/runs"
    assert Place.from_environ(environ={wire.STORAGE: "s3://bucket/runs/"}).storage == "s3://bucket/runs"


@pytest.mark.parametrize(
    ("said", "tracking"), [("off", False), ("False", False), ("0", False), ("no", False), ("on", True), ("", True)]
)
def test_place_has_no_tracking_where_that_is_switched_off_in_any_of_its_words(said, tracking):
    assert Place.from_environ(environ={wire.TRACKING: said}).tracking is tracking


def test_place_lists_every_bad_variable():
    environ = {wire.WORKERS: "many", wire.CPUS: "-1", wire.ATTEMPT: "0", wire.MAX_FAILURES: "x"}
    with pytest.raises(ConfigError) as caught:
        Place.from_environ(environ=environ)
    assert [problem.path for problem in caught.value.problems] == list(environ)


def test_storage_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    place = Place.from_environ(environ={wire.STORAGE: str(tmp_path / "file" / "runs")})
    with pytest.raises(ConfigError, match="RAYKUBE_STORAGE"):
        place.prepare()


def test_storage_of_a_kind_that_is_not_known_is_named():
    place = Place.from_environ(environ={wire.STORAGE: "foo://bucket/runs"})
    with pytest.raises(ConfigError, match="the storage foo://bucket/runs cannot be used") as caught:
        place.prepare()
    assert "foo" in caught.value.why


def test_storage_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "demo").mkdir(mode=0o555)
    code = f"from raykube.inside.place import Place; Place('demo', {str(tmp_path)!r}).prepare()"
    done = run_without_root_rights(sys.executable, "-c", code)
    assert f"ConfigError: the storage {tmp_path} cannot be used" in done.stderr
    assert "Permission denied" in done.stderr


def test_stages_are_numbered_in_the_order_of_the_calls():
    place = Place("stages", "/nowhere")
    assert [place.next_stage(kind) for kind in ("train", "sweep", "train")] == ["train-1", "sweep-2", "train-3"]


def test_slots_count_whole_workers_of_each_node():
    assert slots([node(3), node(3)], wire.Scale(cpus=2)) == 2


def test_slots_are_limited_by_the_scarcest_resource():
    assert slots([node(16, 2)], wire.Scale(cpus=2, gpus=1)) == 2


def test_slots_leave_out_dead_nodes_and_other_accelerators():
    nodes = [node(8, 4, alive=False), node(8, 4), node(8, 4, **{"accelerator_type:H100": 1.0})]
    assert slots(nodes, wire.Scale(cpus=1, gpus=1, accelerator="H100")) == 4


def test_slots_take_fractions():
    assert slots([node(1)], wire.Scale(cpus=0.1)) == 10
    assert slots([node(3)], wire.Scale(cpus=0.4)) == 7


def test_slots_take_no_parts_of_two_gpus():
    assert slots([node(64, 8)], wire.Scale(cpus=1, gpus=0.4)) == 16
    assert slots([node(64, 8)], wire.Scale(cpus=1, gpus=0.1)) == 64


def ended(code, **environ):
    """Run code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environ}, capture_output=True, text=True, check=False
    )


def test_progress_is_shown_once_when_another_library_sets_up_logging_later():
    code = (
        "import logging; from raykube.inside.joining import show_progress; "
        "show_progress(); logging.basicConfig(); logging.getLogger('raykube').warning('told')"
    )
    found = ended(code)
    assert (found.stdout, found.stderr) == ("raykube: told\n", "")


def test_progress_goes_to_what_is_stdout_by_then():
    code = """
import contextlib, io, logging
from raykube.inside.joining import show_progress
with contextlib.redirect_stdout(io.StringIO()) as first:
    show_progress()
    logging.getLogger("raykube").info("in a cell")
logging.getLogger("raykube").info("after it")
assert first.getvalue() == "raykube: in a cell\\n", first.getvalue()
"""
    found = ended(code)
    assert (found.stdout, found.stderr) == ("raykube: after it\n", "")


def test_ray_that_cannot_start_is_told_with_a_next_step(tmp_path):
    pytest.importorskip("ray")
    (tmp_path / "file").write_text("")
    code = "from raykube.inside.joining import connected\nwith connected(): pass"
    found = ended(code, RAY_TMPDIR=str(tmp_path / "file" / "x"), RAY_ADDRESS="")
    assert "BackendError: Ray cannot be started on this machine\n  why:  NotADirectoryError" in found.stderr
    assert "next: run raykube doctor" in found.stderr
