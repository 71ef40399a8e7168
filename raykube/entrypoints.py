"""Whether an entrypoint can start at all, seen from the code that will be sent. Nothing is run."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from raykube.errors import ConfigError
from raykube.names import nearest

_OPERATORS = frozenset({"&&", "||", ";", "|", "&", ">", ">>", "<", "2>", "2>&1"})
_WITH_VALUE = ("-W", "-X")  # of python's options, those whose value is the next word
_SHELLS = ("bash", "sh", "dash", "zsh")


class _File(Protocol):
    @property
    def path(self) -> str: ...
    @property
    def source(self) -> Path: ...


class _Code(Protocol):
    @property
    def root(self) -> Path: ...
    @property
    def files(self) -> Sequence[_File]: ...


def check_entrypoint(entrypoint: str, package: _Code) -> None:
    """Refuse an entrypoint whose script or module is not in the package, or does not compile.

    Only what is certain is refused: a module may also be installed in the image, and a shell line may do anything.

    Raises:
        ConfigError: with the nearest names, or the file and line of the syntax error.
    """
    words = _first_command(entrypoint)
    program = PurePosixPath(words[0]).name if words else ""
    if re.fullmatch(r"python[\d.]*", program):
        _check_python(words[1:], package)
    elif program in _SHELLS and len(words) > 1 and not words[1].startswith("-"):
        _script(words[1], package)
    elif words and "/" in words[0]:
        _script(words[0], package)


def check_import_path(import_path: str, package: _Code) -> None:
    """Refuse a Serve application whose module is not in the package, or does not compile.

    Raises:
        ConfigError: with the nearest names, or the file and line of the syntax error.
    """
    module = import_path.partition(":")[0] if ":" in import_path else import_path.rpartition(".")[0]
    files = _by_path(package)
    if _imported(import_path, files):
        what = f"{import_path!r} is a module, not an application in one"
        raise ConfigError(what, next_step=f"write {import_path}:app, if app is its name there: module:attribute")
    if file := _imported(module, files):
        _check_syntax(file)
    elif any(path.startswith(f"{module.replace('.', '/')}/") for path in files):
        step = f"name a module in it and its application: {module}.MODULE:app"
        raise ConfigError(f"{module!r} is a folder, not a module", next_step=step)
    elif file := _module(module, package):
        _check_syntax(file)


def _imported(module: str, files: Mapping[str, _File]) -> _File | None:
    """Return the packed file that ``import MODULE`` runs."""
    stem = module.replace(".", "/")
    return files.get(f"{stem}/__init__.py") or files.get(f"{stem}.py")


def _first_command(entrypoint: str) -> list[str]:
    """Return the words up to the first shell operator, without ``NAME=value`` before the program."""
    try:
        words = shlex.split(entrypoint)
    except ValueError as error:
        raise ConfigError(f"the entrypoint {entrypoint!r} cannot be read by a shell", why=str(error)) from None
    end = next((at for at, word in enumerate(words) if word in _OPERATORS or word.endswith(";")), len(words))
    start = next((at for at, word in enumerate(words) if not re.match(r"[A-Za-z_]\w*=", word)), len(words))
    return words[start:end] if words[start : start + 1] not in (["cd"], ["exec"]) else []


def _check_python(words: list[str], package: _Code) -> None:
    while words and words[0].startswith("-") and words[0] not in ("-m", "-c", "-"):
        words = words[2:] if words[0] in _WITH_VALUE else words[1:]
    if len(words) > 1 and words[0] == "-m":
        file = _module(words[1], package)
    else:
        file = _script(words[0], package) if words and words[0] not in ("-m", "-c", "-") else None
    if file is not None:
        _check_syntax(file)


def _script(name: str, package: _Code) -> _File | None:
    """Return the packed file `name`; None for what only the cluster or the shell can know."""
    if "$" in name or "*" in name or PurePosixPath(name).is_absolute():
        return None
    path = str(PurePosixPath(name))
    if file := _by_path(package).get(path):
        return file
    why = _ignored(package.root / name) or f"there is no file {path} in {package.root}"
    raise ConfigError(f"the entrypoint's script {name!r} is not in the code", why=why, next_step=_near(path, package))


def _module(name: str, package: _Code) -> _File | None:
    """Return the packed file that ``python -m NAME`` runs; None for a module that is installed."""
    files = _by_path(package)
    stem = name.replace(".", "/")
    if file := files.get(f"{stem}.py") or files.get(f"{stem}/__main__.py"):
        return file
    top = name.partition(".")[0]
    is_ours = any(path == f"{top}.py" or path.startswith(f"{top}/") for path in files)
    if not is_ours and _is_installed(top, package.root):
        return None
    if any(path.startswith(f"{stem}/") for path in files):
        raise ConfigError(f"the module {name!r} is a folder", next_step=f"add {stem}/__main__.py to it")
    here = package.root.joinpath(*name.split("."))
    why = _ignored(here.with_suffix(".py")) or f"neither {stem}.py in {package.root}, nor installed"
    raise ConfigError(f"the module {name!r} is not in the code", why=why, next_step=_near_module(name, files))


def _is_installed(top: str, root: Path) -> bool:
    """Say whether `top` can be imported here from somewhere else than the working directory."""
    if top in sys.stdlib_module_names:
        return True
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    places = [] if spec is None else [*(spec.submodule_search_locations or []), spec.origin or ""]
    return any(place and not Path(place).parent.samefile(root) for place in places if Path(place).parent.exists())


def _ignored(path: Path) -> str:
    return f"{path} exists, but an ignore rule leaves it out" if path.exists() else ""


def _by_path(package: _Code) -> dict[str, _File]:
    return {file.path: file for file in package.files}


def _near(path: str, package: _Code) -> str:
    suffix = PurePosixPath(path).suffix
    return nearest(path, _shown(file.path for file in package.files if file.path.endswith(suffix)))


def _near_module(name: str, files: Iterable[str]) -> str:
    modules = (
        path.removesuffix(".py").removesuffix("/__main__").replace("/", ".") for path in files if path.endswith(".py")
    )
    return nearest(name, _shown(module for module in modules if not module.endswith("__init__")))


def _shown(names: Iterable[str]) -> list[str]:
    """Leave out what travels with every package: nobody means to start that."""
    return [name for name in names if not name.startswith("raykube")][:2000]


def _check_syntax(file: _File) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(file.source.read_bytes(), file.path, "exec", flags=ast.PyCF_ONLY_AST, dont_inherit=True)
    except SyntaxError as error:
        raise ConfigError(
            f"{file.path}:{error.lineno or 1}: the entrypoint's script has a syntax error",
            why=f"{error.msg}: {(error.text or '').strip()!r}",
            next_step="correct that line and submit again",
        ) from None
    except ValueError as error:
        raise ConfigError(f"{file.path} is no Python script", why=str(error), next_step="name another one") from None
