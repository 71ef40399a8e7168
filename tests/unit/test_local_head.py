"""The Ray head of this machine: whether it lives, whose it is, what ends with it."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from raykube.backends.local import head
from raykube.errors import Unreachable
from tests.servers import serving
from tests.support import typed
from tests.unit.heads import Dashboard


def test_client_of_the_head_before_keeps_no_connection(running):
    def ports():
        return {found.raddr.port for found in psutil.Process().net_connections() if found.raddr}

    head.home().mkdir()
    with serving(Dashboard) as before, serving(Dashboard) as now:
        mine = {server.server_port for server in (before, now)}
        for server in (before, now):
            head.api(replace(running, address=f"http://127.0.0.1:{server.server_port}")).version()
        assert ports() & mine == {now.server_port}


def test_head_that_had_another_machine_and_has_no_keeper_any_more_is_dead(running):
    head.home().mkdir()
    head.write_state(replace(running, ray_born="then", host="node7 pid:[1]"))
    assert head.current() is None
    kept = head.home() / "kept"
    kept.touch()
    assert head.current() is None
    with kept.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Unreachable):
            head.current()
    assert head.current() is None


def test_head_of_an_older_version_is_known(running):
    head.home().mkdir()
    said = {key: value for key, value in vars(running).items() if key not in ("folder", "host")}
    (head.home() / "state.json").write_text(json.dumps(said | {"ray_born": head.born(os.getpid())}))
    assert head.current().ray_pid == running.ray_pid


def test_head_that_this_machine_had_under_another_name_is_its_own(running):
    head.home().mkdir()
    alive = replace(running, ray_born=head.born(os.getpid()), host="of-yesterday pid:[1]")
    head.write_state(alive)
    assert head.current() == alive


def test_process_lives_on_when_the_clock_is_set(monkeypatch):
    birth = head.born(os.getpid())
    boot_time = psutil.boot_time()
    # All that a step of the clock changes of what is known of processes.
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot_time + 3600)
    assert head.alive(os.getpid(), birth)


@pytest.mark.usefixtures("answering")
def test_head_of_which_nothing_can_tell_whether_it_lives_says_what_to_install(record, code, monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    for words in (["job", "list"], ["job", "status", record.name], ["cluster", "status", "local"]):
        done = typed(*words, cwd=code)
        assert (done.returncode, done.stdout) == (2, "")
        assert "psutil is not installed\n  next: in a clone of raykube: pip install '.[local]'" in done.stderr
    done = typed("cluster", "list", cwd=code, KUBECONFIG=str(code / "none"))
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)
    assert "note: whether the Ray head of this machine lives cannot be told" in done.stderr


def test_process_that_has_ended_and_one_of_its_number_do_not_live():
    with subprocess.Popen(["sleep", "60"]) as child:
        birth = head.born(child.pid)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays as a zombie
        assert not head.alive(child.pid, birth)
    assert (head.born(child.pid), head.alive(child.pid, "")) == ("", False)
    assert not head.alive(os.getpid(), birth)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_limit_of_a_container_bounds_its_cpus(tmp_path, files, cpus):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert head._quota(tmp_path) == cpus


def test_files_of_a_head_are_removed_also_where_another_removes_them_too(running, monkeypatch):
    for number in range(3):
        running.driver_log(str(number)).touch()
    left, unlink = Path(running.session_dir, "logs"), os.unlink

    def race(path, **options):
        for file in list(left.glob("*1.log")):
            unlink(file)
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", race)
    head.remove_files(running)
    assert not Path(running.folder).exists()
    head.remove_files(running)


@pytest.mark.parametrize(("is_ours", "code"), [(True, -signal.SIGKILL), (False, 7)])
def test_session_of_a_stranger_that_has_the_number_of_a_dead_head_lives_on(running, is_ours, code):
    words = ["sh", "-c", "read word; exit 7"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True) as leader:
        birth = head.born(leader.pid) if is_ours else "another"
        head.kill_processes(replace(running, id=f"none-{leader.pid}", ray_pid=leader.pid, ray_born=birth))
        with contextlib.suppress(BrokenPipeError):
            leader.communicate(b"go\n")
    assert leader.returncode == code
