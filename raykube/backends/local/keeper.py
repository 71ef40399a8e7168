"""The keeper of the local head: ``python -m raykube.backends.local.keeper HEAD_ID [--adopt]``.

It starts Ray, publishes the head once it answers, and then looks after the runs on it until the head
has been idle or Ray has died: it retries, enforces deadlines, sends what a killed client left unsent,
keeps logs and last states. With ``--adopt`` it takes over a running head whose keeper was killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from raykube.backends.local import head, lifecycle, observe, records, starting
from raykube.backends.rayapi import RayApi
from raykube.errors import BackendError, Unreachable
from raykube.settings import setting

_TICK_S = 1.0
#: A head that does not say whether it is idle is ended after so many idle timeouts, and at least so many seconds.
_SILENT_TIMES = 10
_SILENT_S = 600.0
# Ray's command line imports those of Serve, Jobs and the state API (2 s for pandas and fastapi), which `ray start` does
# not use. A module that is None in sys.modules fails to import, which Ray takes for "not installed".
_RAY = """
import sys
for name in ("ray.serve.scripts", "ray.dashboard.modules.job.cli", "ray.util.state.state_cli"):
    sys.modules[name] = None
from ray.scripts.scripts import main
main()
"""


def main(arguments: list[str]) -> None:
    """Run the keeper until its head ends."""
    head_id = arguments[0]
    started = _adopt() if "--adopt" in arguments else _start(head_id)
    head.touch()
    head.keep()
    head.write_state(started)
    head.write_starting(None)
    api = head.api(started)
    # Not in a finally: after an error of ours the head goes on, and the next client adopts it.
    while head.alive(started.ray_pid, started.ray_born):
        _tick(started, api)
        if _is_idle(started, api):
            with head.lock():  # nobody is just about to submit
                if _is_idle(started, api):
                    starting.retire(started)
                    return
        time.sleep(_TICK_S)
    starting.retire(started)


def ray_command(dashboard_port: int, temp_dir: str) -> list[str]:
    """Return the command that starts Ray; every port is a free one or chosen by Ray, none is a default."""
    return [
        *(sys.executable, "-c", _RAY, "start", "--head", "--block"),
        *("--port=0", f"--num-cpus={head.cpu_count()}", f"--temp-dir={temp_dir}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}", "--dashboard-agent-listen-port=0"),
        *(f"--ray-client-server-port={head.free_port()}", "--min-worker-port=0", "--max-worker-port=0"),
        # One process fewer: there is nothing to autoscale on one machine.
        *("--no-monitor", "--disable-usage-stats"),
    ]


def ray_environ(head_id: str) -> dict[str, str]:
    """Return the environment of Ray and so of every job on it.

    The token is passed as the path of its file, so that neither a process list nor an environment dump shows it.
    """
    # Addresses of another Ray, and a token that Ray would prefer to the head's own.
    foreign = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN")
    inherited = {key: value for key, value in os.environ.items() if key not in foreign}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return inherited | {
        "PATH": path,
        "RAYKUBE_HEAD_ID": head_id,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(head.home() / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Workers started ahead would only take CPU: a job's own runtime environment needs workers of its own.
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
        # Into a pipe or file, Python would otherwise hold back a script's output in blocks of 8 KiB.
        "PYTHONUNBUFFERED": "1",
    }


def _start(head_id: str) -> head.Head:
    """Start Ray and wait until it takes jobs; retry twice, as Ray gives up after 30 s on a busy machine."""
    head.write_starting(head.Starting(head_id, os.getpid(), head.born(os.getpid())))
    for tries_left in (2, 1, 0):
        port = head.free_port()
        ray, folder = _spawn_ray(head_id, port)
        session_dir = _wait_until_ready(ray, RayApi.at(f"http://127.0.0.1:{port}", head.token()), head.temp_dir(folder))
        if session_dir:
            return _new_head(head_id, ray.pid, port, folder, session_dir)
        head.kill_marked(head_id, ray.pid)
        shutil.rmtree(folder)
        sys.stderr.write(f"ray start ended with exit code {ray.returncode}; tries left: {tries_left}\n")
    sys.exit(1)


def _spawn_ray(head_id: str, dashboard_port: int) -> tuple[subprocess.Popen[bytes], str]:
    """Start Ray's processes in a session of their own and a new folder."""
    # A short path: those of Ray's sockets below it may have no more than 107 bytes.
    folder = tempfile.mkdtemp(prefix=f"raykube-{head_id}-", dir="/tmp")
    with (head.home() / "ray.log").open("wb") as log:
        ray = subprocess.Popen(
            ray_command(dashboard_port, head.temp_dir(folder)),
            env=ray_environ(head_id),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=folder,
        )
    return ray, folder


def _wait_until_ready(ray: subprocess.Popen[bytes], api: RayApi, temp_dir: str) -> Path | None:
    """Return Ray's session folder once the dashboard answers and its job agent has a port; None if Ray ended."""
    while ray.poll() is None:
        with contextlib.suppress(Unreachable):
            session_dir = Path(temp_dir) / str(api.version()["session_name"])
            if list(session_dir.glob("dashboard_agent_listen_port_*")):
                return session_dir
        time.sleep(0.05)
    return None


def _new_head(head_id: str, ray_pid: int, port: int, folder: str, session_dir: Path) -> head.Head:
    return head.Head(
        id=head_id,
        keeper_pid=os.getpid(),
        keeper_born=head.born(os.getpid()),
        ray_pid=ray_pid,
        ray_born=head.born(ray_pid),
        address=f"http://127.0.0.1:{port}",
        folder=folder,
        session_dir=str(session_dir),
        serve_port=int(setting("serve_port").value) or head.free_port(),
        python=sys.executable,
        started=time.time(),
        host=head.here(),
    )


def _adopt() -> head.Head:
    """Take over the published head."""
    orphan = head.read_state()
    if orphan is None:
        sys.exit("there is no head to adopt")
    return dataclasses.replace(orphan, keeper_pid=os.getpid(), keeper_born=head.born(os.getpid()))


def _is_idle(started: head.Head, api: RayApi) -> bool:
    """Whether nothing has run on the head for the idle timeout, or it has given no answer for far longer."""
    if not (head.home() / "used").exists():
        return True  # raykube's folder was removed: nobody can find this head any more
    unused_s = time.time() - (head.home() / "used").stat().st_mtime
    limit = float(setting("idle_timeout_s").value)
    if unused_s <= limit:
        return False
    busy = _is_busy(started, api)
    if busy is None:  # nor since the limit was over: an answer ends the head, or counts as a use
        return unused_s > max(_SILENT_TIMES * limit, _SILENT_S)
    if busy:
        with contextlib.suppress(OSError):  # the folder was removed just now
            head.touch()
    return not busy


def _is_busy(started: head.Head, api: RayApi) -> bool | None:
    """Whether anything runs on the head, sent by raykube or not; None if its dashboard does not say."""
    try:
        records.check_all()
    except records.Unreadable:  # its run may be on this head
        return True
    if records.unfinished(started.id):
        return True
    try:
        return any(job["status"] in ("PENDING", "RUNNING") for job in api.jobs())
    except BackendError:  # if Ray has died, the loop finds out
        return None


def _tick(started: head.Head, api: RayApi) -> None:
    """Look once after every run that has not ended."""
    for record in records.unfinished(started.id):
        head.touch()
        if record.kind == "job":
            try:
                look_after(record, started, api)
            except (BackendError, OSError, ValueError) as error:
                # Ray died (the loop finds out), its answer failed or the disk is full (the next tick tries again), the
                # run was deleted meanwhile, or something unforeseen: the other runs go on in any case.
                with contextlib.suppress(OSError):  # the log is on the same disk
                    sys.stderr.write(f"{record.name}: {error}\n")


def look_after(record: records.Record, started: head.Head, api: RayApi) -> None:
    """Do whatever is due for one run."""
    status, known = observe.status(record, started, api)
    if not observe.is_current(record):  # deleted, or sent again, since the tick began
        return
    ending, now = records.ending(record.name), time.time()
    action = lifecycle.action_of(record, status, known=known, ending=ending, noted=records.noted(record), now=now)
    if action.do == "send":
        if action.attempt != status.attempt:  # an attempt that is sent again has waited since it was noted
            records.set_attempt(record.name, action.attempt)
        observe.send(record, action.attempt, started, api)
    elif action.do == "stop":
        # Note the reason first: a job that is seen stopped without one is taken for stopped by a user. `since` stays
        # None while Ray does not know the job, which is still being sent: Ray cannot have been asked to stop it.
        if ending is None or (known and ending.since is None):
            records.set_ending(record.name, records.Ending(action.failure, now if known else None))
        observe.stop(record, status.attempt, api)
    elif action.do == "end":
        observe.settle(record, lifecycle.cut_short(status, action.failure, now), started)
    elif status.is_terminal:
        observe.settle(record, status, started)


if __name__ == "__main__":
    main(sys.argv[1:])
