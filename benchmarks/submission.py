"""Submitting benchmarks.entry and watching it as a user does, every time from a new client process.

Run: python -m benchmarks.submission --on local --workers 2 --out /tmp/run.json -- train --model mlp
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import entry, rows

_EXCLUDES = ("benchmarks/results", "tests", "docs", ".git")
_TIMEOUT_S = 600


def follow(job: Any, on: Any) -> dict[str, Any]:
    """Submit `job`, read its log to the end, and return when each event was seen.

    Returns:
        seconds since the call of submit: ``submit_s`` (it returned), ``running_s`` (the state was RUNNING),
        ``first_line_s`` (the script's first line arrived), ``ended_s``; ``packing_s``, measured afterwards;
        ``metrics`` of the run's result; ``lines`` of its log.
    """
    import raykube as rk

    seen: dict[str, float] = {}

    def on_event(event: Any) -> None:
        seen.setdefault(event.status.state, event.time)

    began = time.time()
    run = rk.submit(job, on=on)
    submitted = time.time()
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(run.wait, timeout_s=_TIMEOUT_S, on_event=on_event)
        lines, first = [], 0.0
        for line in run.logs(follow=True):
            if line.startswith(entry.FIRST):  # Ray's own lines come before it
                first = time.time()
            lines.append(line)
        ended.result()
    finished = time.time()
    result = run.result()
    again = time.time()
    rk.plan(job, on=on)
    return {
        "began": began,
        "packing_s": time.time() - again,
        "submit_s": submitted - began,
        "running_s": seen.get("RUNNING", finished) - began,
        "first_line_s": first - began,
        "ended_s": finished - began,
        "metrics": result.metrics if result else {},
        "notes": list(result.notes) if result else [],
        "lines": lines,
    }


@dataclass(frozen=True)
class Place:
    """Where submissions go.

    Attributes:
        on: ``"local"`` or a preset.
        environ: of every client.
    """

    on: str
    environ: Mapping[str, str]

    def submit(self, words: Sequence[object], *, workers: int = 1, **environ: str) -> dict[str, Any]:
        """Submit ``benchmarks.entry WORDS`` from a new client process; returns what :func:`follow` does.

        Raises:
            SystemExit: the process failed; with the end of its output.
        """
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run.json"
            client = [sys.executable, "-m", "benchmarks.submission", "--on", self.on, "--workers", str(workers)]
            run_child([*client, "--out", str(out), "--", *map(str, words)], {**self.environ, **environ})
            seen: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return seen

    def end(self) -> None:
        """End the head if one runs, so that the next submission has a cold start."""
        end = ["raykube", "cluster", "delete", self.on]
        subprocess.run(end, env=dict(self.environ), cwd=rows.ROOT, capture_output=True, check=False)


@contextmanager
def place(on: str = "local") -> Iterator[Place]:
    """Give a place for submissions; this machine gets a home and a head of its own, which are removed afterwards."""
    if on != "local":
        yield Place(on, dict(os.environ))
        return
    with tempfile.TemporaryDirectory(prefix="rkb-", ignore_cleanup_errors=True) as home:
        here = Place(on, rows.environ(RAYKUBE_HOME=home))
        try:
            yield here
        finally:
            here.end()


def run_child(command: Sequence[str], environ: dict[str, str]) -> str:
    """Run a process to its end, in a session of its own, and return its output.

    Raises:
        SystemExit: the process failed or took too long; nothing of its session is left running.
    """
    child = subprocess.Popen(
        command,
        cwd=rows.ROOT,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = child.communicate(timeout=_TIMEOUT_S)
    except BaseException:
        os.killpg(child.pid, 9)
        raise
    if child.returncode:
        raise SystemExit(f"exit code {child.returncode} of {' '.join(command)}\n{output[-4000:]}")
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", default="local")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", required=True)
    parser.add_argument("words", nargs=argparse.REMAINDER, help="of benchmarks.entry")
    said = parser.parse_args()
    start = time.time()
    import raykube as rk

    cluster = rk.Cluster.load(said.on).sized(workers=said.workers)
    words = said.words[1:] if said.words[:1] == ["--"] else said.words
    job = rk.Job.module("benchmarks.entry", *words, working_dir=rows.ROOT, excludes=_EXCLUDES, env_vars=rows.THREADS)
    imported = time.time() - start
    seen = follow(job, cluster) | {"import_s": imported}
    printed = [line for line in seen.pop("lines") if line.startswith(entry.MARK)]
    seen["base"] = json.loads(printed[0][len(entry.MARK) :]) if printed else {}
    Path(said.out).write_text(json.dumps(seen), encoding="utf-8")


if __name__ == "__main__":
    main()
