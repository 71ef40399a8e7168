"""Checks, on the code that will be sent, that an entrypoint can start at all. Nothing is run."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import itertools
import os
import posixpath
import re
import shlex
import sys
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from raykube.errors import ConfigError
from raykube.names import nearest
from raykube.package import Package, PackedFile
from raykube.specs import Job, Service

_OPERATORS = "();<>|&\n"
_WILD = frozenset("$`*?[{~")  # characters that a shell expands, to something that only the shell knows
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_PYTHON = re.compile(r"python([\d.]*)")
#: Python's options that take a value, which is the rest of the word, else the next word.
_WITH_VALUE = re.compile(r"-[^-cmWX]*([cmWX])(.*)", re.DOTALL)
_LONG_WITH_VALUE = "--check-hash-based-pycs"
_SHELLS = ("bash", "sh", "dash", "zsh")
_BRING_MODULES = frozenset({"pip", "uv", "conda", "py_modules", "image_uri", "py_executable"})
_SEARCH_PATH = "PYTHONPATH"
_ALIKE = 0.75  # how similar two names must be, such as jbos and jobs


def check_code(work: Job | Service, package: Package, *, here: bool, newer: bool = False) -> None:
    """Refuse a job or service that cannot start with the code of its package.

    Args:
        work: the job or service.
        package: its code.
        here: whether it runs on this machine, whose installed modules can be checked. An image may have any module.
        newer: whether it runs on a newer Python than this one, which may know more syntax.

    Raises:
        ConfigError: it cannot start; the error has the nearest names, or the file and line of the syntax error.
    """
    all_seen = here and not _brings_modules(work)
    if isinstance(work, Job):
        check_entrypoint(work.entrypoint, package, all_seen=all_seen, newer=newer)
        return
    for app in work.apps:
        check_import_path(app.import_path, package, all_seen=all_seen, newer=newer)


def _brings_modules(work: Job | Service) -> bool:
    """Whether the work's runtime environment may bring modules that cannot be seen from here."""
    own = [work.env_vars] if isinstance(work, Job) else [app.env_vars for app in work.apps]
    variables = [work.runtime_env.get("env_vars", {}), *own]
    brought = work.pip or _BRING_MODULES & work.runtime_env.keys()
    return bool(brought) or any(_SEARCH_PATH in each for each in variables)


def check_entrypoint(entrypoint: str, package: Package, *, all_seen: bool = True, newer: bool = False) -> None:
    """Refuse an entrypoint whose script or module is not in the package, or does not compile.

    Only what is certain to fail is refused: a shell line may do anything. Unless `all_seen`, the cluster may have
    modules that are not installed here, so a module counts as missing only if its name looks like a typing error for
    one in the code, or if an ignore rule leaves it out.

    Raises:
        ConfigError: it cannot start; the error has the nearest names, or the file and line of the syntax error.
    """
    words = _first_command(entrypoint)
    variables = [*itertools.takewhile(_ASSIGNMENT.match, words)]
    words = words[len(variables) :]
    program = PurePosixPath(words[0]).name if words else ""
    if python := _PYTHON.fullmatch(program):
        of_this = "/" not in words[0] and not any(each.startswith(f"{_SEARCH_PATH}=") for each in variables)
        file = _run_by_python(words[1:], package, all_seen=all_seen and of_this)
        if file is not None and not (newer or _is_newer(python[1])):
            _check_syntax(file)
    elif program in _SHELLS and len(words) > 1 and not words[1].startswith("-"):
        _script(words[1], package)
    elif words and "/" in words[0]:
        _script(words[0], package)


def check_import_path(import_path: str, package: Package, *, all_seen: bool = True, newer: bool = False) -> None:
    """Refuse a Serve application whose module is not in the package, or does not compile.

    A module that may be installed is judged as in :func:`check_entrypoint`.

    Raises:
        ConfigError: it cannot start; the error has the nearest names, or the file and line of the syntax error.
    """
    module = import_path.partition(":")[0] if ":" in import_path else import_path.rpartition(".")[0]
    files = package.by_path
    if _imported(import_path, files):
        what = f"{import_path!r} is a module, not an application in one"
        raise ConfigError(what, next_step=f"write {import_path}:app, if app is its name there: module:attribute")
    file = _imported(module, files)
    if file is None and any(path.startswith(f"{module.replace('.', '/')}/") for path in files):
        step = f"name a module in it and its application: {module}.MODULE:app"
        raise ConfigError(f"{module!r} is a folder, not a module", next_step=step)
    file = file or _module(module, package, all_seen=all_seen)
    if file is not None and not newer:
        _check_syntax(file, "the application's module", "deploy")


def _imported(module: str, files: Mapping[str, PackedFile]) -> PackedFile | None:
    """Return the packed file that ``import MODULE`` runs, if there is one."""
    stem = module.replace(".", "/")
    return files.get(f"{stem}/__init__.py") or files.get(f"{stem}.py")


def _first_command(entrypoint: str) -> list[str]:
    """Return the words up to the first shell operator; the rest is not read."""
    lexer = shlex.shlex(entrypoint.replace("\\\n", ""), posix=True, punctuation_chars=_OPERATORS)
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    words: list[str] = []
    try:
        for word in lexer:
            if word.startswith("#"):
                break
            if word and not word.strip(_OPERATORS):
                # A number before a redirection is part of it, as in 2>log.
                return words[:-1] if word[0] in "<>" and words and words[-1].isdecimal() else words
            words.append(word)
    except ValueError as error:
        raise ConfigError(f"the entrypoint {entrypoint!r} cannot be read by a shell", why=str(error)) from None
    return words


def _is_newer(version: str) -> bool:
    """Whether a program called ``pythonVERSION`` is a newer Python than this one, which may know more syntax."""
    return tuple(int(part) for part in version.split(".")[:2] if part) > sys.version_info[:2]


def _run_by_python(words: Sequence[str], package: Package, *, all_seen: bool) -> PackedFile | None:
    """Return the packed file that python runs; None where only the cluster or the shell can know it."""
    option, name = _target(words)
    if option == "c" or name in ("", "-") or _WILD & set(name):
        return None
    if option == "m":
        return _module(name, package, all_seen=all_seen)
    return package.by_path.get(posixpath.normpath(f"{name}/__main__.py")) or _script(name, package)


def _target(words: Sequence[str]) -> tuple[str, str]:
    """Return how python is told what to run (``m``, ``c``, or "" for a script), and what that is."""
    rest = iter(words)
    for word in rest:
        if word == "-" or not word.startswith("-"):
            return "", word
        if word in ("--", _LONG_WITH_VALUE):
            value = next(rest, "")
            if word == "--":
                return "", value
        elif found := _WITH_VALUE.fullmatch(word):
            value = found[2] or next(rest, "")
            if found[1] in "cm":
                return found[1], value
    return "", ""


def _script(name: str, package: Package) -> PackedFile | None:
    """Return the packed file `name`; None where only the cluster or the shell can know it."""
    if _WILD & set(name) or PurePosixPath(name).is_absolute():
        return None
    path = posixpath.normpath(name)
    if file := package.by_path.get(path):
        return file
    why, step = _why_missing(path, package)
    raise ConfigError(f"the entrypoint's script {name!r} is not in the code", why=why, next_step=step)


def _why_missing(path: str, package: Package) -> tuple[str, str]:
    """Return why a file is not in the code, and the next step."""
    if path.startswith("../"):
        return f"it is not below the working directory {package.root}", "name the folder that holds all: --working-dir"
    if any(each.startswith(f"{path}/") or path == "." for each in package.by_path):
        return "it is a folder", f"name a file in it, or add {posixpath.normpath(f'{path}/__main__.py')} for python"
    if ignored := _ignored(path, package):
        return ignored, _brought_back(path)
    return f"there is no file {path} in {package.root}", _near(path, package)


def _module(name: str, package: Package, *, all_seen: bool) -> PackedFile | None:
    """Return the packed file that ``python -m NAME`` runs; None for a module that is or may be installed."""
    if "/" in name or not all(name.split(".")):
        step = "write python FILE for a file, and python -m PACKAGE.MODULE, without .py, for a module"
        raise ConfigError(f"{name!r} is no name of a module", next_step=step)
    files = package.by_path
    stem = name.replace(".", "/")
    if file := files.get(f"{stem}.py") or files.get(f"{stem}/__main__.py"):
        return file
    ignored = _ignored(f"{stem}.py", package)
    if not _is_ours(name, files):
        is_missing = all_seen or ignored or _is_like_ours(name, files)
        if not is_missing or _is_installed(name.partition(".")[0], package.root):
            return None
    if any(path.startswith(f"{stem}/") for path in files):
        raise ConfigError(f"the module {name!r} is a folder", next_step=f"add {stem}/__main__.py to it")
    why = ignored or f"neither {stem}.py in {package.root}, nor installed here"
    raise ConfigError(f"the module {name!r} is not in the code", why=why, next_step=nearest(name, _modules(files)))


def _is_ours(name: str, files: Iterable[str]) -> bool:
    """Whether the code has a module's top package; a folder without Python files does not hide an installed package."""
    top = name.partition(".")[0]
    return any(path == f"{top}.py" or (path.startswith(f"{top}/") and path.endswith(".py")) for path in files)


def _is_like_ours(name: str, files: Iterable[str]) -> bool:
    """Whether the code has a top package with nearly the same name."""
    tops = {module.partition(".")[0] for module in _modules(files)}
    return bool(difflib.get_close_matches(name.partition(".")[0], tops, n=1, cutoff=_ALIKE))


def _is_installed(top: str, root: Path) -> bool:
    """Whether `top` can be imported here from somewhere other than the working directory."""
    if top in sys.stdlib_module_names:
        return True
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    places = [] if spec is None else [*(spec.submodule_search_locations or []), spec.origin or ""]
    return any(place and not Path(place).parent.samefile(root) for place in places if Path(place).parent.exists())


def _ignored(path: str, package: Package) -> str:
    left_out = any(path == each or (each.endswith("/") and path.startswith(each)) for each in package.ignored)
    is_there = left_out and os.path.lexists(package.root / path)
    return f"{package.root / path} exists, but an ignore rule leaves it out" if is_there else ""


def _brought_back(path: str) -> str:
    """Return the options that send a file although an ignore rule leaves it, or a folder above it, out."""
    folders = [f"!{folder}/" for folder in map(str, PurePosixPath(path).parents) if folder != "."]
    words = " ".join(f"--excludes '{each}'" for each in [*folders[::-1], f"!{path}"])
    return f"have it sent all the same: {words}"


def _near(path: str, package: Package) -> str:
    suffix = PurePosixPath(path).suffix
    return nearest(path, _shown(file.path for file in package.files if file.path.endswith(suffix)))


def _modules(files: Iterable[str]) -> list[str]:
    """Return the names of the modules that a user may want to start."""
    modules = (
        path.removesuffix(".py").removesuffix("/__main__").replace("/", ".") for path in files if path.endswith(".py")
    )
    return _shown(module for module in modules if not module.endswith("__init__"))


def _shown(names: Iterable[str]) -> list[str]:
    """Leave out raykube's own modules, which every package carries: nobody wants to start these."""
    return [name for name in names if not name.startswith("raykube")][:2000]


def _check_syntax(file: PackedFile, what: str = "the entrypoint's script", verb: str = "submit") -> None:
    if zipfile.is_zipfile(file.source):  # a zip application: python runs its __main__.py
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(file.source.read_bytes(), file.path, "exec", flags=ast.PyCF_ONLY_AST, dont_inherit=True)
    except SyntaxError as error:
        raise ConfigError(
            f"{file.path}:{error.lineno or 1}: {what} has a syntax error",
            why=f"{error.msg}: {(error.text or '').strip()!r}",
            next_step=f"correct that line and {verb} again",
        ) from None
    except ValueError as error:
        raise ConfigError(f"{file.path} is no Python script", why=str(error), next_step="name another one") from None
