"""The project's pinned Python packages as a tree below ``/usr/local``, for the Python of a Debian in a folder."""

import platform
import sys
from pathlib import Path

from tests.cluster import layout, rootfs
from tests.cluster.shell import run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_EXTRAS = ("local", "mlflow")
#: MLflow's server keeps its records in PostgreSQL through this. It is in no extra, for only this server needs it.
DATABASE = ("psycopg==3.3.9", "psycopg-binary==3.3.9")
#: Not installed. There is no GPU on the node, and each is looked for only when one is used.
LEFT_OUT_PACKAGES = {
    "triton": "torch imports it when it compiles for a GPU",
    "nvidia-cusolver": "only libtorch_cuda_linalg.so is linked with it, and that is loaded with a GPU's first solver",
    "nvidia-cuda-cccl": "headers",
    "nvidia-nvtx": "loaded by a GPU's profiler",
}
#: Removed after that, below the folder of packages.
LEFT_OUT_FILES = {
    "nvidia/cudnn/lib/libcudnn_[!g]*": "loaded with a GPU's first convolution; _graph tells torch cuDNN's version",
    "nvidia/*/lib/libnvperf_*": "loaded by a GPU's profiler",
    "nvidia/*/lib/libnvrtc-builtins*": "loaded by libnvrtc.so when it compiles for a GPU",
    "nvidia/nvshmem/lib/*.bc": "linked with code that is compiled for a GPU",
    "nvidia/**/include": "headers",
    "nvidia/**/*.a": "for linking",
    "torch/lib/libtorch_cuda_linalg.so": "goes with nvidia-cusolver",
    "torch/bin/protoc*": "for building torch",
    "torch/include": "headers",
    "pyarrow/include": "headers",
    "ray/jars": "Ray's Java side",
    "matplotlib/**/tests": "tests",
    "networkx/**/tests": "tests",
    "pandas/tests": "tests",
    "pyarrow/tests": "tests",
    "scipy/**/tests": "tests",
    "sklearn/**/tests": "tests",
    "sympy/**/tests": "tests",
}
# Times of files are all alike in a layer, so that compiled files must not be judged by them.
_COMPILE = ("-m", "compileall", "-q", "-j", "2", "-f", "--invalidation-mode", "unchecked-hash")


def requirements():
    """Return what a pod needs that runs the project's code, and scikit-learn for the jobs' data."""
    project = tomllib.loads((layout.PROJECT / "pyproject.toml").read_text())["project"]
    extras = [each for name in _EXTRAS for each in project["optional-dependencies"][name]]
    return sorted({*project["dependencies"], *extras, "scikit-learn"})


def constraints():
    """Return the file with the pinned versions."""
    return layout.PROJECT / "constraints.txt"


def install(root, wanted, work, *options):
    """Install packages in the Debian at `root`, below its /usr/local, compiled for whoever may not write there."""
    version = python(root)
    packages = root / f"usr/local/lib/python{version}/dist-packages"
    overrides = Path(work) / "overrides.txt"
    overrides.write_text("".join(f"{name}; sys_platform == 'none'\n" for name in LEFT_OUT_PACKAGES))
    target = ["--target", packages, "--python-version", version, "--python", sys.executable]
    target += ["--python-platform", f"{platform.machine()}-manylinux_2_28", "--only-binary", ":all:"]
    pins = ["-c", constraints(), "--override", overrides]
    run(sys.executable, "-m", "uv", "pip", "install", "--quiet", *target, *pins, *options, *wanted)
    for pattern in LEFT_OUT_FILES:
        rootfs.remove(packages, pattern)
    _scripts(packages / "bin", root / "usr/local/bin")
    compile_all(root, "/usr/local/lib")


def python(root):
    """Return the version of a tree's Python, as "3.11"."""
    print_it = "import sys; print('%d.%d' % sys.version_info[:2])"
    return rootfs.inside(root, "python3", "-c", print_it).strip()


def _scripts(source, target):
    """Move programs to where PATH finds them, to be run by the tree's Python, not by the one that installed them."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*")):
        data = path.read_bytes()
        if data.startswith(b"#!") and b"python" in data[:400]:
            body = data[data.index(b"# -*- coding") :] if b"# -*- coding" in data else data.partition(b"\n")[2]
            data = b"#!/usr/bin/python3\n" + body
        (target / path.name).write_bytes(data)
        (target / path.name).chmod(0o755)
    rootfs.remove(source.parent, source.name)


def compile_all(root, *folders):
    """Compile a tree's Python files; those that are templates or for another Python cannot be, and need not."""
    rootfs.inside(root, "python3", *_COMPILE, *folders, check=False)
