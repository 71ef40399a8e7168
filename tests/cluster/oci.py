"""OCI images: layers as tars named by their digest, and archives of them as a stream.

An archive is a tar of ``oci-layout``, ``index.json`` and ``blobs/sha256/*``. It is written straight into the importing
process, for an image of gigabytes would otherwise be on the disk once more.
"""

import hashlib
import io
import json
import os
import platform
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

_CHUNK = 1 << 20
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_TYPE = "application/vnd.oci.image"


@dataclass(frozen=True)
class Blob:
    """What a manifest says of a file of the archive."""

    digest: str
    size: int

    @property
    def path(self):
        """Return where it lies in an archive, and below a cache's folder."""
        return "blobs/" + self.digest.replace(":", "/")

    def described(self, kind):
        """Return it as a descriptor of the media type `kind`."""
        return {"mediaType": f"{_TYPE}.{kind}", "digest": self.digest, "size": self.size}


class _Hashing(io.RawIOBase):
    """A file that knows the digest and size of what was written to it."""

    def __init__(self, file):
        self._file = file
        self._hash = hashlib.sha256()
        self._size = 0

    def writable(self):
        return True

    def write(self, data):
        self._hash.update(data)
        self._size += len(data)
        return self._file.write(data)

    def blob(self):
        return Blob(f"sha256:{self._hash.hexdigest()}", self._size)


def pack(tree, cache):
    """Write the files below `tree` as a layer below `cache` and return its blob."""
    folder = Path(cache) / "blobs" / "sha256"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        try:
            hashing = _Hashing(file)
            with tarfile.open(fileobj=hashing, mode="w|", bufsize=_CHUNK, format=tarfile.GNU_FORMAT) as tar:
                _add(tar, Path(tree))
            Path(file.name).rename(Path(cache) / hashing.blob().path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    return hashing.blob()


def _add(tar, tree):
    """Add all below `tree` in an order and with times that are always the same: so is the digest then."""
    for folder, folders, files in os.walk(tree):
        folders.sort()
        links = [name for name in folders if Path(folder, name).is_symlink()]
        if folder != str(tree):
            _member(tar, tree, Path(folder))
        for name in sorted([*files, *links]):
            _member(tar, tree, Path(folder, name))


def _member(tar, tree, path):
    info = tar.gettarinfo(path, str(path.relative_to(tree)))
    if info is None:  # a socket
        return
    info.mtime, info.uname, info.gname = 0, "", ""
    if info.isreg():
        with path.open("rb") as file:
            tar.addfile(info, file)
    else:
        tar.addfile(info)


def unpack(blob, cache, tree):
    """Lay a layer's files below `tree`, with their owners."""
    with tarfile.open(Path(cache) / blob.path) as tar:
        tar.extractall(tree, numeric_owner=True, filter="fully_trusted")


def documents(layers, config):
    """Return an image's manifest as a blob, and it and its configuration as bytes by blob."""
    root = {"type": "layers", "diff_ids": [each.digest for each in layers]}  # of a tar that is not compressed
    machine = platform.machine()
    image = {"architecture": _ARCHITECTURES.get(machine, machine), "os": "linux", "config": config, "rootfs": root}
    configuration = _document(image)
    manifest = _document(
        {
            "schemaVersion": 2,
            "mediaType": f"{_TYPE}.manifest.v1+json",
            "config": configuration[0].described("config.v1+json"),
            "layers": [each.described("layer.v1.tar") for each in layers],
        }
    )
    return manifest[0], dict((configuration, manifest))


def _document(value):
    data = json.dumps(value, sort_keys=True).encode()
    return Blob(f"sha256:{hashlib.sha256(data).hexdigest()}", len(data)), data


def write_archive(stream, reference, layers, config, cache):
    """Write an image's archive; `layers` may lack those that the reader has: they are named but not written.

    Args:
        stream: where to.
        reference: the image's name, with registry and tag.
        layers: ``(blob, whether to write it)``, the lowest first.
        config: as in OCI's image configuration: User, Env and so on.
        cache: the folder with the layers.
    """
    manifest, files = documents([blob for blob, _ in layers], config)
    names = {"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": reference.rpartition(":")[2]}
    index = {"schemaVersion": 2, "manifests": [manifest.described("manifest.v1+json") | {"annotations": names}]}
    with tarfile.open(fileobj=stream, mode="w|", bufsize=_CHUNK, format=tarfile.GNU_FORMAT) as tar:
        _put(tar, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
        _put(tar, "index.json", json.dumps(index).encode())
        for blob, data in files.items():
            _put(tar, blob.path, data)
        for path in sorted({blob.path for blob, wanted in layers if wanted}):
            with (Path(cache) / path).open("rb") as file:
                tar.addfile(_entry(path, os.fstat(file.fileno()).st_size), file)


def _put(tar, name, data):
    tar.addfile(_entry(name, len(data)), io.BytesIO(data))


def _entry(name, size):
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info
