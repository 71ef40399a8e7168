"""The programs of Kubernetes, built by the Go toolchain from pinned modules and kept by what went into them."""

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import layout
from tests.cluster.shell import ClusterError, run, step

_BASE = "k8s.io/component-base/version"
_VERSION = (
    f"-X {_BASE}.gitVersion=v{layout.KUBERNETES} -X {_BASE}.gitMajor=1 -X {_BASE}.gitMinor=34 "
    f"-X {_BASE}.gitCommit=0000000 -X {_BASE}.gitTreeState=clean"
)


@dataclass(frozen=True)
class Module:
    """A go.mod of our own, and what is built from it.

    Attributes:
        name: of its folder below ``go/``.
        programs: packages, built to files of their last path element.
        flags: for the linker.
        about: how long a cold build takes on two cores.
    """

    name: str
    programs: tuple[str, ...]
    flags: str = ""
    about: str = "1 to 2 min"

    @property
    def source(self):
        return layout.HERE / "go" / self.name


_COMMANDS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
MODULES = {
    module.name: module
    for module in (
        Module(
            "kubernetes",
            (*(f"k8s.io/kubernetes/cmd/{name}" for name in _COMMANDS), "go.etcd.io/etcd/server/v3"),
            _VERSION,
            "5 min",
        ),
        Module("coredns", ("raykube.test/coredns",)),
        Module("kuberay", ("github.com/ray-project/kuberay/ray-operator",)),
        Module("kuberay-older", ()),  # for its definitions
        Module("pause", ("raykube.test/pause",), about="seconds"),
        Module("kueue", ("sigs.k8s.io/kueue/cmd/kueue",), about="2 min"),
        Module("gateway", ("github.com/traefik/traefik/v3/cmd/traefik",), about="4 min"),
        Module("kwok", ("sigs.k8s.io/kwok/cmd/kwok",)),
        Module("metrics", ("sigs.k8s.io/metrics-server/cmd/metrics-server",)),
        Module("policies", ("github.com/cloudnativelabs/kube-router/v2/cmd/kube-router",), about="2 min"),
        Module("bucket", ("github.com/versity/versitygw/cmd/versitygw",)),
    )
}


def build(name):
    """Build a module's programs unless that was done before, and return their folder."""
    module = MODULES[name]
    target = layout.CACHE / "bin" / f"{name}-{digest(module)}"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with step(f"build {name} (cold: {module.about})"), tempfile.TemporaryDirectory(dir=target.parent) as folder:
        for program in module.programs:
            _build(module, program, Path(folder) / _file(program))
        done = Path(folder) / "done"
        done.mkdir()
        for program in module.programs:
            (Path(folder) / _file(program)).rename(done / _file(program))
        done.rename(target)
    return target


def _file(program):
    parts = program.split("/")
    return "etcd" if "etcd" in parts else parts[-1]


def _build(module, program, out):
    flags = ["-trimpath", "-mod=readonly", f"-ldflags=-s -w {module.flags}", "-o", out]
    run("go", "build", *flags, program, cwd=module.source, env={"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"})


def digest(module):
    """Return a short hash of all that goes into a module's programs."""
    found = hashlib.sha256(module.flags.encode() + toolchain().encode())
    for path in sorted(module.source.iterdir()):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:12]


def toolchain():
    """Return Go's version.

    Raises:
        ClusterError: there is no Go.
    """
    if shutil.which("go") is None:
        raise ClusterError("there is no Go toolchain on PATH: install Go 1.25 or newer")
    return run("go", "env", "GOVERSION").strip()


def program(name):
    """Return the path of one program of the control plane or node, built if need be."""
    return build("coredns" if name == "coredns" else "kubernetes") / name


def source_of(name, path):
    """Return the folder in Go's module cache of the package `path` that module `name` requires."""
    # Not `go list`: that names no folder once the cache was emptied, while our programs may still be there.
    return Path(json.loads(run("go", "mod", "download", "-json", path, cwd=MODULES[name].source))["Dir"])
