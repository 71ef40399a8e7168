"""The container images: what they consist of, and handing to containerd those that it lacks."""

import inspect
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import binaries, layers, layout, oci, rootfs, wheels
from tests.cluster.layers import Layer
from tests.cluster.shell import ClusterError, run, step

_CTR = ("ctr", "-a", str(layout.RUN / "containerd.sock"), "-n", "k8s.io", "images")
_CONTENT = layout.CONTAINERD / "io.containerd.content.v1.content"
_DEBIAN = ("ca-certificates", "curl", "haproxy", "iproute2", "procps", "python3", "python3-venv", "wget")
_START_POSTGRES = "usr/local/bin/start-postgres"
_POSTGRES_LEFT_OUT = (
    *("usr/lib/*/libLLVM*", "usr/lib/*/libz3*", "usr/lib/postgresql/*/lib/bitcode"),  # it compiles queries with them
    *("usr/bin/perl*", "usr/lib/*/perl", "usr/lib/*/libperl*", "usr/share/perl"),  # Debian's commands around it
    "usr/share/i18n",  # to make locales
)


@dataclass(frozen=True)
class Image:
    """An image: its layers, the lowest first, and what OCI calls its config."""

    name: str
    layers: tuple
    config: dict


def reference(name):
    """Return an image's name in containerd, under which a pod's ``raykube-test/NAME:local`` is found."""
    return f"docker.io/raykube-test/{name}:local"


def scratch(name, binary, path, user):
    """Return an image of one static program, as `path`, and nothing else."""

    def make(work):
        tree = rootfs.folder(work, "tree")
        rootfs.folder(tree, "tmp", mode=0o1777)
        target = tree / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(binary, target)
        target.chmod(0o755)
        return tree

    state = Path(binary).stat()
    layer = Layer(name, _inputs(binary, path, state.st_size, state.st_mtime_ns, code=(scratch,)), make)
    return Image(name, (layer,), {"User": user, "Entrypoint": [path], "WorkingDir": "/"})


def _inputs(*values, code):
    """Return a layer's inputs: values, and the source of what makes it and of what packs all of them."""
    return "\n".join([*map(str, values), *map(inspect.getsource, (*code, oci._member))])


def _pause():
    return scratch("pause", binaries.build("pause") / "pause", "/pause", "65535:65535")


def _operator():
    return scratch("kuberay-operator", binaries.build("kuberay") / "ray-operator", "/manager", "65532:65532")


def _small():
    """Return an image for pods that need no Ray: a shell and the usual commands."""

    def make(work):
        package = rootfs.folder(work, "package")
        rootfs.unpack(package, ["busybox-static"], work)
        tree = rootfs.folder(work, "tree")
        program = rootfs.folder(tree, "bin") / "busybox"
        shutil.copy(next(package.glob("**/bin/busybox")), program)
        for name in run(program, "--list").split():
            if name != program.name:
                (program.parent / name).symlink_to(program.name)
        rootfs.user(tree, "small")
        return tree

    return _image(
        "small",
        Layer("small", _inputs(code=(_small, rootfs.unpack, rootfs.user)), make),
        user="small",
        command="/bin/sh",
    )


def _debian():
    """Return the layer that all larger images stand on."""

    def make(work):
        tree = work / "tree"
        rootfs.debian(tree, _DEBIAN, layers.CACHE / "debs")
        (tree / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        wheels.compile_all(tree, "/usr/lib/python3", f"/usr/lib/python{wheels.python(tree)}")
        rootfs.user(tree, "ray")
        return tree

    made_by = (_debian, rootfs.debian, rootfs.user, wheels.compile_all)
    inputs = _inputs(rootfs.suite(), _DEBIAN, rootfs.USELESS, code=made_by)
    return Layer("debian", inputs, make)


def _packages(name, requirements, *options):
    """Return a layer of Python packages on top of Debian."""
    base = _debian()

    def make(work):
        root = layers.unpacked(base, work / "root")
        wheels.install(root, requirements, work, *options)
        tree = rootfs.folder(work, "tree")
        (root / "usr/local").rename(rootfs.folder(tree, "usr") / "local")
        return tree

    pins = wheels.constraints().read_text()
    return Layer(name, _inputs(base.inputs, requirements, options, pins, code=(_packages, wheels)), make)


def _ray_layers():
    return _debian(), _packages("python", wheels.requirements())


def _ray():
    """Return an image with what the project's code needs, but without the project: its code comes with each job."""
    return _image("ray", *_ray_layers(), user="ray", command="/bin/bash")


def _mlflow():
    driver = _packages("database-driver", wheels.DATABASE, "--no-deps")
    return _image("mlflow", *_ray_layers(), driver, user="ray", command="/bin/bash")


def _postgres():
    """Return an image of PostgreSQL, whose database is made at the start of the container."""
    base = _debian()
    start = (layout.HERE / "postgres.sh").read_text()

    def make(work):
        lower = layers.unpacked(base, work / "base")
        tree = rootfs.folder(work, "tree")
        rootfs.unpack(tree, rootfs.missing(lower, ["postgresql"]), work)
        rootfs.follow_links(tree, lower)
        for pattern in _POSTGRES_LEFT_OUT:
            rootfs.remove(tree, pattern)
        rootfs.folder(tree, str(Path(_START_POSTGRES).parent))
        (tree / _START_POSTGRES).write_text(start)
        (tree / _START_POSTGRES).chmod(0o755)
        rootfs.folder(tree, "var/lib/postgresql/data", mode=0o700, owner=rootfs.UID)
        return tree

    layer = Layer(
        "postgres",
        _inputs(base.inputs, start, _POSTGRES_LEFT_OUT, code=(_postgres, rootfs.unpack, rootfs.follow_links)),
        make,
    )
    return _image("postgres", base, layer, user="ray", command=f"/{_START_POSTGRES}")


def _image(name, *its_layers, user, command):
    home = f"/home/{user}"
    environment = [f"PATH={rootfs.PATH}", f"HOME={home}", "LANG=C.UTF-8"]
    ids = f"{rootfs.UID}:{rootfs.UID}"
    return Image(name, its_layers, {"User": ids, "Env": environment, "Cmd": [command], "WorkingDir": home})


_IMAGES = {
    "pause": _pause,
    "kuberay-operator": _operator,
    "small": _small,
    "ray": _ray,
    "mlflow": _mlflow,
    "postgres": _postgres,
}
ALL = tuple(_IMAGES)
problems = layers.problems


def load(wanted):
    """Import into containerd those images that it lacks or has with another content; they are made if need be.

    Args:
        wanted: names, out of `ALL` or of an add-on, and images that `scratch` returned.
    """
    with layers.alone():
        there = _imported()
        present = set()
        for image in (_named(each) if isinstance(each, str) else each for each in wanted):
            blobs = [layers.blob(layer) for layer in image.layers]
            manifest, _ = oci.documents(blobs, image.config)
            if there.get(reference(image.name)) != manifest.digest:
                _import(image, [(blob, blob not in present) for blob in blobs])
            present.update(blobs)


def _named(name):
    return _IMAGES[name]()


def _imported():
    """Return the digest of each image in containerd by its name."""
    rows = [line.split() for line in run(*_CTR, "ls").splitlines()[1:]]
    return {row[0]: row[2] for row in rows}


def _import(image, blobs):
    """Stream an image's archive to containerd, without the layers that it got with another one just now."""
    size = sum(blob.size for blob, wanted in blobs if wanted)
    with step(f"import image {image.name}, {size / 1e6:.0f} MB"), tempfile.TemporaryFile() as said:
        argv = [*_CTR, "import", "-"]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said) as process:
            try:
                oci.write_archive(process.stdin, reference(image.name), blobs, image.config, layers.CACHE)
                process.stdin.close()
            except BrokenPipeError:
                pass  # it ended before the end, and says why
        if process.returncode:
            said.seek(0)
            raise ClusterError(f"containerd did not take image {image.name}: {said.read().decode(errors='replace')}")
    for blob, _ in blobs:
        layers.share(blob, _CONTENT)
