"""Files of this machine: written whole or not at all, removed whole, and errors that say what helps."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from raykube import wire
from raykube.errors import BackendError, ConfigError

#: How often a folder is removed anew, which somebody writes to meanwhile, and with what pause.
_TRIES = 50
_PAUSE_S = 0.1
#: What helps with a file that a run has left in its storage and that cannot be read.
CHECK_STORAGE = "check that it is a file, as the run left it, and its permissions"


@contextlib.contextmanager
def errors(doing: str = "write", where: Path | None = None) -> Iterator[None]:
    """Turn errors of the disk below raykube's folder into BackendError."""
    try:
        yield
    except OSError as error:
        what = f"cannot {doing} {where or error.filename or wire.home()}"
        step = remedy(error, "check its permissions")
        raise BackendError(what, why=error.strerror or str(error), next_step=step) from error


@contextlib.contextmanager
def reading(where: Path, next_step: str = "") -> Iterator[None]:
    """Turn errors of the disk into BackendError, but not that nothing is there: this may be the answer.

    Without a next step it is what helps with a file below raykube's folder.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        step = next_step or f"check its permissions, and that {wire.HOME} is a folder of your own"
        raise BackendError(f"cannot read {where}", why=error.strerror or str(error), next_step=step) from error


def remedy(error: OSError, otherwise: str) -> str:
    """Say what helps: more room on a full disk, else `otherwise`."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "free some disk space, or set RAYKUBE_HOME to a folder on another disk" if full else otherwise


def own_home() -> Path:
    """Return raykube's own folder, made if need be, closed to others unless its user has named it and made it.

    Raises:
        ConfigError: it is another user's, who could have this one run what they want.
        OSError: it cannot be made.
    """
    home = wire.home()
    # Its owner's alone: records hold the environment of jobs, where people put passwords.
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = home.stat()
    if is_foreign(found.st_uid, os.geteuid()):
        step = f"set {wire.HOME} to a folder of your own"
        raise ConfigError(f"{home} is not yours", why=f"it belongs to user {found.st_uid}", next_step=step)
    if found.st_mode & 0o077 and wire.HOME not in os.environ:
        home.chmod(0o700)
    return home


def is_foreign(owner: int, user: int) -> bool:
    """Whether a folder's owner has no say in what a user runs. Root may be given any folder, as in a container."""
    return owner not in (0, user) and user != 0


def beside(path: Path) -> Path:
    """Return a name in the same folder that nobody else uses, for a file in the making."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Give a file that gets the name `path` when the block has written it: a reader sees the old file or the new one.

    Raises:
        OSError: the disk is full or not writable. Nothing is left behind.
    """
    draft = beside(path)
    try:
        with draft.open("xb") as file:
            yield file
        draft.replace(path)
    finally:
        with contextlib.suppress(OSError):  # it has its name, or was never made
            draft.unlink()


def write(path: Path, text: str) -> None:
    """Replace a file as a whole.

    Raises:
        BackendError: the disk is full or not writable. Nothing is left behind.
    """
    with errors(), whole(path) as file:
        file.write(text.encode())


def link(draft: Path, path: Path) -> None:
    """Give a finished file its name, unless somebody else was first; the draft is gone afterwards."""
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    except OSError:  # a disk that knows no links
        draft.replace(path)
    draft.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it, whatever vanishes from it or appears in it meanwhile; fine when it is gone.

    Raises:
        BackendError: it may not be removed, or somebody goes on writing to it.
    """
    with errors("remove", path):
        for _ in range(_TRIES):
            if _is_removed(path):
                return
            time.sleep(_PAUSE_S)
    step = "end that and delete it again"
    raise BackendError(f"cannot remove {path}", why="somebody goes on writing to it", next_step=step)


def _is_removed(path: Path) -> bool:
    """Remove a folder, and say whether it is gone: what changes in it meanwhile may keep it."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return not path.exists()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True
