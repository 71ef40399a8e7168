"""The records of the local backend: whole files, one last word, errors that help."""

import json
import os
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from raykube.backends import Status
from raykube.backends.local import disk, head, records
from raykube.backends.local.backend import Local
from raykube.errors import BackendError, ConfigError, Failure, NotFound
from tests.support import run_without_root_rights


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYKUBE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def record(name="a", submitted=1.0):
    return records.Record(
        name=name, nonce="n", kind="job", plan_hash="h", plan_yaml="y", body={"x": 1}, storage="/s", submitted=submitted
    )


def test_record_comes_back_as_it_was_saved():
    records.save(record())
    assert records.load("a") == record()


def test_record_of_a_version_that_knew_no_first_attempt_is_read():
    records.save(record())
    path = records.folder("a") / "record.json"
    fields = json.loads(path.read_text())
    del fields["first"]
    path.write_text(json.dumps(fields))
    assert records.load("a").first == 1


def test_record_of_a_later_version_is_read_without_what_only_that_knows():
    records.save(record())
    records.set_final(Status("a", "job", "FAILED", failure=Failure("EntrypointFailed", "x")))
    for name in ("record.json", "final.json"):
        path = records.folder("a") / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"later": 1}))
    assert records.load("a") == record()
    assert records.final("a").failure.reason == "EntrypointFailed"


UNREADABLE = {"empty": "", "half": '{"name": "a", "ki', "foreign": '{"name": "a"}', "a list": "[]"}


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE)
def test_record_that_cannot_be_read_is_named_with_what_to_do(text):
    records.save(record())
    (records.folder("a") / "record.json").write_text(text)
    with pytest.raises(BackendError, match=r"cannot read .*/records/a/record\.json\n.*\n.*raykube job delete a"):
        records.load("a")


@pytest.mark.parametrize("file", ["record.json", "attempt", "final.json", "stop"])
def test_record_that_cannot_be_read_is_left_out_with_one_warning(file, caplog):
    for name in ("torn", "whole"):
        records.save(replace(record(name), head="h"))
    (records.folder("torn") / file).write_text("{")
    records._warn.cache_clear()
    for _ in range(2):
        assert [each.name for each in records.every()] == ["whole"]
        assert [each.name for each in records.unfinished("h")] == ["whole"]
    (warning,) = caplog.messages
    assert f"torn/{file}" in warning
    assert "raykube job delete torn" in warning


def test_record_is_its_owners_alone(home, monkeypatch):
    monkeypatch.setenv("RAYKUBE_HOME", str(home / "new"))
    records.ensure_home()
    records.save(record())
    assert [path.stat().st_mode & 0o077 for path in (home / "new", records.folder("a"))] == [0, 0]


def touched(name, ago):
    """Give a record's folder the time of a change so many seconds ago."""
    when = int(time.time()) - ago
    os.utime(records.folder(name), (when, when))


def names_unfinished():
    return [found.name for found in records.unfinished("")]


def test_run_that_has_ended_is_looked_into_again_only_when_its_folder_changes():
    records.save(record())
    records.set_final(Status("a", "job", "FAILED"))
    touched("a", 60)
    assert names_unfinished() == []
    path = records.folder("a") / "final.json"
    path.write_text(path.read_text().replace('"attempt": 1', '"attempt": 0'))  # as raykube never does
    assert names_unfinished() == []
    records.reopen("a", 2)
    assert names_unfinished() == ["a"]


def test_run_that_goes_on_at_the_time_at_which_it_ended_is_seen():
    records.save(record())
    records.set_final(Status("a", "job", "FAILED"))
    touched("a", 0)
    assert names_unfinished() == []
    records.reopen("a", 2)
    touched("a", 0)
    assert names_unfinished() == ["a"]


def test_missing_record_is_not_found():
    with pytest.raises(NotFound, match="nothing is called 'b'"):
        records.load("b")


def test_records_are_listed_oldest_first():
    for name, submitted in (("new", 2.0), ("old", 1.0)):
        records.save(record(name, submitted))
    assert [each.name for each in records.every()] == ["old", "new"]


def test_final_status_comes_back_with_its_failure():
    failure = Failure("EntrypointFailed", "exit code 3", 3, ("a", "b"), "look")
    status = Status("a", "job", "FAILED", "words", failure, 1.0, 2.0, 3.0, 2, {"loss": 0.5})
    records.save(record())
    records.set_final(status)
    assert records.final("a") == status


def test_first_final_status_wins_among_many_at_once():
    records.save(record())
    barrier = threading.Barrier(8)
    seen = []

    def end(number):
        barrier.wait()
        seen.append(records.set_final(Status("a", "job", "FAILED", str(number))).detail)

    threads = [threading.Thread(target=end, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(seen)) == 1


def test_reopened_run_has_no_end_and_the_next_attempt():
    records.save(record())
    records.set_final(Status("a", "job", "FAILED"))
    records.request_stop("a")
    records.reopen("a", 2)
    assert (records.final("a"), records.attempt("a"), records.ending("a")) == (None, 2, None)


def test_reason_to_end_a_run_comes_back_and_a_stop_does_not_replace_it():
    records.save(record())
    late = records.Ending(Failure("DeadlineExceeded", "too long"), since=2.0)
    records.set_ending("a", late)
    records.request_stop("a")
    assert records.ending("a") == late


def test_stop_that_an_earlier_version_noted_is_heeded():
    records.save(record())
    (records.folder("a") / "stop").write_text("")
    assert records.ending("a") == records.Ending()


def test_end_of_an_earlier_attempt_counts_for_nothing_in_a_later_one():
    records.save(record())
    records.set_final(Status("a", "job", "FAILED", attempt=1))
    records.set_attempt("a", 2)
    assert records.final("a") is None


@pytest.mark.parametrize("attempt", [2, 3])
def test_attempt_is_noted_when_it_begins_also_the_first_of_a_submission(attempt):
    again = replace(record(), first=2)
    records.save(again)
    assert records.noted(again) == again.submitted  # its sender was killed here
    records.set_attempt("a", attempt)
    os.utime(records.folder("a") / "attempt", (50, 50))
    assert records.noted(again) == 50


def test_ended_record_is_not_among_the_unfinished():
    for name in ("ended", "lives"):
        records.save(replace(record(name), head="h"))
    records.set_final(Status("ended", "job", "SUCCEEDED"))
    assert [each.name for each in records.unfinished("h")] == ["lives"]
    assert records.unfinished("other") == []


def test_run_whose_earlier_attempt_was_settled_late_is_unfinished_and_can_end_once_more():
    records.save(replace(record(), head="h"))
    records.reopen("a", 2)
    records.set_final(Status("a", "job", "STOPPED", attempt=1))
    assert [each.name for each in records.unfinished("h")] == ["a"]
    for detail in ("first", "second"):
        assert records.set_final(Status("a", "job", "SUCCEEDED", detail, attempt=2)).detail == "first"
    assert records.unfinished("h") == []
    assert records.final("a").detail == "first"


def test_end_that_is_noted_while_that_of_an_earlier_attempt_is_removed_stays(monkeypatch):
    records.save(record())
    records.set_final(Status("a", "job", "FAILED", attempt=1))
    later = json.dumps(asdict(Status("a", "job", "SUCCEEDED", attempt=2)))
    path, beside = records.folder("a") / "final.json", disk.beside

    def meanwhile(of):
        path.write_text(later)
        return beside(of)

    monkeypatch.setattr(disk, "beside", meanwhile)
    records._remove_earlier(path, 2)
    assert records.final("a").state == "SUCCEEDED"
    assert [file.name for file in path.parent.iterdir() if file.name.startswith(".")] == []


def test_ended_run_that_is_reopened_is_unfinished_at_once():
    records.save(replace(record(), head="h"))
    records.set_final(Status("a", "job", "FAILED"))
    assert records.unfinished("h") == []
    records.set_attempt("a", 2)  # whoever reopened it was killed here
    assert [each.name for each in records.unfinished("h")] == ["a"]


def test_torn_or_foreign_state_counts_as_none(home):
    head.home().mkdir(parents=True)
    for text in ("", "{", '{"id": "x", "new": 1}'):
        (home / "head" / "state.json").write_text(text)
        assert head.read_state() is None


def test_full_disk_leaves_the_old_file_and_says_so():
    path = Path("/dev/full")
    with pytest.raises(BackendError) as raised:
        disk.write(path / "x", "text")
    assert "cannot write" in str(raised.value)


def test_home_that_cannot_be_written_names_the_variable_to_set(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    done = run_without_root_rights("raykube", "job", "list", RAYKUBE_HOME=str(closed / "home"))
    assert done.returncode == 0  # nothing is written by a list
    done = run_without_root_rights(
        "raykube",
        "job",
        "submit",
        "--no-wait",
        "--",
        "python",
        "-c",
        "1",
        RAYKUBE_HOME=str(closed / "home"),
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "Permission denied" in done.stderr
    assert "RAYKUBE_HOME" in done.stderr


@pytest.mark.parametrize(
    "words", [("job", "list"), ("service", "list"), ("job", "status", "a"), ("job", "logs", "a"), ("cluster", "list")]
)
def test_home_that_may_not_be_entered_is_named_without_a_traceback(home, words):
    home.mkdir(mode=0)
    done = run_without_root_rights("raykube", *words)
    home.chmod(0o700)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: cannot read {home}")
    assert "why:  Permission denied" in done.stderr


def test_record_that_may_not_be_read_is_left_out_and_named(home):
    records.save(record("a"))
    (home / "records" / "a").chmod(0)
    done = run_without_root_rights("raykube", "job", "list")
    (home / "records" / "a").chmod(0o700)
    assert done.returncode == 0
    assert "a is left out: cannot read" in done.stderr


@pytest.mark.parametrize("name", ["", ".", "..", "../..", "a/b"])
def test_name_that_leads_out_of_a_records_folder_is_refused(name):
    records.save(record())
    for ask in (records.folder, records.load, records.remove, Local().delete):
        with pytest.raises(ConfigError):
            ask(name)
    assert [each.name for each in records.every()] == ["a"]
