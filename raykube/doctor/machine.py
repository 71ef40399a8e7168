"""Whether this machine can do what raykube will ask of it."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from raykube import wire
from raykube.backends.local import head, records
from raykube.doctor.check import Check, looked, refused
from raykube.errors import ConfigError, Unreachable, install
from raykube.here import seems
from raykube.settings import setting

#: The Ray releases that the tests run on.
TESTED_RAY = ("2.60",)
_NEEDED_GB = 5
_CUDA_S = 60
_CUDA = """
import torch
try:
    torch.zeros(1, device="cuda")
    print(torch.cuda.device_count())
except (AssertionError, RuntimeError) as error:
    in_use = "out of memory" in str(error) or "busy or unavailable" in str(error)
    print(torch.cuda.device_count() if in_use else error)
"""


def checks() -> Iterator[Check]:
    """Look at everything, cheapest first."""
    yield Check("python", (3, 10) <= sys.version_info[:2] <= (3, 13), sys.version.split()[0], "use Python 3.10 to 3.13")
    yield _home()
    yield from looked("disk", lambda: [_disk()])
    yield _ray()
    for name, extra in (("torch", "local"), ("pyarrow", "local"), ("optuna", "local"), ("mlflow", "mlflow")):
        yield _optional(name, extra)
    yield from bytecode()
    yield Check("cpus", True, f"{head.cpu_count()} offered to Ray on this machine")
    yield gpus()
    yield from looked("local head", lambda: [_head()])


def gpus(devices: Path = Path("/dev")) -> Check:
    """Look for NVIDIA GPUs, whether PyTorch can use them, and whether training on this machine does."""
    count, why = _cuda(len([*devices.glob("nvidia[0-9]*"), *devices.glob("dxg")]))
    if why:
        step = "install a driver and a build of PyTorch that fit: https://pytorch.org/get-started/locally"
        return Check("gpus", None, f"PyTorch cannot use the NVIDIA GPUs: {why}", step)
    try:
        share = setting("gpus_per_worker")
    except ConfigError as error:
        return refused("gpus", error)
    found, each = f"{count or 'no'} NVIDIA GPU{'' if count == 1 else 's'}", float(share.value)
    if count and not each:
        step = "export RAYKUBE_GPUS_PER_WORKER=1"
        return Check("gpus", None, f"{found}; no training on this machine uses them", step)
    if each > count:
        step = "ask for fewer" if count else "ask for none, unless there are others than NVIDIA's"
        return Check(
            "gpus", False if count else None, f"{found}; a worker is to have {share.value} ({share.source})", step
        )
    return Check("gpus", True, f"{found}; a worker has {share.value} ({share.source})" if count else found)


def _cuda(devices: int) -> tuple[int, str]:
    """Return how many GPUs PyTorch can use, and why it can use none although there are some."""
    if not devices or not _version("torch"):
        return devices, ""
    # Not in this process: a GPU that does not answer would block it, and no signal would end it.
    command = [sys.executable, "-c", _CUDA]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_CUDA_S, check=False)
    except subprocess.TimeoutExpired:
        return 0, f"no answer within {_CUDA_S} s"
    said = done.stdout.partition("\n")[0]
    if done.returncode:
        return 0, done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
    return (int(said), "") if said.isdecimal() else (0, said)


def bytecode(packages: Sequence[str] = ("ray", "torch", "pandas", "mlflow")) -> Iterator[Check]:
    """Look for large packages that each of Ray's processes compiles again, as Python may not save the bytecode.

    A worker then takes twice as long to import them. pip compiles what it installs, uv only if it is told to.
    """
    lacking = {name: Path(path) for name in packages if (path := _source(name)) and not _is_compiled(path)}
    shut = [path.parent for path in lacking.values() if not os.access(path.parent, os.W_OK)]
    if not lacking or not (sys.dont_write_bytecode or shut):
        return  # if anything is lacking, the first import saves it
    why = "PYTHONDONTWRITEBYTECODE is set" if sys.dont_write_bytecode else f"{shut[0]} may not be written"
    folders = shlex.join(dict.fromkeys(str(path.parent.parent) for path in lacking.values()))
    found = f"each of Ray's processes compiles {', '.join(lacking)} anew, as {why}"
    yield Check("bytecode", None, found, f"{shlex.quote(sys.executable)} -m compileall -q {folders}")


def _source(package: str) -> str:
    found = importlib.util.find_spec(package)
    return (found.origin or "") if found else ""


def _is_compiled(path: str) -> bool:
    return Path(importlib.util.cache_from_source(path)).exists()


def _optional(package: str, extra: str) -> Check:
    found = _version(package)
    return Check(package, bool(found) or None, found or "not installed", install(extra))


def _home() -> Check:
    try:
        return Check("state folder", True, str(records.ensure_home()))
    except ConfigError as error:
        return Check("state folder", False, f"{error.what}: {error.why}", error.next_step)


def _disk() -> Check:
    folder = next(path for path in (wire.home(), *wire.home().parents) if seems(path.exists))
    free = shutil.disk_usage(folder).free / 1e9
    return Check("disk", free > _NEEDED_GB, f"{free:.0f} GB free", f"have {_NEEDED_GB} GB free for runs and Ray's logs")


def _ray() -> Check:
    found = _version("ray")
    if not found:
        return Check("ray", None, "not installed; needed to run on this machine", install("local"))
    tested = any(found.startswith(f"{minor}.") for minor in TESTED_RAY)
    return Check("ray", tested or None, found, f"raykube is tested on Ray {', '.join(TESTED_RAY)}; others may work")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _head() -> Check:
    try:
        running = head.current() if _version("psutil") else None
    except Unreachable as error:
        return Check("local head", None, f"{error.what}: {error.why}", error.next_step)
    if running is None:
        return Check("local head", True, "none runs; the first job on this machine starts one")
    return Check("local head", True, f"runs at {running.address} on {running.python}")
