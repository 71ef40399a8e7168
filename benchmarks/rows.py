"""The rows that the experiments write: JSON lines, each with the machine and the code that were measured."""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_PACKAGES = ("torch", "ray", "mlflow", "raykube")


@dataclass(frozen=True)
class Row:
    """One sample of one arm.

    Attributes:
        experiment: the module that measured: ``"overhead"``, ``"scaling"``, ``"cluster"`` or ``"following"``.
        session: when the experiment was started, in UTC; the rows of one session belong together.
        quick: whether it was a short session, for a first look.
        what: the thing that was measured, as in ``"step"``, ``"report"`` or ``"running_s"``.
        arm: what was measured, as in ``"raykube"`` or ``"torchrun"``.
        pair: samples with the same number were taken one after the other.
        case: what else tells samples apart, as in ``{"model": "mlp", "world": 2}``.
        values: the measured numbers, or a list of them; the unit ends each name.
        environment: where it was measured: hardware, load, versions, thread settings.
        commit: of the measured code.
        dirty: whether the code differed from that commit.
        time: Unix time in seconds at which the sample was complete.
        kind: how the numbers came about; measured ones are never mixed with simulated or calculated ones.
    """

    experiment: str
    session: str
    quick: bool
    what: str
    arm: str
    pair: int
    case: Mapping[str, Any]
    values: Mapping[str, Any]
    environment: Mapping[str, Any] = field(default_factory=dict)
    commit: str = ""
    dirty: bool = False
    time: float = 0.0
    kind: str = "measured"


@dataclass(frozen=True)
class Session:
    """One run of an experiment, which fills in what all its rows share and appends them to a file."""

    experiment: str
    quick: bool
    name: str
    commit: str
    dirty: bool
    machine: Mapping[str, Any]

    @classmethod
    def start(cls, experiment: str, *, quick: bool) -> Session:
        """Begin a session: find out about the machine and the code, and print both."""
        name = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        commit, dirty = code_version()
        session = cls(experiment, quick, name, commit, dirty, machine())
        print(f"{experiment}{' (quick)' if quick else ''}, commit {commit[:12]}{' + changes' if dirty else ''}")
        print("  " + ", ".join(f"{key} {value}" for key, value in session.machine.items()))
        busy = load()["load_1min"]
        if busy > session.machine["cores"] / 4:
            print(f"  the machine is busy with other work (load average {busy}): the noise floor will be high")
        sys.stdout.flush()
        return session

    @property
    def path(self) -> Path:
        """The file of the rows. Rows of quick sessions are kept in other files, which are not committed."""
        return RESULTS / f"{self.experiment}{'-quick' if self.quick else ''}.jsonl"

    def add(self, what: str, arm: str, pair: int, case: Mapping[str, Any], measured: Mapping[str, Any]) -> Row:
        """Append one row.

        Args:
            what: see :class:`Row`; the same for `arm`, `pair` and `case`.
            arm: what was measured.
            pair: number of the pair.
            case: what else tells samples apart.
            measured: ``values``, and what is to be in ``environment`` besides the machine.
        """
        environment = dict(self.machine) | load() | dict(measured.get("environment", {}))
        row = Row(
            *(self.experiment, self.name, self.quick, what, arm, pair, dict(case), dict(measured["values"])),
            environment=environment,
            commit=self.commit,
            dirty=self.dirty,
            time=time.time(),
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        return row


def in_turn(arms: Sequence[T], pair: int) -> Sequence[T]:
    """Return the arms in the order for a pair: A B C, then C B A, then A B C."""
    return arms if pair % 2 == 0 else arms[::-1]


def read(folder: Path = RESULTS) -> list[Row]:
    """Return every row of a folder, file by file, oldest first."""
    return [row for path in sorted(folder.glob("*.jsonl")) for row in _rows(path)]


def _rows(path: Path) -> Iterator[Row]:
    for line in path.read_text(encoding="utf-8").splitlines():
        yield Row(**json.loads(line))


def machine() -> dict[str, Any]:
    """Return what stays the same during a session: hardware, versions, thread settings."""
    cpus = sorted(os.sched_getaffinity(0))
    return {
        "cpu": _cpu_model(),
        "cores": len(cpus),
        "affinity": ",".join(map(str, cpus)),
        "kernel": platform.release(),
        **_gpu(),
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        **THREADS,
    }


def _gpu() -> dict[str, str]:
    """Return the name of this machine's first GPU from NVIDIA's driver; nothing without a GPU."""
    if not shutil.which("nvidia-smi"):
        return {}
    asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False)
    return {"gpu": said.stdout.splitlines()[0]} if said.returncode == 0 and said.stdout else {}


def load() -> dict[str, float]:
    """Return how busy the machine is: load average over a minute, and the share of stolen time since its start."""
    return {"load_1min": round(os.getloadavg()[0], 2), "steal_share": round(_steal(), 5)}


def _steal() -> float:
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    ticks = [int(word) for word in stat.read_text(encoding="ascii").splitlines()[0].split()[1:]]
    return ticks[7] / max(sum(ticks[:8]), 1)


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def code_version() -> tuple[str, bool]:
    """Return the commit of the code, and whether the code differs from it; results do not count."""
    commit = _git("rev-parse", "HEAD")
    return commit or "unknown", bool(_git("status", "--porcelain", "--", ".", ":!benchmarks/results", ":!docs"))


def _git(*words: str) -> str:
    if not shutil.which("git"):
        return ""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def environ(**more: str) -> dict[str, str]:
    """Return a measured process's environment: the same thread counts in every arm, and no other Ray or raykube."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "RAYKUBE_", "MLFLOW_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return kept | THREADS | {"PATH": path, "PYTHONUNBUFFERED": "1"} | more


def own_environ(folder: Path) -> dict[str, str]:
    """Return the environment of a measured process that has a home and a Ray of its own.

    Args:
        folder: has a short name, because the paths of Ray's sockets in it may have at most 107 bytes.
    """
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return environ(RAYKUBE_HOME=str(folder), RAY_TMPDIR=str(folder), **token)
