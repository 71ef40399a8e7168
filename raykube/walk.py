"""Which files of a folder are sent: ignore rules, symlinks, and what cannot be sent at all.

The rules, the first that says something wins: the caller's excludes (``!pattern`` brings back), then ``SECRETS`` and
``PLACES``, then the ``.rayignore`` and ``.gitignore`` files, in this order, from the deepest folder upward to the
repository's root, then ``CLUTTER``. As for git, a pattern speaks of what it matches itself: what is in a folder that is
brought back is judged one by one.
What this very process writes its output to (``2> err.log``) is never sent: it grows while it is packed.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

from pathspec import GitIgnoreSpec

from raykube import wire
from raykube.errors import ConfigError, Problem

CLUTTER = (
    *(".hg/", ".svn/", ".venv/", "venv/", "__pycache__/", "*.pyc", ".mypy_cache/", ".ruff_cache/"),
    *(".pytest_cache/", ".import_linter_cache/", ".tox/", ".nox/", ".ipynb_checkpoints/", "node_modules/", ".DS_Store"),
)
#: What opens other doors: who runs a job in the home folder does not mean to send it, nor whose .gitignore has ``!.*``.
SECRETS = (".ssh/", ".aws/", ".kube/", ".gnupg/", ".netrc", ".raykube/", ".git/")
#: Where a run goes is no part of its code: with more memory for its cluster it would be another run.
PLACES = ("/cluster-configs/",)
_IGNORE_FILES = (".rayignore", ".gitignore")  # what was written for raykube comes before what was written for git
MAX_SEEN = 200_000  # beyond it the answer is "too many" anyway, and counting on would take minutes


@dataclass(frozen=True)
class Found:
    """A file to send: `path` below the root with '/', where its bytes are, how many, and if it may be run."""

    path: str
    source: Path
    size: int
    executable: bool


@dataclass(frozen=True)
class Walked:
    """What a walk found, in the order of the paths."""

    files: tuple[Found, ...]
    ignored: tuple[str, ...]
    problems: tuple[Problem, ...]


#: Whether what matches is left out, and the pattern's expression; the last pattern of a file comes first.
_Patterns: TypeAlias = "tuple[tuple[bool, re.Pattern[str]], ...]"


class _Rule(NamedTuple):
    """An ignore file's patterns, and how a path below the root reads from its folder: cut `cut`, put `add` before."""

    cut: str
    add: str
    patterns: _Patterns

    def verdict(self, path: str) -> bool | None:
        path = self.add + path.removeprefix(self.cut)
        said = (out for out, regex in self.patterns if regex.search(path) and _matches_itself(regex, path))
        return next(said, None)


def _matches_itself(regex: re.Pattern[str], path: str) -> bool:
    """Whether a pattern matches a file, or a folder whose path ends with ``/``, and not only a folder that it lies in.

    pathspec asks whether git would leave a path out, and takes a folder's verdict for all that is in it. So it cannot
    tell ``!*/`` from "bring all back"; a walk that stays out of the folders that are left out has no need of that.
    """
    for match in regex.finditer(path):
        if "ps_d" in match.re.groupindex and match["ps_d"]:  # where pathspec saw a folder end
            if match.end("ps_d") == len(path):
                return True
        elif not path.endswith("/") or regex.search(path[:-1]):  # "src/**" matches what is in src alone
            return True
    return False


@dataclass
class _Walk:
    root: Path
    own: tuple[_Rule, ...]
    clutter: _Rule
    own_state: str  # the real path of RAYKUBE_HOME: runs, logs and the head's token
    own_output: frozenset[tuple[int, int]]  # device and inode of the files that this process prints into
    files: list[Found] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def enter(self, folder: Path, prefix: str, rules: tuple[_Rule, ...], chain: tuple[str, ...]) -> None:
        """Walk `folder`, whose path below the root is `prefix`; `chain` holds the real folders it lies in."""
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            self.problems.append(Problem(prefix or ".", f"cannot be listed: {error.strerror}", _or_exclude(prefix)))
            return
        rules = (*(_Rule(prefix, "", found) for found in _patterns_of(folder)), *rules)
        for entry in entries:
            if len(self.files) < MAX_SEEN:
                self._take(entry, f"{prefix}{entry.name}", rules, chain)

    def _take(self, entry: os.DirEntry[str], path: str, rules: tuple[_Rule, ...], chain: tuple[str, ...]) -> None:
        is_folder = _is_folder(entry)
        if self._is_ignored(path + "/" if is_folder else path, rules):
            self.ignored.append(path + "/" if is_folder else path)
            return
        if entry.is_symlink() and (problem := self._link_problem(entry, path, chain)):
            self.problems.append(problem)
        elif not is_folder:
            self._take_file(entry, path)
        elif os.path.lexists(Path(entry.path, "pyvenv.cfg")) or os.path.realpath(entry.path) == self.own_state:
            self.ignored.append(path + "/")
        else:
            self.enter(Path(entry.path), path + "/", rules, (*chain, os.path.realpath(entry.path)))

    def _take_file(self, entry: os.DirEntry[str], path: str) -> None:
        if problem := _name_problem(path):
            self.problems.append(problem)
            return
        try:
            status = entry.stat()
        except OSError as error:
            self.problems.append(Problem(path, f"cannot be read: {error.strerror}", _or_exclude(path)))
            return
        if (status.st_dev, status.st_ino) in self.own_output:
            self.ignored.append(path)
        elif stat.S_ISREG(status.st_mode):
            executable = bool(status.st_mode & stat.S_IXUSR)
            self.files.append(Found(path, Path(entry.path), status.st_size, executable))
        else:
            self.problems.append(Problem(path, "is a pipe, socket or device, not a file", _or_exclude(path)))

    def _is_ignored(self, path: str, rules: tuple[_Rule, ...]) -> bool:
        verdicts = (rule.verdict(path) for rule in (*self.own, *rules, self.clutter))
        return next((verdict for verdict in verdicts if verdict is not None), False)

    def _link_problem(self, entry: os.DirEntry[str], path: str, chain: tuple[str, ...]) -> Problem | None:
        target = os.path.realpath(entry.path)
        if not os.path.exists(target):  # noqa: PTH110 - realpath answers with a string
            return Problem(path, f"is a link to {Path(entry.path).readlink()}, which does not exist", _or_exclude(path))
        if not Path(target).is_relative_to(chain[0]):
            return Problem(path, f"is a link out of the working directory, to {target}", "copy the target in its place")
        if any(Path(folder).is_relative_to(target) for folder in chain):
            return Problem(path, "is a link to a folder that holds it, without end", _or_exclude(path))
        return None


def _name_problem(path: str) -> Problem | None:
    """Say that a name is not UTF-8, as it has to be in an archive; Python holds such bytes as lone surrogates."""
    try:
        path.encode()
    except UnicodeEncodeError:
        told = path.encode(errors="surrogateescape").decode(errors="backslashreplace")
        step = f"rename it, or exclude {_pattern(path)}"
        return Problem(told, "has a name that is not UTF-8, as archives want it", step)
    return None


def _or_exclude(path: str) -> str:
    return f"repair it, or exclude {_pattern(path)}" if path else "make it readable"


def _pattern(path: str) -> str:
    """Return the pattern that leaves out this path, in a shell's quotes; what nobody can type is any character."""
    escaped = re.sub(r"[\\*?\[!#]| \Z", r"\\\g<0>", path)
    typed = re.sub(r"[\ud800-\udfff\x00-\x1f\x7f]", "?", escaped).replace("'", "'\\''")
    return f"'/{typed}'"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _patterns_of(folder: Path) -> Iterator[_Patterns]:
    for path in (folder / name for name in _IGNORE_FILES):
        try:
            lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines() if path.is_file() else []
        except OSError as error:
            raise ConfigError(f"{path} cannot be read", why=str(error), next_step="make it readable") from None
        if lines:
            yield _patterns(lines, str(path))


def _patterns(lines: Iterable[str], source: str) -> _Patterns:
    try:
        # pathspec takes "a/**/" for "a/", with all files that are in a itself.
        spec = GitIgnoreSpec.from_lines(re.sub(r"(?<=[^/])/\*\*/$", "/**/*/", line) for line in lines)
    except ValueError as error:
        raise ConfigError(f"a pattern of {source} cannot be read", why=str(error), next_step="repair it") from None
    found = ((each.include, each.regex) for each in spec.patterns)
    return tuple((out, regex) for out, regex in found if out is not None and regex is not None)[::-1]


def _with_folders(excludes: tuple[str, ...]) -> Iterator[str]:
    """Put before ``!data/**``, which is to bring back all of a folder, what brings back the folder itself."""
    for each in excludes:
        if found := re.fullmatch(r"!(?!\*\*)/?(.+/)\*\*", each):
            yield f"!/{found[1]}"
        yield each


def _rules_above(root: Path) -> tuple[_Rule, ...]:
    """Return the ignore rules between `root` and the repository it lies in, nearest first; none without one."""
    rules: list[_Rule] = []
    if (root / ".git").exists():
        return ()
    root = root.resolve()  # a link to a folder of a repository is that folder
    for parent in root.parents:
        add = f"{root.relative_to(parent).as_posix()}/"
        rules += [_Rule("", add, found) for found in _patterns_of(parent)]
        if (parent / ".git").exists():
            return tuple(rules)
    return ()


def walk(root: Path, excludes: tuple[str, ...]) -> Walked:
    """Find the files below `root` that are to be sent, and every one that cannot be.

    Raises:
        ConfigError: an ignore file or a pattern that cannot be read.
    """
    own_state = os.path.realpath(wire.home())
    own_output = frozenset(_own_output())
    own = tuple(_Rule("", "", _patterns(each, "excludes")) for each in (_with_folders(excludes), SECRETS + PLACES))
    state = _Walk(root, own, _Rule("", "", _patterns(CLUTTER, "the defaults")), own_state, own_output)
    state.enter(root, "", _rules_above(root), (os.path.realpath(root),))
    return Walked(tuple(state.files), tuple(state.ignored), tuple(state.problems))


def _own_output() -> Iterator[tuple[int, int]]:
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # it may be closed
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode):
                yield status.st_dev, status.st_ino
