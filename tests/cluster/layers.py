"""Layers of images, kept by a hash of what goes into them."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster import layout, oci, rootfs
from tests.cluster.shell import ClusterError, step

CACHE = layout.CACHE / "images"
_NEEDED_GB = 30  # programs, packages, layers, and what containerd makes of them
_NEEDED_FOR_ONE_GB = 12
_PROGRAMS = ("apt-get", "chroot", "debootstrap", "dpkg-deb", "unshare")


@dataclass(frozen=True)
class Layer:
    """Files of an image.

    Attributes:
        name: to tell a person.
        inputs: text, of which the hash stands for the content.
        make: fills the empty folder it is given with work, and returns the tree of files below it.
    """

    name: str
    inputs: str
    make: Callable = field(compare=False)

    @property
    def record(self):
        """Return the file that holds the blob's digest once it is made."""
        return CACHE / "layers" / f"{self.name}@{hashlib.sha256(self.inputs.encode()).hexdigest()[:16]}.json"

    def made(self):
        """Return the blob if it is there."""
        if not self.record.exists():
            return None
        blob = oci.Blob(**json.loads(self.record.read_text()))
        return blob if (CACHE / blob.path).exists() else None


def blob(layer):
    """Return a layer's blob, made now if it is not there; the caller holds the lock."""
    if made := layer.made():
        return made
    if found := problems(_NEEDED_FOR_ONE_GB):
        raise ClusterError("images cannot be built here:\n" + "\n".join(f"- {each}" for each in found))
    with step(f"build image layer {layer.name}"), tempfile.TemporaryDirectory(dir=CACHE, prefix="work-") as work:
        made = oci.pack(layer.make(Path(work)), CACHE)
    layer.record.parent.mkdir(parents=True, exist_ok=True)
    layer.record.write_text(json.dumps({"digest": made.digest, "size": made.size}))
    _forget_others(layer)
    return made


def unpacked(layer, folder):
    """Lay a layer's files below a folder, made now if need be, and return the folder."""
    oci.unpack(blob(layer), CACHE, folder)
    return folder


def _forget_others(layer):
    """Remove what was made under the same name from other inputs, and blobs that no layer has any more."""
    for record in layer.record.parent.glob(f"{layer.name}@*.json"):
        if record != layer.record:
            record.unlink()
    kept = {json.loads(path.read_text())["digest"].partition(":")[2] for path in layer.record.parent.glob("*.json")}
    for path in (CACHE / "blobs" / "sha256").iterdir():
        if path.name not in kept:
            path.unlink()


@contextmanager
def alone():
    """Hold the one lock of the cache, and clear away what a killed process left in it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in CACHE.glob("work-*"):
            shutil.rmtree(left)
        yield


def share(blob, content):
    """Have a blob and containerd's copy of it be one file; both are read only."""
    theirs, ours = content / blob.path, CACHE / blob.path
    if not theirs.exists() or theirs.samefile(ours) or theirs.stat().st_dev != ours.stat().st_dev:
        return
    link = ours.with_suffix(".link")
    link.unlink(missing_ok=True)
    link.hardlink_to(theirs)
    link.rename(ours)


def problems(needed_gb=_NEEDED_GB):
    """Return why this machine cannot build images, which take so much space; empty if it can."""
    found = []
    if os.geteuid() != 0:
        found.append("not root: files of other users are made, and commands run inside a tree of files")
    if absent := [name for name in _PROGRAMS if shutil.which(name) is None]:
        found.append(f"not installed: {', '.join(absent)} (python -m tests.cluster up --install does it on Debian)")
    folder = next(path for path in (CACHE, *CACHE.parents) if path.exists())
    if (free := shutil.disk_usage(folder).free / 1e9) < needed_gb:
        found.append(f"{free:.0f} GB free for {CACHE}, {needed_gb} are needed: XDG_CACHE_HOME names another place")
    if not found:
        try:
            rootfs.mirror()
        except ClusterError as error:
            found.append(str(error))
    return found
