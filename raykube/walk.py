"""Which files of a folder are sent: ignore rules, symlinks, and what cannot be sent at all.

The first of these rules that matches a path decides: the caller's excludes (``!pattern`` brings back), then ``SECRETS``
and ``PLACES``, then the ``.rayignore`` and ``.gitignore`` files, in this order, from the deepest folder upward to the
repository's root, then ``CLUTTER``. As in git, a pattern decides only about the paths that it matches itself: bringing
back a folder leaves each path in it to be decided on its own.
The file that this process writes its output to (``2> err.log``) is never sent: it would grow while it is packed.
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
#: Credentials and the like: nobody who runs a job in the home folder, or has ``!.*`` in .gitignore, means to send them.
SECRETS = (".ssh/", ".aws/", ".kube/", ".gnupg/", ".netrc", ".raykube/", ".git/")
#: The place of a run is not part of its code: otherwise, giving its cluster more memory would make it another run.
PLACES = ("/cluster-configs/",)
_IGNORE_FILES = (".rayignore", ".gitignore")  # patterns for raykube come before patterns for git
MAX_SEEN = 200_000  # beyond this the answer is "too many" anyway, and counting further would take minutes


@dataclass(frozen=True)
class Found:
    """A file to send: its `path` below the root with '/', its source, its size in bytes, whether it is executable."""

    path: str
    source: Path
    size: int
    executable: bool


@dataclass(frozen=True)
class Walked:
    """What a walk found, each part in the order of the walk: folder by folder, sorted by name."""

    files: tuple[Found, ...]
    ignored: tuple[str, ...]
    problems: tuple[Problem, ...]


#: For each pattern, whether a match is left out, and its regular expression; the last pattern of a file comes first.
_Patterns: TypeAlias = "tuple[tuple[bool, re.Pattern[str]], ...]"


class _Rule(NamedTuple):
    """An ignore file's patterns. Without `cut` and with `add` in front, a path from the root is one from its folder."""

    cut: str
    add: str
    patterns: _Patterns

    def verdict(self, path: str) -> bool | None:
        path = self.add + path.removeprefix(self.cut)
        said = (out for out, regex in self.patterns if regex.search(path) and _matches_itself(regex, path))
        return next(said, None)


def _matches_itself(regex: re.Pattern[str], path: str) -> bool:
    """Whether a pattern matches the path itself (a folder's ends with ``/``), and not just a folder above it.

    pathspec applies a match of a folder to everything in it, since it answers whether git would leave a path out. So it
    cannot tell ``!*/`` from "bring all back". This walk does not need that: it never enters a folder that is left out.
    """
    for match in regex.finditer(path):
        if "ps_d" in match.re.groupindex and match["ps_d"]:  # pathspec's group for the end of a folder
            if match.end("ps_d") == len(path):
                return True
        elif not path.endswith("/") or regex.search(path[:-1]):  # "src/**" matches what is in src, and not src itself
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
        """Walk `folder`, whose path below the root is `prefix`; `chain` holds its real path and those above it."""
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
    """Return a problem if a path is not UTF-8, as archives require; Python holds other bytes as lone surrogates."""
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
    """Return the pattern that excludes a path, quoted for a shell, with ``?`` for characters that nobody can type."""
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
    """Yield `excludes`, with a pattern for the folder itself before each ``!data/**``, so that all of it comes back."""
    for each in excludes:
        if found := re.fullmatch(r"!(?!\*\*)/?(.+/)\*\*", each):
            yield f"!/{found[1]}"
        yield each


def _rules_above(root: Path) -> tuple[_Rule, ...]:
    """Return the ignore rules above `root` up to its repository's root, nearest first; none outside a repository."""
    rules: list[_Rule] = []
    if (root / ".git").exists():
        return ()
    root = root.resolve()  # a link to a folder in a repository counts as that folder
    for parent in root.parents:
        add = f"{root.relative_to(parent).as_posix()}/"
        rules += [_Rule("", add, found) for found in _patterns_of(parent)]
        if (parent / ".git").exists():
            return tuple(rules)
    return ()


def walk(root: Path, excludes: tuple[str, ...]) -> Walked:
    """Find the files below `root` that are to be sent, and those that cannot be sent.

    Raises:
        ConfigError: an ignore file or a pattern cannot be read.
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
