"""Trees of files that become layers: Debian's packages, users, and commands run inside a tree.

Each function fills a folder. The archive is the one that this machine's own apt uses.
"""

import platform
import shutil
from pathlib import Path

from tests.cluster.shell import ClusterError, run

UID = 1000
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ALONE = ("unshare", "--mount", "--propagation", "private")
#: Of no use in a container, or of the machine that it was made on.
USELESS = (
    "dev/*",
    "etc/.pwd.lock",
    "etc/apt/sources.list",
    "etc/hostname",
    "etc/machine-id",
    "etc/passwd-",
    "etc/resolv.conf",
    "run/*",
    "tmp/*",
    "usr/share/doc/*",
    "usr/share/info/*",
    "usr/share/locale/*",
    "usr/share/man/*",
    "var/cache/apt/*",
    "var/cache/debconf/*-old",
    "var/cache/ldconfig/*",
    "var/lib/apt/lists/*",
    "var/log/*",
)


def suite():
    """Return the release that this machine has, and that images are made of."""
    return platform.freedesktop_os_release().get("VERSION_CODENAME", "unknown")


def mirror():
    """Return the archive of that release in apt's sources; ClusterError if there is none."""
    wanted = ["Created-By: Packages", "Origin: Debian", "Component: main", f"Codename: {suite()}"]
    if found := run("apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted).split():
        return found[0]
    raise ClusterError(f"apt's sources have no Debian {suite()}, or its lists were never fetched: apt-get update")


def debian(root, packages, downloads):
    """Install the smallest Debian and `packages` in the empty folder `root`; `downloads` keeps the packages' files."""
    downloads.mkdir(parents=True, exist_ok=True)
    wanted = f"--include={','.join(packages)}"
    # What is mounted for the packages' scripts is mounted for them alone, and goes with them.
    argv = ["debootstrap", "--variant=minbase", wanted, f"--cache-dir={downloads}", suite(), root, mirror()]
    run(*_ALONE, *argv, env={"DEBIAN_FRONTEND": "noninteractive"})
    for pattern in USELESS:
        remove(root, pattern)


def remove(root, pattern):
    """Remove what matches a pattern below a folder."""
    for path in sorted(Path(root).glob(pattern)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def unpack(root, packages, work):
    """Unpack Debian's `packages` into a folder without running their scripts: a program and its libraries need none."""
    target = Path(work) / "debs"
    target.mkdir()
    # apt's own user could not write here, and the warning about that would hide an error.
    run("apt-get", "download", "-o", "APT::Sandbox::User=root", *packages, cwd=target)
    for file in sorted(target.iterdir()):
        run("dpkg-deb", "-x", file, root)
    for pattern in USELESS:
        remove(root, pattern)


def follow_links(tree, base):
    """Move what lies in `tree` where `base` has a link at its top, as /lib, to where that leads: it would hide it."""
    for link in sorted(path for path in Path(base).iterdir() if path.is_symlink()):
        hiding = Path(tree) / link.name
        if hiding.is_dir():
            shutil.copytree(hiding, Path(tree) / link.readlink(), symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(hiding)


def missing(base, packages):
    """Return the packages, dependencies included, that a Debian in the folder `base` lacks for `packages`."""
    status = f"Dir::State::status={base}/var/lib/dpkg/status"
    shown = run("apt-get", "--simulate", "--no-install-recommends", "-o", status, "install", *packages)
    return [line.split()[1] for line in shown.splitlines() if line.startswith("Inst ")]


def user(root, name):
    """Add the user that the container runs as, with a home that is its own."""
    for file, line in (("passwd", f"{name}:x:{UID}:{UID}::/home/{name}:/bin/sh\n"), ("group", f"{name}:x:{UID}:\n")):
        path = Path(root) / "etc" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as out:
            out.write(line)
    folder(root, f"home/{name}", owner=UID)
    folder(root, "tmp", mode=0o1777)


def folder(root, path, *, mode=0o755, owner=0):
    """Make a folder, and return it."""
    made = Path(root) / path
    made.mkdir(parents=True, exist_ok=True)
    made.chmod(mode)
    shutil.chown(made, owner, owner)
    return made


def inside(root, *argv, uid=0, **options):
    """Run a command in a tree, with the tree's /proc and this machine's /dev mounted for it alone."""
    mounts = 'mount -t proc proc "$0/proc" && mount --bind /dev "$0/dev"'
    enter = f'exec chroot --userspec={uid}:{uid} "$0" /usr/bin/env -i HOME=/tmp LANG=C.UTF-8 PATH={PATH} "$@"'
    return run(*_ALONE, "sh", "-c", f"{mounts} && {enter}", root, *argv, **options)
