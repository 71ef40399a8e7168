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

#: How often to try to remove a folder that somebody still writes to, and the pause between tries.
_TRIES = 50
_PAUSE_S = 0.1
#: The next step for a file in a run's storage that cannot be read.
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
    """Turn errors of the disk into BackendError, except FileNotFoundError, which may be the answer.

    The default next step is for a file below raykube's folder.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        step = next_step or f"check its permissions, and that {wire.HOME} is a folder of your own"
        raise BackendError(f"cannot read {where}", why=error.strerror or str(error), next_step=step) from error


def remedy(error: OSError, otherwise: str) -> str:
    """Return the next step: free space if the disk is full, else `otherwise`."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "free some disk space, or set RAYKUBE_HOME to a folder on another disk" if full else otherwise


def own_home() -> Path:
    """Return raykube's own folder, made if need be; closed to others unless ``RAYKUBE_HOME`` names an existing one.

    Raises:
        ConfigError: it belongs to another user, who could have this one run anything.
        OSError: it cannot be made.
    """
    home = wire.home()
    # Closed to others: records hold the environment of jobs, where people put passwords.
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = home.stat()
    if is_foreign(found.st_uid, os.geteuid()):
        step = f"set {wire.HOME} to a folder of your own"
        raise ConfigError(f"{home} is not yours", why=f"it belongs to user {found.st_uid}", next_step=step)
    if found.st_mode & 0o077 and wire.HOME not in os.environ:
        home.chmod(0o700)
    return home


def is_foreign(owner: int, user: int) -> bool:
    """Whether a folder's owner is neither root nor the user. Root may use anybody's folder, as in a container."""
    return owner not in (0, user) and user != 0


def beside(path: Path) -> Path:
    """Return an unused name in the same folder, for a file that is being written."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file that becomes `path` once the block has written it: readers see the old file or the new one.

    Raises:
        OSError: the disk is full or not writable. Nothing is left behind.
    """
    draft = beside(path)
    try:
        with draft.open("xb") as file:
            yield file
        draft.replace(path)
    finally:
        with contextlib.suppress(OSError):  # it was renamed, or never made
            draft.unlink()


def write(path: Path, text: str) -> None:
    """Replace a file as a whole.

    Raises:
        BackendError: the disk is full or not writable. Nothing is left behind.
    """
    with errors(), whole(path) as file:
        file.write(text.encode())


def link(draft: Path, path: Path) -> None:
    """Give a finished draft its name, unless somebody else was first; remove the draft."""
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        draft.replace(path)
    draft.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it, even if its content changes meanwhile; do nothing if it is gone.

    Raises:
        BackendError: it may not be removed, or somebody keeps writing to it.
    """
    with errors("remove", path):
        for _ in range(_TRIES):
            if _is_removed(path):
                return
            time.sleep(_PAUSE_S)
    step = "end that and delete it again"
    raise BackendError(f"cannot remove {path}", why="somebody goes on writing to it", next_step=step)


def _is_removed(path: Path) -> bool:
    """Try to remove a folder; return whether it is gone, as a change in it meanwhile may keep it."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return not path.exists()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True
