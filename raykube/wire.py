"""What crosses between the two planes: names of environment variables, and the files of a run.

The outside plane (a laptop) sets these variables and later reads these files; the inside plane (a
Ray driver and its workers) reads the variables and writes the files. Both import this module and
nothing of each other. It needs only the standard library, because it travels to images that have
no more than Ray.

A run's folder, below the place's storage::

    STORAGE/RUN/result.json              the last stage's Result; its presence means "that stage ended well"
    STORAGE/RUN/attempts.jsonl           on a cluster: a row for each attempt's start, and one for its end
    STORAGE/RUN/driver.log               on a cluster: what the entrypoint printed, in all attempts
    STORAGE/RUN/ranks.json               of the last training: [Ray's node id, Ray's worker id] of each rank
    STORAGE/RUN/trouble.json             {"time", "attempt", "message", "waits"}: the last lost worker, or a wait
    STORAGE/RUN/failure.json             {"time", "attempt", "reason", "message", "next_step"}: the last train
                                         or sweep whose failure ended a script, if any
    STORAGE/RUN/.code/HASH.zip           on a cluster: code that is too large for a ConfigMap
    STORAGE/RUN/STAGE/metrics.jsonl      one row per report: {"time", "attempt", "metrics", "checkpoint"}
    STORAGE/RUN/STAGE/metrics.jsonl.plain  the same for plain ray.train.report
    STORAGE/RUN/STAGE/rank-N.log         what the worker of that rank printed, over all its starts
    STORAGE/RUN/STAGE/work.json          which call the stage belongs to: {"work", "attempt", "process"}
    STORAGE/RUN/STAGE/result.json        that stage's Result
    STORAGE/RUN/STAGE/checkpoint_*/      Ray Train's checkpoints

A stage is one call of ``train`` or ``sweep``: ``train-1``, ``sweep-2`` … in the order of the calls.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from raykube.errors import BackendError, ConfigError, Failure

HOME = "RAYKUBE_HOME"
RUN_NAME = "RAYKUBE_RUN_NAME"
STORAGE = "RAYKUBE_STORAGE"
ATTEMPT = "RAYKUBE_ATTEMPT"
TIMEOUT = "RAYKUBE_TIMEOUT_S"
WORKERS = "RAYKUBE_WORKERS"
CPUS = "RAYKUBE_CPUS_PER_WORKER"
GPUS = "RAYKUBE_GPUS_PER_WORKER"
ACCELERATOR = "RAYKUBE_ACCELERATOR"
TRIAL_WORKERS = "RAYKUBE_TRIAL_WORKERS"
TRACKING = "RAYKUBE_TRACKING"
GIT_COMMIT = "RAYKUBE_GIT_COMMIT"
MAX_FAILURES = "RAYKUBE_MAX_FAILURES"

#: Key in Ray's job metadata. Its value, a hash of a run's command and code, tells the run from others of its name.
WORK_KEY = "raykube.work"
#: What a run says when its folder in the storage belongs to another run.
NAME_TAKEN = "is of another run of this name, with other code or another command"

RESULT_FILE = "result.json"
WORK_FILE = "work.json"
#: A stage's rows from ``raykube.report`` and, written by another process, those from plain ``ray.train.report``.
METRICS_FILE, PLAIN_METRICS_FILE = "metrics.jsonl", "metrics.jsonl.plain"
METRICS_FILES = (METRICS_FILE, PLAIN_METRICS_FILE)
ATTEMPTS_FILE = "attempts.jsonl"
LOG_FILE = "driver.log"
RANKS_FILE = "ranks.json"
TROUBLE_FILE = "trouble.json"
FAILURE_FILE = "failure.json"
#: Python's exit code after an uncaught exception; any other code means that something else ended the entrypoint.
UNCAUGHT = 1
#: Ray hands on the last 20,000 characters of a log, and the line with the message is to be read there from its start.
_LONGEST = 4000
_TOLD = ("reason", "message", "next_step")
_FAILED = re.compile(r"raykube: attempt \d+ failed: (\w+): (.*?)(?: \(next: ((?:(?! \(next: ).)*)\))?")

#: Bytes read from the end of a metrics file; the larger number only if the smaller part holds no whole row.
_TAILS = (65_536, 2**20)
#: Silence is rounded down to whole steps, so that a run's status does not change with each look.
_QUIET_STEP_S = 60.0


def home(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of raykube's own state on this machine: ``RAYKUBE_HOME`` or ``~/.raykube``."""
    return expanded(environ.get(HOME) or "~/.raykube").absolute()


def expanded(path: str | Path) -> Path:
    """Return a path with a leading ``~`` or ``~user`` replaced by that home folder.

    Raises:
        ConfigError: there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        what = f"{Path(path).parts[0]!r} at the beginning of {str(path)!r} is nobody's home folder"
        raise ConfigError(what, why=str(error), next_step="write the path from the root") from None


def default_storage(environ: Mapping[str, str] = os.environ) -> str:
    """Return where runs are kept by default: a folder on this machine."""
    return str(home(environ) / "runs")


def state_file(run: str) -> str:
    """Return the name of a run's state file, which lies in Ray's log folder on the driver's node."""
    return f"raykube-{run}.json"


def rank_log(rank: int) -> str:
    """Return the name of a rank's log, which lies in the stage's folder and keeps what that worker printed."""
    return f"rank-{rank}.log"


def ranks_file(run: str) -> str:
    """Return the name of the copy of a run's ``ranks.json`` in Ray's log folder on the driver's node."""
    return f"raykube-{run}.ranks.json"  # not the name of a state file, as no run's name has a dot


# The smallest amount of a resource that Ray counts.
_LEAST = 1e-4
#: How many GPUs a worker may have, in words.
GPU_SHARE = "0, a part of one as in 0.5, or a whole number"


def is_cpu_share(number: float) -> bool:
    """Whether a worker may have this many CPUs."""
    return _LEAST <= number < float("inf")


def is_gpu_share(number: float) -> bool:
    """Whether Ray gives a worker this many GPUs; above one, only whole numbers."""
    return number == 0 or _LEAST <= number < 1 or (1 <= number < float("inf") and number == int(number))


@dataclass(frozen=True)
class Scale:
    """How much of a place one run may use.

    Attributes:
        workers: number of training workers, or (min, max) where the cluster autoscales.
        cpus: logical CPUs of one worker.
        gpus: GPUs of one worker.
        accelerator: Ray's accelerator type, as in ``"H100"``; empty for any.
    """

    workers: int | tuple[int, int] = 1
    cpus: float = 1
    gpus: float = 0
    accelerator: str = ""

    def environ(self) -> dict[str, str]:
        """Return this scale as the environment variables that carry it inside."""
        workers = str(self.workers) if isinstance(self.workers, int) else f"{self.workers[0]}..{self.workers[1]}"
        sizes = {WORKERS: workers, CPUS: f"{self.cpus:g}", GPUS: f"{self.gpus:g}"}
        return sizes | ({ACCELERATOR: self.accelerator} if self.accelerator else {})


def parse_workers(text: str) -> int | tuple[int, int]:
    """Read ``"8"`` or ``"2..8"``.

    Raises:
        ValueError: the text is neither, or a number is below 1, or min is above max.
    """
    low, dots, high = text.partition("..")
    numbers = [int(part) if part.isdecimal() else 0 for part in ((low, high) if dots else (low, low))]
    if 1 <= numbers[1] < numbers[0]:
        raise ValueError(f"the first number of {text!r} must not be larger than the second")
    if min(numbers) < 1:
        raise ValueError(f"{text!r} is not a count: write 8, or 2..8 for an autoscaled range")
    return (numbers[0], numbers[1]) if dots else numbers[0]


@dataclass(frozen=True)
class Result:
    """The outcome of one ``train`` or ``sweep``; written inside, read anywhere.

    Attributes:
        kind: ``"train"`` or ``"sweep"``.
        run: the run's name.
        path: folder (or URI) of the stage that made it; holds the checkpoints and the metric history.
        metrics: those reported with `checkpoint`; without a checkpoint, the last ones reported.
        checkpoint: path or URI of the best checkpoint by the requested metric, or of the last one if no metric was
            requested or no checkpoint has it; None when the loop reported no checkpoint.
        params: the loop's config; for a sweep, that of the best trial.
        model_uri: MLflow's ``models:/NAME/VERSION`` when the model was registered, else None.
        trials: of a sweep: ``{"trial", "params", "metrics", "checkpoint", "error", "stopped_early"}`` each; else empty.
        notes: what did not work but was not worth failing for, such as an unreachable tracking server.
    """

    kind: str
    run: str
    path: str
    metrics: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    model_uri: str | None = None
    trials: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    def history(self) -> list[dict[str, Any]]:
        """Return every reported row, oldest first: ``{"time", "attempt", "metrics", "checkpoint"}``.

        Empty unless `path` is a folder that this machine can read, as in the script itself. ``checkpoint`` is None in a
        row without one. For ``train`` it is the name of a folder in `path`, which may have been removed since. A sweep
        has a row for each trial, with its name as ``trial`` in ``metrics``, and with the path or URI of its checkpoint.
        """
        files = (Path(self.path) / name for name in METRICS_FILES)
        rows = (row for file in files for row in read_rows(file) if isinstance(row.get("time"), (int, float)))
        return sorted(rows, key=lambda row: row["time"])

    def to_json(self) -> str:
        """Return this result as one JSON document."""
        return json.dumps(asdict(self), indent=2, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Result:
        """Read what :meth:`to_json` wrote, and ignore fields that only a later version knows.

        Raises:
            BackendError: the text is torn, or is not a result.
        """
        try:
            fields = {key: value for key, value in json.loads(text).items() if key in Result.__dataclass_fields__}
            fields |= {key: dict(fields.get(key, ())) for key in ("metrics", "params")}
            return Result(**fields | {key: tuple(fields.get(key, ())) for key in ("trials", "notes")})
        except (ValueError, TypeError, AttributeError) as error:
            step = "look into the run's storage: raykube job status NAME says where it is"
            raise BackendError("the result of the run cannot be read", why=str(error), next_step=step) from error


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSON-lines file; none when it does not exist.

    A last line without a newline is skipped, because its writer is still at work or was killed; so is any line that
    is not a row.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        yield from filter(None, (row_of(line) for line in lines if line.endswith("\n")))


def row_of(line: str | bytes) -> dict[str, Any]:
    """Return the row in a line; empty if there is none, as after a power failure or in somebody else's file."""
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(line)
        return found if isinstance(found, dict) else {}
    return {}


def quiet_s(silence: float) -> float:
    """Return for how many seconds a run has reported nothing, rounded down to whole minutes."""
    return max(0.0, silence // _QUIET_STEP_S * _QUIET_STEP_S)


def last_report(folder: Path) -> dict[str, Any]:
    """Return the last row that a stage or a trial reported below a run's folder; empty if there is none.

    Ray Train deletes superseded checkpoints meanwhile, so their folders are not entered (a worker's
    half-written files are no reports either), and a file that is gone at the second look is no error.
    """
    path = newest(folder, METRICS_FILE)
    if path is None:
        return {}
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for tail in _TAILS:
            file.seek(max(0, size - tail))
            if row := last_row(file.read()):
                return row
    return {}


def last_row(data: bytes) -> dict[str, Any]:
    """Return the row in the last whole line of `data`, the end of a metrics file; empty if there is none.

    An unreadable line is no error either: another program's file may have that name.
    """
    lines = [line for line in data.splitlines(keepends=True) if line.endswith(b"\n")]
    with contextlib.suppress(ValueError, LookupError, TypeError):
        row = json.loads(lines[-1])
        return {**row, "metrics": dict(row["metrics"])}
    return {}


def newest(folder: Path, name: str) -> Path | None:
    """Return the newest file of a stage or trial below a run's folder whose name begins with `name`; None if none."""
    return max(_files_named(folder, name), default=(0.0, None))[1]


def _files_named(folder: Path, name: str) -> Iterator[tuple[float, Path]]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [each for each in folders if not each.lstrip(".").startswith("checkpoint_")]
        for file in files:
            if not file.startswith(name):
                continue
            path = Path(parent) / file
            with contextlib.suppress(FileNotFoundError):
                yield path.stat().st_mtime, path


def trouble(text: str, attempt: int) -> str:
    """Return what a run's attempt last lost or waits for, and when, from its trouble file; "" for nothing."""
    note = row_of(text)
    if note.get("attempt") != attempt:
        return ""
    with contextlib.suppress(LookupError, TypeError, ValueError, OverflowError, OSError):  # it is somebody else's file
        return f"{time.strftime('%H:%M:%S', time.localtime(note['time']))} {note['message']}"
    return ""


def failure(text: str, attempt: int, since: float) -> Failure | None:
    """Return why the attempt that began at `since` ended, from a run's failure file; None if that does not say.

    The number of the attempt is not enough: an earlier run of this name, whose folder was left, may have had it too.
    """
    note = row_of(text)
    with contextlib.suppress(LookupError, TypeError, AttributeError, StopIteration):  # it is somebody else's file
        # An error may quote a file name that is not Unicode.
        reason, message, step = (note[key].encode(errors="replace").decode() for key in _TOLD)
        words = next(line.strip() for line in message.splitlines() if line.strip())
        if note["attempt"] == attempt and note["time"] >= since:
            return Failure(reason, words[:_LONGEST], UNCAUGHT, next_step=step)
    return None


def failure_line(attempt: int, failure: Failure) -> str:
    """Return the last line, after `raykube: `, of the log of a run on a cluster whose last attempt failed this way."""
    step = f" (next: {failure.next_step})" if failure.next_step else ""
    return f"attempt {attempt} failed: {failure.reason}: {failure.message}{step}"


def failure_of(line: str) -> Failure | None:
    """Parse a log's last line as made by :func:`failure_line`; None for any other line."""
    found = _FAILED.fullmatch(line)
    return Failure(found[1], found[2], UNCAUGHT, next_step=found[3] or "") if found else None


def finite(value: Any) -> Any:
    """Return a value with None in place of each number that is not finite: JSON has no such numbers."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
