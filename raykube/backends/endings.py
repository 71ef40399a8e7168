"""Why a run failed: reason, exit code and last lines, from Ray's message or the end of its log. Pure functions."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace

from raykube import wire
from raykube.errors import Failure

#: Logged when a run that has succeeded is submitted again: its log, which is shown next, looks like that of a new run.
OVER = "%s has succeeded already; nothing is run again"
#: The detail of what is being deleted: of a run, too, which its deletion stops first.
BEING_DELETED = "it is being deleted"
#: How many lines at the end of a log a failure shows.
TAIL_LINES = 20
_LONGEST = 400
_KILLED = ": the kernel kills for want of memory, or somebody did"

_Meanings = Sequence[tuple[str, Callable[[str, Sequence[str]], str]]]

_EXIT = re.compile(r"Job entrypoint command failed with exit code (-?\d+)(, last available logs[^\n]*\n?)?")
_OF_RAY = re.compile(r"-- Runtime env is setting up\.$|^Running entrypoint for job \S+: ")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_SYNTAX = re.compile(r"(?:SyntaxError|IndentationError|TabError): ")
_FILE = re.compile(r'\s*File "([^"]+)", line (\d+)$')
_VERSIONS = re.compile(
    r"The cluster was started with:\s+Ray: (\S+)\s+Python: (\S+)\s+"
    r"This process on (.+?) was started with:\s+Ray: (\S+)\s+Python: (\S+)"
)
# The last lines of a driver's log may lack the beginning of this error, so the advice at its end counts as well.
_OUT_OF_MEMORY = re.compile(
    r"running low on memory|how to address the out of memory issue|exceptions\.OutOfMemoryError"
)
# PyTorch's errors, for any kind of GPU.
_GPU_MEMORY = re.compile(r"\bOutOfMemoryError: \w+ out of memory\. Tried to allocate |\bCUDA error: out of memory")
# Lines that PyTorch adds to a CUDA error.
_GPU_ADVICE = re.compile(r"\s*(?:Search for `cuda|CUDA kernel errors might|For debugging consider|Compile with `TORCH)")
# Only the head has the code that was uploaded to it. Ray goes on with advice for slow uploads, which is left out.
_NO_CODE = re.compile(r"Failed to download runtime_env file package gcs://_ray_pkg_\S+")
_NEW_HEAD = "the head does not have the code that was uploaded to it, as one that takes the place of a lost head"
_ERROR = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Failed|Interrupt): ")
#: Reasons by Ray's ``error_type``, for jobs whose message and log tell nothing more exact.
ERROR_TYPES = {
    "RUNTIME_ENV_SETUP_FAILURE": "RuntimeEnvSetupFailed",
    "JOB_ENTRYPOINT_COMMAND_ERROR": "EntrypointFailed",
    "JOB_ENTRYPOINT_COMMAND_START_ERROR": "EntrypointFailed",
    "JOB_SUPERVISOR_ACTOR_START_TIMEOUT": "PreRunningDeadlineExceeded",
    "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE": "Unschedulable",
    "JOB_SUPERVISOR_ACTOR_DIED": "DriverDied",
}

#: What to do about each reason, where that is the same on every backend; `name` is the run's.
NEXT_STEPS = {
    "EntrypointFailed": "raykube job logs {name}",
    # raykube's own reasons for failed training; most such failures bring a next step of their own.
    **dict.fromkeys(("LoopFailed", "TrainingFailed", "ControllerDied", "AllTrialsFailed"), "raykube job logs {name}"),
    "RuntimeEnvSetupFailed": "correct the pip packages or runtime_env named above and submit again",
    "CodeLost": "submit it again under the same name, which sends its code again: it resumes, if its script loads its "
    "checkpoint",
    "SyntaxError": "correct the line that the message names and submit again",
    "Unschedulable": "ask for less: --entrypoint-num-cpus, --entrypoint-num-gpus, --entrypoint-resources",
    "GpuOutOfMemory": "use a smaller batch or model, or a GPU with more memory",
}


def other_name(kind: str, name: str, folder: str) -> str:
    """Return the next step if other work has the name that was asked for.

    Args:
        kind: whether a ``"job"`` or a ``"service"`` has the name.
        name: the name.
        folder: folder or URI that holds the checkpoints of the run that has it; "" if there are none.
    """
    if not folder:
        return f"choose another --name, or: raykube {kind} delete {name}"
    load = "a script can load one by raykube.inside.checkpoints.load(FOLDER)"
    kept = f"the checkpoints of that run stay below {folder}; {load}"
    return f"choose another --name ({kept}), or delete that run with its checkpoints: raykube {kind} delete {name}"


def stop_first(name: str) -> str:
    """Return the next step if a run that has not ended would go on with what was asked for, once it is stopped."""
    return f"to have it go on with this change: raykube job stop {name}; then submit it again. Or choose another --name"


def ending(message: str, error_type: str = "", exit_code: int | None = None) -> Failure:
    """Return why a job failed; the reason is empty if nothing known explains it.

    Args:
        message: of Ray's job; a RayJob repeats it.
        error_type: of Ray's JobDetails.
        exit_code: of the entrypoint, if Ray gives it in a field of its own.
    """
    found = _EXIT.match(message)
    log = message[found.end() :] if found else message
    code = int(found.group(1)) if found and exit_code is None else exit_code
    tail = tail_of(log)
    told = wire.failure_of(COLOUR.sub("", log).rstrip().rpartition("\n")[2])
    if told and told.exit_code == code:
        return completed(told, code, tail)
    reason, said = _meaning(_MEANINGS, message, tail) or ("", "")
    if (versions := mismatch(log)) and reason == "EntrypointFailed":
        reason, said = versions
    return Failure(reason or ERROR_TYPES.get(error_type, ""), said or first_line(message), code, tail)


def completed(told: Failure, code: int | None, tail: Sequence[str]) -> Failure:
    """Return the failure as the run's own driver told it, which knows best, with exit code and tail."""
    return replace(told, message=_short(told.message), exit_code=code, tail=tuple(tail))


def tail_of(log: str) -> tuple[str, ...]:
    """Return the last lines of a log, without colours and without Ray's own lines about starting the job."""
    lines = COLOUR.sub("", log).rstrip().splitlines()
    return tuple(_short(line) for line in lines if not _OF_RAY.search(line))[-TAIL_LINES:]


def mismatch(text: str) -> tuple[str, str] | None:
    """Return reason and words if Ray says that a process has other versions than the cluster."""
    found = _VERSIONS.search(text)
    if not found:
        return None
    ray, python, process, its_ray, its_python = found.groups()
    reason = "PythonVersionMismatch" if ray == its_ray else "RayVersionMismatch"
    words = f"the cluster was started with Ray {ray}, Python {python}"
    return reason, f"Version mismatch: {words}; this process on {process} with Ray {its_ray}, Python {its_python}"


def summary(text: str) -> str:
    """Return the first line of a message and, if it has several, the last one: an exception's own words."""
    lines = [line.strip() for line in COLOUR.sub("", text).splitlines() if line.strip()]
    ends = dict.fromkeys([*lines[:1], *lines[-1:]])
    return _short(" ... ".join(ends))


def opening(text: str) -> str:
    """Return the first line that is not blank."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def first_line(text: str) -> str:
    """Return the first line that is not blank, cut if it is long."""
    return _short(opening(text))


def _short(line: str) -> str:
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def _runtime_env(message: str, _: Sequence[str]) -> str:
    return summary(message) if message.startswith("runtime_env setup failed") else ""


def _code_gone(message: str, _: Sequence[str]) -> str:
    found = _NO_CODE.search(message) if message.startswith("runtime_env setup failed") else None
    return f"{_NEW_HEAD}: {found.group()}" if found else ""


def last_words(tail: Sequence[str]) -> tuple[str, str] | None:
    """Return reason and words if the end of a log says more than that its script failed."""
    return _meaning(_LAST_WORDS, "\n".join(tail), tail)


def _meaning(meanings: _Meanings, message: str, tail: Sequence[str]) -> tuple[str, str] | None:
    told = ((reason, words(message, tail)) for reason, words in meanings)
    return next((found for found in told if found[1]), None)


def _out_of_memory(message: str, _: Sequence[str]) -> str:
    """Return the words on a kill by Ray's memory monitor, preferring a raised error's to a warning's."""
    lines = [line.strip() for line in COLOUR.sub("", message).splitlines() if _OUT_OF_MEMORY.search(line)]
    whys = [line.removeprefix("why:").strip() for line in lines if line.startswith("why:")]
    return _short(next(iter([*whys, *lines]), ""))


def _gpu_memory(_: str, tail: Sequence[str]) -> str:
    """Return the error if a script ended for want of GPU memory; an earlier one may be a try for the largest batch."""
    lines = [line for line in tail if not _GPU_ADVICE.match(line)]
    errors = [number for number, line in enumerate(lines) if _ERROR.match(line)]
    own = [line.strip() for line in lines[max(errors, default=0) :]]
    told = [line.removeprefix("why:").strip() for line in own if line.startswith("why:")]
    return next((_short(line) for line in [*told, *own[-1:]] if _GPU_MEMORY.search(line)), "")


def _crash(_: str, tail: Sequence[str]) -> str:
    """Return the last line if a worker crashed: the kernel, unlike Ray's memory monitor, kills without a word."""
    return tail[-1] if tail and tail[-1].startswith("ray.exceptions.WorkerCrashedError: ") else ""


def _taken(_: str, tail: Sequence[str]) -> str:
    last = tail[-1] if tail else ""
    return last.removeprefix("raykube: ") if last.endswith(wire.NAME_TAKEN) else ""


def _syntax(_: str, tail: Sequence[str]) -> str:
    """Return the syntax error in the last line, with its place; a program may print an earlier one and go on."""
    if not tail or not _SYNTAX.match(tail[-1]):
        return ""
    places = [found for found in map(_FILE.match, tail) if found]
    return f"{tail[-1]} ({places[-1].group(1)}, line {places[-1].group(2)})" if places else tail[-1]


def _entrypoint(message: str, _: Sequence[str]) -> str:
    found = _EXIT.match(message)
    return found.group(0).partition(",")[0].strip() + _signal(int(found.group(1))) if found else ""


def _signal(code: int) -> str:
    """Name the signal behind an exit code, which is its number negated or, from a shell, added to 128."""
    with contextlib.suppress(ValueError):
        name = signal.Signals(-code if code < 0 else code - 128).name
        return f" ({name}{_KILLED if name == 'SIGKILL' else ''})"
    return ""


def _head_gone(message: str, _: Sequence[str]) -> str:
    return first_line(message) if re.search(r"head pod.* not found", message, re.IGNORECASE) else ""


#: What to look for at the end of a log, in this order.
_LAST_WORDS: _Meanings = (
    ("OutOfMemory", _out_of_memory),
    ("GpuOutOfMemory", _gpu_memory),
    ("WorkerDied", _crash),
    ("NameTaken", _taken),
    ("SyntaxError", _syntax),
)
#: The same for a failed job's message, which includes the end of its log.
_MEANINGS: _Meanings = (
    ("CodeLost", _code_gone),
    ("RuntimeEnvSetupFailed", _runtime_env),
    *_LAST_WORDS,
    ("EntrypointFailed", _entrypoint),
    ("HeadLost", _head_gone),
)
