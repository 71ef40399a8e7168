"""Files of a run, in a folder or behind a URI: the few operations that both kinds need."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

#: Object stores have no folders, and making one all the same is one more request for each level.
_FLAT = frozenset({"s3", "gcs", "abfs"})
#: A sender that is silent for so long makes room for others.
_SILENCE_S = 30.0


def is_uri(path: str) -> bool:
    """Whether this is a URI, as in ``s3://bucket/key``, and not a path on this machine."""
    return "://" in path


def plain(path: str) -> str:
    """Return `path` without a ``file://`` prefix, made absolute unless it is a URI."""
    if path.startswith("file:/"):
        path = unquote(path.removeprefix("file:").removeprefix("//localhost"))
        return str(Path("/" + path.lstrip("/")))
    if is_uri(path):
        return path.rstrip("/")
    if path.startswith("~"):
        from raykube import wire  # not at the top: a pod without raykube runs the text of this module

        path = str(wire.expanded(path))
    return str(Path(path).absolute())


def join(base: str, *parts: str) -> str:
    """Return the path or URI of `parts` below `base`."""
    return "/".join([base.rstrip("/"), *parts])


def _remote(uri: str) -> tuple[Any, str]:
    from pyarrow import fs

    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (ValueError, NotImplementedError) as error:  # of a kind that pyarrow does not know, or was built without
        raise OSError(str(error)) from error
    return filesystem, path


def check(uri: str) -> None:
    """Check that there is a way to what `uri` names, without reading anything there.

    Raises:
        OSError: there is none, as to a kind of storage that pyarrow does not know.
        ImportError: there is no pyarrow.
    """
    _remote(uri)


def exists(path: str) -> bool:
    """Whether a file or folder is there."""
    if not is_uri(path):
        return Path(path).exists()
    filesystem, key = _remote(path)
    return bool(filesystem.get_file_info(key).type.name != "NotFound")


def size(path: str) -> int:
    """Return how many bytes a file has; 0 when there is no such file."""
    if not is_uri(path):
        return Path(path).stat().st_size if Path(path).exists() else 0
    filesystem, key = _remote(path)
    return int(filesystem.get_file_info(key).size or 0)


def read_from(path: str, offset: int = 0) -> bytes:
    """Return the bytes of a file from `offset` on; none when there is no such file."""
    if not is_uri(path):
        try:
            with Path(path).open("rb") as file:
                file.seek(offset)
                return file.read()
        except (FileNotFoundError, NotADirectoryError):  # no others: an unreadable file is not gone
            return b""
    filesystem, key = _remote(path)
    info = filesystem.get_file_info(key)
    if info.type.name == "NotFound" or info.size <= offset:
        return b""
    with filesystem.open_input_file(key) as file:
        file.seek(offset)
        return bytes(file.read())


def write_text(path: str, text: str) -> None:
    """Write a whole file so that a reader sees the old one or the new one, never a part."""
    write_bytes(path, text.encode())


def write_bytes(path: str, data: bytes) -> None:
    """Write a whole file so that a reader sees the old one or the new one, never a part."""
    if is_uri(path):
        upload(path, [data])
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(draft).chmod(0o644)  # mkstemp gives 0600, which another user of a shared storage could not read
        Path(draft).replace(target)
    except OSError:
        Path(draft).unlink(missing_ok=True)
        raise


def upload(uri: str, parts: Iterable[bytes]) -> None:
    """Write a whole file behind a URI, holding only one of `parts` at a time."""
    filesystem, key = _remote(uri)
    if filesystem.type_name not in _FLAT:
        filesystem.create_dir(key.rpartition("/")[0])
    with filesystem.open_output_stream(key) as stream:
        for part in parts:
            stream.write(part)


class Growing:
    """A file to which one writer appends; what cannot be written now stays `due`, and goes with the next write."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._there: bytes | None = None
        self.due = b""

    def write(self) -> None:
        """Write what is due. Raises OSError."""
        if is_uri(self._path):  # object stores cannot append
            before = read_from(self._path) if self._there is None else self._there
            write_bytes(self._path, before + self.due)
            self._there, self.due = before + self.due, b""
            return
        path = Path(self._path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0, opener=lambda name, how: os.open(name, how, 0o644)) as file:
            while self.due:
                self.due = self.due[file.write(self.due) :]  # a volume that fills up takes only a part


@contextmanager
def local_copy(path: str) -> Iterator[str]:
    """Yield a folder on this machine with what is at `path`: itself if it is one, else a copy, for the block."""
    if not is_uri(path):
        yield path
        return
    from pyarrow import fs

    with tempfile.TemporaryDirectory(prefix="raykube-", ignore_cleanup_errors=True) as folder:
        fs.copy_files(path, folder)
        yield folder


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Keep everybody else out of the block while it runs, by a lock on a file on this machine."""
    with Path(path).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def folders(path: str) -> list[str]:
    """Return the names of the folders in a folder; none when it does not exist."""
    if not is_uri(path):
        return sorted(entry.name for entry in Path(path).iterdir() if entry.is_dir()) if Path(path).exists() else []
    from pyarrow import fs

    filesystem, key = _remote(path)
    found = filesystem.get_file_info(fs.FileSelector(key, allow_not_found=True))
    return sorted(entry.base_name for entry in found if entry.type.name == "Directory")


def newest(path: str, name: str) -> str:
    """Return the path or URI of the newest file below `path` whose name begins with `name`; "" if there is none."""
    if not is_uri(path):
        found = [(each.stat().st_mtime_ns, str(each)) for each in Path(path).rglob(f"{name}*")]
        return max(found, default=(0, ""))[1]
    from pyarrow import fs

    filesystem, key = _remote(path)
    there = filesystem.get_file_info(fs.FileSelector(key, recursive=True, allow_not_found=True))
    files = [(each.mtime_ns, each.path) for each in there if each.is_file and each.base_name.startswith(name)]
    return join(path, max(files)[1].removeprefix(f"{key.rstrip('/')}/")) if files else ""


def remove(path: str) -> None:
    """Remove a file or folder and all that is in it; no error when it is not there."""
    if not is_uri(path):
        if Path(path).is_dir():
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)
        return
    from pyarrow import fs

    filesystem, key = _remote(path)
    kind = filesystem.get_file_info(key).type
    if kind == fs.FileType.Directory:
        filesystem.delete_dir(key)
    elif kind == fs.FileType.File:
        filesystem.delete_file(key)


def _is_at(path: str, digest: str) -> bool:
    """Whether the file with this SHA-256 is there; one that cannot be read is not."""
    try:
        return _digest(read_from(path)) == digest
    except OSError:
        return False


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def receive(path: str, port: int, digest: str) -> None:
    """Receive one file over HTTP and write it, whole or not at all; ``GET`` says with 200 or 404 whether it is there.

    Whoever reaches the port may send something, and the file is code, so it is taken only with this SHA-256. Another
    file is answered with 412, one that cannot be written with 507 and the reason; after both, a file may be sent again.
    """
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Handler(BaseHTTPRequestHandler):
        timeout = _SILENCE_S

        def do_GET(self) -> None:
            self._answer(200 if _is_at(path, digest) else 404)

        def do_POST(self) -> None:
            size = int(self.headers["content-length"])
            data = self.rfile.read(size)
            if len(data) < size:  # the sender has gone
                return
            if _digest(data) != digest:
                self._answer(412, f"it is not what was announced: its SHA-256 is not {digest}")
                return
            try:
                write_bytes(path, data)
            except OSError as error:
                self._answer(507, str(error))
                return
            self.server.received = True  # type: ignore[attr-defined]
            self._answer(201)

        def _answer(self, code: int, text: str = "") -> None:
            body = text.encode(errors="replace")
            self.send_response(code)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with HTTPServer(("", port), Handler) as server:
        server.received = False  # type: ignore[attr-defined]
        while not server.received:  # type: ignore[attr-defined]
            server.handle_request()


if __name__ == "__main__":  # in a pod that reaches the storage, and has no more of raykube than this file's text
    import sys

    verb, target, *more = sys.argv[1:]
    target = plain(target)
    if verb in ("cat", "newest"):
        found = newest(target, more[0]) if verb == "newest" else target
        # Marked at both ends: a pod's log has whatever is printed beside this, and may have lost its beginning.
        sys.stdout.write(f"<{base64.b64encode(read_from(found)).decode() if found else '!'}>\n")
    elif verb == "receive":
        receive(target, int(more[0]), more[1])
    else:
        remove(target)
