"""What the ``RAYKUBE_*`` environment says about where a script runs."""

from __future__ import annotations

import itertools
import os
import re
import secrets
import string
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from raykube import wire
from raykube.errors import ConfigError, Problem
from raykube.inside import addresses, storage

T = TypeVar("T")

_EXPERIMENT_MAX = 60
_stages: defaultdict[str, Iterator[int]] = defaultdict(lambda: itertools.count(1))


@dataclass(frozen=True)
class Place:
    """Where a script runs, as far as ``train`` and ``sweep`` need to know.

    Attributes:
        run: the run's name.
        storage: absolute path or URI below which runs keep their files.
        scale: how many workers, and the resources of one.
        trial_workers: workers of one trial of a sweep.
        attempt: 1 for the first start of this run, more for each retry.
        git_commit: of the code that runs; empty when unknown.
        tracking: whether runs are recorded in MLflow.
        max_failures: how often workers may die, or raise what may pass, before the run fails.
    """

    run: str
    storage: str
    scale: wire.Scale = field(default_factory=wire.Scale)
    trial_workers: int = 1
    attempt: int = 1
    git_commit: str = ""
    tracking: bool = True
    max_failures: int = 3

    @classmethod
    def from_environ(cls, experiment: str = "default", environ: Mapping[str, str] = os.environ) -> Place:
        """Read the place from `environ`; without a run name a new one is made, so nothing resumes by accident.

        Raises:
            ConfigError: variables have values that do not work; all of them are listed.
        """
        problems: list[Problem] = []
        one: int | tuple[int, int] = 1

        def read(name: str, default: T, parse: Callable[[str], T]) -> T:
            try:
                return parse(environ[name]) if environ.get(name) else default
            except ValueError as error:
                problems.append(Problem(name, f"{environ[name]!r} does not work here: {error}"))
                return default

        place = cls(
            run=environ.get(wire.RUN_NAME) or _new_name(experiment),
            storage=addresses.base(environ),
            scale=wire.Scale(
                workers=read(wire.WORKERS, one, wire.parse_workers),
                cpus=read(wire.CPUS, 1.0, _positive),
                gpus=read(wire.GPUS, 0.0, _gpus),
                accelerator=environ.get(wire.ACCELERATOR, ""),
            ),
            trial_workers=read(wire.TRIAL_WORKERS, 1, partial(_from, 1)),
            attempt=read(wire.ATTEMPT, 1, partial(_from, 1)),
            git_commit=environ.get(wire.GIT_COMMIT, ""),
            tracking=environ.get(wire.TRACKING, "").lower() not in {"off", "0", "false", "no"},
            max_failures=read(wire.MAX_FAILURES, 3, partial(_from, 0)),
        )
        if problems:
            raise ConfigError.of("the environment of this run has values that do not work", problems)
        return place

    @property
    def path(self) -> str:
        """Folder or URI of this run."""
        return storage.join(self.storage, self.run)

    def next_stage(self, kind: str) -> str:
        """Return the name of this process's next stage, as in ``train-1``: the same on every retry."""
        return f"{kind}-{next(_stages[self.run])}"

    def prepare(self) -> None:
        """Make the run's folder; behind a URI there is none to make.

        Raises:
            ConfigError: it cannot be made or written to, or there is no way to the URI.
        """
        try:
            if storage.is_uri(self.storage):
                storage.check(self.storage)
                return
            Path(self.path).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):  # the folder may be another user's
                pass
        except (OSError, ImportError) as error:
            raise ConfigError(
                f"the storage {self.storage} cannot be used",
                why=str(error),
                next_step=f"set {wire.STORAGE} to a folder that this user may write to, or the URI of one",
            ) from error


def _new_name(experiment: str) -> str:
    letters = "".join(secrets.choice(string.ascii_lowercase) for _ in range(4))
    # An experiment's name may look like a path, and the run's name is that of its folder.
    experiment = re.sub(r"^\.+|[^\w.\-]", "_", experiment)[:_EXPERIMENT_MAX]
    return f"{experiment}-{time.strftime('%Y%m%d-%H%M%S')}-{letters}"


def _from(low: int, text: str) -> int:
    if not (number := int(text)) >= low:
        raise ValueError(f"a whole number from {low} on is needed, not {text}")
    return number


def _positive(text: str) -> float:
    if not wire.is_cpu_share(number := float(text)):
        raise ValueError(f"a number above 0 is needed, not {text}")
    return number


def _gpus(text: str) -> float:
    if not wire.is_gpu_share(number := float(text)):
        raise ValueError(f"{wire.GPU_SHARE} is needed, not {text}")
    return number
