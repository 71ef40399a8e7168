"""The files in which Ray keeps what the replicas of a service on the local head log and print."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path

from raykube.backends import replicalogs
from raykube.backends.local.head import Head

#: How much of a worker's file is read for the marks that say whose it is: Ray writes them first.
_MARKS_BYTES = 4096


class Files:
    """Finds the files of the replicas of `apps`, again and again, also those of replicas that have ended."""

    def __init__(self, running: Head, apps: Collection[str]) -> None:
        self._folder = Path(running.session_dir) / "logs"
        self._marks = replicalogs.marks(apps)
        self._own: set[str] = set()
        self._others: set[Path] = set()

    def now(self) -> list[Path]:
        """Return the files that exist now, the one that was written last at the end."""
        paths = [*self._folder.glob("worker-*.out*"), *self._folder.glob("worker-*.err*")]
        for path in paths:
            self._learn(path)
        return sorted((path for path in paths if _worker(path) in self._own), key=_changed)

    def growing(self) -> list[Path]:
        """Return those of the files to which their replicas may write more: not those that were full."""
        return [path for path in self.now() if path.suffix in (".out", ".err")]

    def _learn(self, path: Path) -> None:
        """Learn from the beginning of a file whose output it holds. An idle worker's says it only later."""
        if _worker(path) in self._own or path in self._others:
            return
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            beginning = file.read(_MARKS_BYTES)
            if any(line.startswith(self._marks) for line in beginning.split(b"\n")):
                self._own.add(_worker(path))
            elif len(beginning) == _MARKS_BYTES or b":actor_name:" in beginning:
                self._others.add(path)


def _worker(path: Path) -> str:
    return path.name.partition(".")[0]


def _changed(path: Path) -> float:
    with contextlib.suppress(FileNotFoundError):  # removed with its head meanwhile
        return path.stat().st_mtime
    return 0.0
