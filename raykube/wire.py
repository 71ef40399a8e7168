"""What crosses between the two planes: names of environment variables, and the files of a run.

The outside plane (a laptop) sets these variables and later reads these files; the inside plane (a
Ray driver and its workers) reads the variables and writes the files. Both import this module and
nothing of each other. It needs only the standard library, because it travels to images that have
no more than Ray.

A run's folder, below the place's storage::

    STORAGE/RUN/result.json              the last stage's Result; its presence means "that stage ended well"
    STORAGE/RUN/attempts.jsonl           on a cluster: a row for each attempt's start, and one for its end
    STORAGE/RUN/driver.log               on a cluster: what the entrypoint printed, in all attempts
    STORAGE/RUN/ranks.json               of the training that began last: [Ray's node id, its worker id] of each rank
    STORAGE/RUN/trouble.json             {"time", "attempt", "message", "waits"} of the worker lost last, or of a wait
    STORAGE/RUN/failure.json             {"time", "attempt", "reason", "message", "next_step"} of the last train
                                         or sweep whose failure ended a script, if one did
    STORAGE/RUN/.code/HASH.zip           on a cluster: code that is too large for a ConfigMap
    STORAGE/RUN/STAGE/metrics.jsonl      one row a report: {"time", "attempt", "metrics", "checkpoint"}
    STORAGE/RUN/STAGE/metrics.jsonl.plain  the same of plain ray.train.report
    STORAGE/RUN/STAGE/rank-N.log         what the worker of that rank printed, over all its starts
    STORAGE/RUN/STAGE/work.json          whose stage it is: {"work", "attempt", "process"}
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

#: Key of Ray's job metadata: a hash of a run's command and code, which tells it from another of its name.
WORK_KEY = "raykube.work"
#: What a run says that finds another's folder in its storage.
NAME_TAKEN = "is of another run of this name, with other code or another command"

RESULT_FILE = "result.json"
WORK_FILE = "work.json"
#: Of a stage: what ``raykube.report`` is told, and, written by another process, what plain ``ray.train.report`` is.
METRICS_FILE, PLAIN_METRICS_FILE = "metrics.jsonl", "metrics.jsonl.plain"
METRICS_FILES = (METRICS_FILE, PLAIN_METRICS_FILE)
ATTEMPTS_FILE = "attempts.jsonl"
LOG_FILE = "driver.log"
RANKS_FILE = "ranks.json"
TROUBLE_FILE = "trouble.json"
FAILURE_FILE = "failure.json"
#: How Python ends for an exception that nobody caught. With another code something else has ended an entrypoint.
UNCAUGHT = 1
#: Ray hands on the last 20,000 characters of a log, and the line with the message is to be read there from its start.
_LONGEST = 4000
_TOLD = ("reason", "message", "next_step")
_FAILED = re.compile(r"raykube: attempt \d+ failed: (\w+): (.*?)(?: \(next: ((?:(?! \(next: ).)*)\))?")

#: So many bytes of the end of a metrics file are read, the more where they hold no whole row.
_TAILS = (65_536, 2**20)
#: Silence is told in whole steps, so that what is told of a run does not change with each look.
_QUIET_STEP_S = 60.0


def home(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of raykube's own state on this machine: ``RAYKUBE_HOME`` or ``~/.raykube``."""
    return expanded(environ.get(HOME) or "~/.raykube").absolute()


def expanded(path: str | Path) -> Path:
    """Return a path with the home folder that a ``~`` at its beginning stands for.

    Raises:
        ConfigError: it stands for none.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        what = f"{Path(path).parts[0]!r} at the beginning of {str(path)!r} is nobody's home folder"
        raise ConfigError(what, why=str(error), next_step="write the path from the root") from None


def default_storage(environ: Mapping[str, str] = os.environ) -> str:
    """Return where runs are kept when nothing else was said: a folder on this machine."""
    return str(home(environ) / "runs")


def state_file(run: str) -> str:
    """Return the name, in the log folder of the driver's node, of the file that tells the state of a run."""
    return f"raykube-{run}.json"


def rank_log(rank: int) -> str:
    """Return the name of the file, in a stage's folder, that keeps what the worker of a rank printed."""
    return f"rank-{rank}.log"


def ranks_file(run: str) -> str:
    """Return the name, in the same folder, of the copy of a run's ``ranks.json``."""
    return f"raykube-{run}.ranks.json"  # no name of a run has a dot


# The smallest part of a resource that Ray keeps count of.
_LEAST = 1e-4
#: How many GPUs a worker may have, in words.
GPU_SHARE = "0, a part of one as in 0.5, or a whole number"


def is_cpu_share(number: float) -> bool:
    """Tell whether a worker may have so many CPUs."""
    return _LEAST <= number < float("inf")


def is_gpu_share(number: float) -> bool:
    """Tell whether Ray gives a worker so many GPUs: of more than one, it gives no parts."""
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
    """What one ``train`` or ``sweep`` ended with. Written inside, read anywhere.

    Attributes:
        kind: ``"train"`` or ``"sweep"``.
        run: the run's name.
        path: folder (or URI) of the stage that made it; holds the checkpoints and the metric history.
        metrics: of `checkpoint`; the last ones reported where there is none.
        checkpoint: path or URI of the best checkpoint by the metric asked for, of the last one where none was; None
            when the loop reported none.
        params: the config of the loop; of the best trial for a sweep.
        model_uri: MLflow's ``models:/NAME/VERSION`` when the model was registered, else None.
        trials: one ``{"trial", "params", "metrics", "checkpoint", "error"}`` a trial; empty for ``train``.
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

        Only where `path` is a folder that this machine can read, as in the script itself; else there are none.
        """
        files = (Path(self.path) / name for name in METRICS_FILES)
        rows = (row for file in files for row in read_rows(file) if isinstance(row.get("time"), (int, float)))
        return sorted(rows, key=lambda row: row["time"])

    def to_json(self) -> str:
        """Return this result as one JSON document."""
        return json.dumps(asdict(self), indent=2, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Result:
        """Read what :meth:`to_json` wrote, without fields that only a later version knows.

        Raises:
            BackendError: it is torn, or no result.
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

    A last line without its newline is left out: its writer is still at it, or was killed there. So is what is no row.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        yield from filter(None, (row_of(line) for line in lines if line.endswith("\n")))


def row_of(line: str | bytes) -> dict[str, Any]:
    """Return the row that a line holds; empty where it holds none, as after a power failure or by somebody else."""
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(line)
        return found if isinstance(found, dict) else {}
    return {}


def quiet_s(silence: float) -> float:
    """Return for how long a run has reported nothing, in whole minutes; 0 below one."""
    return max(0.0, silence // _QUIET_STEP_S * _QUIET_STEP_S)


def last_report(folder: Path) -> dict[str, Any]:
    """Return the row reported last below a run's folder, by a stage or a trial; empty when there is none.

    Ray Train deletes superseded checkpoints while this looks, so they are not entered (a worker's
    half-written files are no reports either), and what is gone at the second look is no error.
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
    """Return the row in the last whole line of the end of a metrics file; empty when there is none.

    Nor is it an error when the line cannot be read: another program's file may have that name.
    """
    lines = [line for line in data.splitlines(keepends=True) if line.endswith(b"\n")]
    with contextlib.suppress(ValueError, LookupError, TypeError):
        row = json.loads(lines[-1])
        return {**row, "metrics": dict(row["metrics"])}
    return {}


def newest(folder: Path, name: str) -> Path | None:
    """Return the file written last, below a run's folder, whose name begins with `name`; by a stage or a trial."""
    return max(_named(folder, name), default=(0.0, None))[1]


def _named(folder: Path, name: str) -> Iterator[tuple[float, Path]]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [each for each in folders if not each.lstrip(".").startswith("checkpoint_")]
        for file in files:
            if not file.startswith(name):
                continue
            path = Path(parent) / file
            with contextlib.suppress(FileNotFoundError):
                yield path.stat().st_mtime, path


def trouble(text: str, attempt: int) -> str:
    """Read a run's trouble file: what its attempt `attempt` has lost last, or waits for, and when; "" for nothing."""
    note = row_of(text)
    if note.get("attempt") != attempt:
        return ""
    with contextlib.suppress(LookupError, TypeError, ValueError, OverflowError, OSError):  # it is somebody else's file
        return f"{time.strftime('%H:%M:%S', time.localtime(note['time']))} {note['message']}"
    return ""


def failure(text: str, attempt: int, since: float) -> Failure | None:
    """Read a run's failure file: why its attempt `attempt`, which has begun at `since`, was ended; None for no reason.

    An earlier run of this name, whose folder was left, may have had an attempt of that number.
    """
    note = row_of(text)
    with contextlib.suppress(LookupError, TypeError, AttributeError, StopIteration):  # it is somebody else's file
        # An error may name a file whose name is no Unicode.
        reason, message, step = (note[key].encode(errors="replace").decode() for key in _TOLD)
        words = next(line.strip() for line in message.splitlines() if line.strip())
        if note["attempt"] == attempt and note["time"] >= since:
            return Failure(reason, words[:_LONGEST], UNCAUGHT, next_step=step)
    return None


def failure_line(attempt: int, failure: Failure) -> str:
    """Return the line that the log of a run on a cluster ends with, after `raykube: `, whose last attempt failed so."""
    step = f" (next: {failure.next_step})" if failure.next_step else ""
    return f"attempt {attempt} failed: {failure.reason}: {failure.message}{step}"


def failure_of(line: str) -> Failure | None:
    """Read the last line of a log as :func:`failure_line` makes it; None for any other."""
    found = _FAILED.fullmatch(line)
    return Failure(found[1], found[2], UNCAUGHT, next_step=found[3] or "") if found else None


def finite(value: Any) -> Any:
    """Return a value with None in place of each number that is not finite: JSON has none."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
