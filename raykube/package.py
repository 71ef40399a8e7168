"""Packing of a working directory into a zip named by its content, which a cluster gets as code.

The same files give the same bytes on every machine. The zip also carries the inside plane of raykube, so that it runs
on an image that has only Ray. Everything is in one top folder, which Ray strips when it unpacks a zip from a URI.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import os
import stat
import subprocess
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from raykube import wire
from raykube.errors import ConfigError, Problem
from raykube.here import from_here
from raykube.walk import CLUTTER, MAX_SEEN, Found, walk

MAX_FILES = 20_000
MAX_BYTES = 500 * 2**20
_TOP = "raykube-code"  # a name that no working directory has at its top: Ray moves this folder's content up one level
_CARRIED = ("__init__.py", "errors.py", "wire.py", "py.typed")
_FAST_ABOVE = 32 * 2**20  # for more bytes, the usual compression level takes longer than it saves in sending
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class PackedFile:
    """One file of a package: its `path` there, its size in bytes, its SHA-256, and whether it is executable."""

    path: str
    source: Path = field(compare=False)
    size: int
    sha256: str
    executable: bool


@dataclass(frozen=True)
class Package:
    """The code that will be sent.

    Attributes:
        root: the working directory.
        files: what is sent, sorted by path.
        hash: 20 hexadecimal digits over every path, mode and content.
        ignored: what the ignore rules left out; a folder is named once and ends with '/'.
        git_commit: of the working directory, with ``-dirty`` when files were changed; "" outside a repository.
    """

    root: Path = field(compare=False)
    files: tuple[PackedFile, ...]
    hash: str
    ignored: tuple[str, ...] = field(default=(), compare=False)
    git_commit: str = field(default="", compare=False)

    @functools.cached_property
    def by_path(self) -> Mapping[str, PackedFile]:
        """The files by path."""
        return {file.path: file for file in self.files}

    @property
    def size(self) -> int:
        """Bytes of all files before compression."""
        return sum(file.size for file in self.files)

    @property
    def own(self) -> tuple[PackedFile, ...]:
        """The files of the working directory, without those of raykube that are sent with them."""
        return tuple(file for file in self.files if file.source.is_relative_to(self.root))

    @property
    def own_hash(self) -> str:
        """Hash of the working directory's files only; upgrading raykube does not change it."""
        return _digest(self.own)

    def report(self) -> list[str]:
        """Return a report in lines: number and size of the files, the five largest, what was ignored."""
        largest = sorted(self.own, key=lambda file: -file.size)[:5]
        standard = {pattern.rstrip("/") for pattern in (*CLUTTER, ".git/")}
        told = [path for path in self.ignored if path.rstrip("/").rpartition("/")[2] not in standard]
        added = len(self.files) - len(self.own)
        ours = f" and {added} of raykube" * bool(added)
        lines = [f"{_count(self.own)}{ours}, {_size(self.size)}, hash {self.hash}; the largest:"]
        lines += [f"  {_size(file.size):>10}  {file.path}" for file in largest]
        return lines + ([f"  ignored: {', '.join(told[:5])}{' …' if len(told) > 5 else ''}"] if told else [])


def _count(files: Sequence[PackedFile]) -> str:
    return "1 file" if len(files) == 1 else f"{len(files)} files"


def collect(working_dir: str | Path, excludes: Sequence[str] = ()) -> Package:
    """Read a working directory and return exactly what would be sent.

    Args:
        working_dir: a folder.
        excludes: patterns as in .gitignore; ``!pattern`` brings back what an ignore file leaves out.

    Raises:
        ConfigError: there is no such folder, or files are too many, too large or cannot be sent; lists every problem.
    """
    root = from_here(working_dir)
    _check_folder(root)
    if not os.access(root, os.R_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        why = os.strerror(errno.EACCES)
        raise ConfigError(f"the working directory {root} cannot be read", why=why, next_step=f"chmod u+rx {root}")
    walked = walk(root, tuple(excludes))
    problems = [*walked.problems, *_too_much(walked.files)]
    if not problems:
        files, problems = _hashed((*walked.files, *_carried(walked.files)))
    if problems:
        raise ConfigError.of(f"the working directory {root} cannot be sent", problems)
    return Package(root, files, _digest(files), walked.ignored, _git_commit(root))


def check_implied(folder: Path) -> None:
    """Refuse a default working directory that is or holds the home folder: that has far more than code in it.

    Raises:
        ConfigError: `folder` is the home folder, or a folder above it.
    """
    if wire.expanded("~").resolve().is_relative_to(folder):
        raise ConfigError(
            f"the working directory would be {folder}, with your home folder and all that is in it",
            why="no working directory was given, and raykube sends the folder that it runs in",
            next_step="run it in the project's folder, or name the folder: --working-dir, Job(working_dir=...)",
        )


def _check_folder(root: Path) -> None:
    step = "give --working-dir a folder"
    try:
        is_folder = stat.S_ISDIR(root.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"the working directory {root} does not exist", next_step=step) from None
    except (OSError, ValueError) as error:  # in a folder that may not be entered, or a name that no folder can have
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"the working directory {root} cannot be read", why=why, next_step=step) from None
    if not is_folder:
        raise ConfigError(f"the working directory {root} is not a folder", next_step=step)


def _too_much(files: tuple[Found, ...]) -> Iterator[Problem]:
    if len(files) > MAX_FILES:
        folders = Counter(parent for file in files for parent in _folders(file.path))
        count = f"{len(files):,}{' and more' if len(files) >= MAX_SEEN else ''} files"
        yield Problem("", f"{count}; {MAX_FILES:,} can be sent", _exclude(folders, "{:,} files"))
    if (total := sum(file.size for file in files)) > MAX_BYTES:
        sizes = Counter({file.path: file.size for file in files})
        yield Problem("", f"{_size(total)}; {_size(MAX_BYTES)} can be sent", _exclude(sizes, ""))


def _folders(path: str) -> Iterator[str]:
    """Yield the pattern that excludes a file's top folder; for a file at the top, all top files with its suffix."""
    top, slash, _ = path.partition("/")
    suffix = PurePosixPath(path).suffix
    yield f"{top}/" if slash else f"/*{suffix}" if suffix else f"/{path}"


def _exclude(weights: Counter[str], form: str) -> str:
    worst = weights.most_common(3)
    named = ", ".join(f"{path} ({form.format(weight) if form else _size(weight)})" for path, weight in worst)
    return f"most of it: {named}; exclude it: --excludes {worst[0][0]!r}, or a line in .gitignore"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _carried(files: tuple[Found, ...]) -> Iterator[Found]:
    """Yield the part of raykube that runs on the cluster, unless the working directory has its own."""
    if any(file.path == "raykube/__init__.py" for file in files):
        return
    home = Path(__file__).parent
    for path in sorted([*(home / name for name in _CARRIED), *home.glob("inside/**/*.py")]):
        yield Found(f"raykube/{path.relative_to(home).as_posix()}", path, path.stat().st_size, executable=False)


def _hashed(found: tuple[Found, ...]) -> tuple[tuple[PackedFile, ...], list[Problem]]:
    done = [_packed(file) for file in sorted(found, key=lambda file: file.path)]
    files = tuple(item for item in done if isinstance(item, PackedFile))
    return files, [item for item in done if isinstance(item, Problem)]


def _packed(file: Found) -> PackedFile | Problem:
    try:
        with file.source.open("rb") as stream:
            digest = _sha256(stream)
    except OSError as error:
        return Problem(file.path, f"cannot be read: {error.strerror}", "make it readable, or exclude it")
    return PackedFile(file.path, file.source, file.size, digest, file.executable)


def _sha256(stream: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _digest(files: tuple[PackedFile, ...]) -> str:
    rows = "".join(f"{file.path}\0{file.executable:d}\0{file.sha256}\n" for file in files)
    return hashlib.sha256(rows.encode("utf-8", "surrogateescape")).hexdigest()[:20]


def _git_commit(root: Path) -> str:
    """Return the commit of the code; "" if it cannot be found out, since it is only shown and never relied on."""
    try:
        commit = _git(root, "rev-parse", "HEAD")
        dirty = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".")
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{commit}-dirty" if dirty else commit


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def zipped(package: Package, *, top: str = _TOP) -> bytes:
    """Return the package's zip, with all files in the folder `top`; "" for no such folder.

    Raises:
        ConfigError: a file was changed or removed since it was collected.
    """
    buffer = io.BytesIO()
    zip_into(buffer, package, top)
    return buffer.getvalue()


def zip_into(stream: IO[bytes], package: Package, top: str = _TOP) -> None:
    """Write the package's zip, with all files in the folder `top`; "" for no such folder.

    Raises:
        ConfigError: a file was changed or removed since it was collected.
    """
    level = 6 if package.size < _FAST_ABOVE else 1
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as archive:
        for file in package.files:
            info = zipfile.ZipInfo(f"{top}/{file.path}".lstrip("/"), _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3  # Unix, or the mode below would be ignored
            info.external_attr = (0o100755 if file.executable else 0o100644) << 16
            _copy(file, archive, info)


def _copy(file: PackedFile, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    digest = hashlib.sha256()
    with _opened(file) as source, archive.open(info, "w", force_zip64=file.size > 2**31) as target:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
            target.write(chunk)
    if digest.hexdigest() != file.sha256:
        raise _changed(file, "the package is named by its content, and that is another now")


def _opened(file: PackedFile) -> IO[bytes]:
    try:
        return file.source.open("rb")
    except OSError as error:  # removed, or made unreadable, since it was collected
        raise _changed(file, error.strerror or str(error)) from error


def _changed(file: PackedFile, why: str) -> ConfigError:
    what = f"{file.source} was changed while it was packed"
    return ConfigError(what, why=why, next_step="submit again when it is at rest, or exclude it")


def contents(path: Path) -> dict[str, tuple[int, int]]:
    """Return the files of a zip that :func:`zip_into` wrote, each with its CRC and its mode.

    Raises:
        BadZipFile: the file is no zip.
    """
    with zipfile.ZipFile(path) as archive:
        return {info.filename.removeprefix(f"{_TOP}/"): (info.CRC, info.external_attr) for info in archive.infolist()}
