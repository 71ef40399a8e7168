"""Where work goes: this machine, or a cluster as its manifest describes it.

A preset is a RayCluster manifest that ``kubectl apply`` takes as it is; nothing here models a Pod. raykube's own
settings in a manifest are annotations:

=======================  ==========================================================================
``raykube.io/storage``   where runs keep checkpoints and results: a path that every pod mounts, or a URI
``raykube.io/tracking``  ``off`` keeps MLflow out of the runs
=======================  ==========================================================================
"""

from __future__ import annotations

import copy
import dataclasses
import numbers
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from raykube import manifests, marks, rules, wire
from raykube.errors import ConfigError, Problem
from raykube.here import from_here, seems, upward
from raykube.names import nearest
from raykube.settings import KUBERNETES, LOCAL, is_path, setting
from raykube.wire import GPU_SHARE, Scale, is_cpu_share, is_gpu_share
from raykube.yamltext import documents as documents_of

FOLDER = "cluster-configs"
_LOCAL_KIND = "LocalCluster"
_KUBERNETES_KIND = "Kubernetes"


@dataclass(frozen=True)
class Cluster:
    """A place for work. Edits return copies.

    Attributes:
        manifest: a RayCluster as plain data; fields that raykube does not know stay as they are.
        source: where it was read from, for messages.
        name: of the preset or manifest; ``"local"`` for this machine.
        context: of the kubeconfig; "" for its current one.
        selected: whether this is an existing cluster that jobs are to run on.
        beside: the other objects in its file, as in ``ConfigMap redis-config``; raykube does not create them.
    """

    manifest: Mapping[str, Any]
    source: str
    name: str
    context: str = ""
    selected: bool = False
    beside: tuple[str, ...] = ()

    @staticmethod
    def load(name_or_path: str | Path, *, namespace: str | None = None, context: str | None = None) -> Cluster:
        """Return this machine (``local``), the preset ``cluster-configs/NAME.yaml``, or a manifest file's cluster.

        A preset is looked for from the current folder upward. ``kubernetes`` is the place alone, for looking at what
        exists there: it does not say what cluster a job would get.

        Args:
            name_or_path: as above.
            namespace: in Kubernetes; by default the setting, then the manifest's, then the context's.
            context: of the kubeconfig; by default the setting, then the current one.

        Raises:
            ConfigError: there is no cluster of that name (lists the nearest names), or the manifest cannot work (lists
                every problem).
        """
        if not isinstance(name_or_path, (str, Path)):
            what = f"a value of type {type(name_or_path).__name__} names no cluster"
            raise ConfigError(what, next_step="give 'local', the name of a preset or the path of a manifest")
        if str(name_or_path) == LOCAL:
            return Cluster.local()
        where = {"namespace": setting("namespace", namespace).value, "context": setting("context", context).value}
        if str(name_or_path) == KUBERNETES:
            return Cluster({"kind": _KUBERNETES_KIND, "metadata": {}}, "Kubernetes", KUBERNETES).placed(**where)
        says_path = isinstance(name_or_path, Path) or is_path(name_or_path)
        return _read(wire.expanded(name_or_path) if says_path else _find(str(name_or_path))).placed(**where)

    @staticmethod
    def local(workers: int | tuple[int, int] = 1, cpus: float | None = None, gpus: float | None = None) -> Cluster:
        """Return this machine, offering `workers` training workers with `cpus` CPUs and `gpus` GPUs each.

        Args:
            workers: a number, or (min, max).
            cpus: of one worker; by default the setting ``cpus_per_worker``, which is 1.
            gpus: of one worker; by default the setting ``gpus_per_worker``, which is 0.

        Raises:
            ConfigError: a number is out of range, or is no number.
        """
        workers = _plain(workers)
        cpus = float(setting("cpus_per_worker").value) if cpus is None else _plain(cpus)
        gpus = float(setting("gpus_per_worker").value) if gpus is None else _plain(gpus)
        wrong = [*_count_problems(workers)]
        if not (_is_number(cpus) and is_cpu_share(cpus)):
            wrong.append(Problem("cpus", f"{cpus!r} is not a number above 0"))
        if not (_is_number(gpus) and is_gpu_share(gpus)):
            wrong.append(Problem("gpus", f"{gpus!r} is not {GPU_SHARE}"))
        if wrong:
            raise ConfigError.of("no such local cluster can be", wrong)
        spec = {"workers": workers, "cpus": cpus, "gpus": gpus}
        settings = {"storage": _absolute(setting("storage").value), "tracking": setting("tracking").value}
        return Cluster({"kind": _LOCAL_KIND, "spec": spec | settings}, "this machine", LOCAL)

    @property
    def is_local(self) -> bool:
        """Whether it is this machine."""
        return bool(self.manifest.get("kind") == _LOCAL_KIND)

    @property
    def has_manifest(self) -> bool:
        """Whether it says what cluster a job gets, and not just where the job runs."""
        return self.manifest.get("kind") != _KUBERNETES_KIND

    def check_manifest(self) -> None:
        """Refuse a place without a manifest: it has no cluster that could be sized, or made for a job.

        Raises:
            ConfigError: it has no manifest.
        """
        if not self.has_manifest:
            raise ConfigError(
                "nothing says what cluster is to be made in Kubernetes",
                next_step="name a preset or a RayCluster manifest: --on NAME|PATH",
            )

    @property
    def scale(self) -> Scale:
        """What one run may use: one worker per pod with all its CPUs; in pods with several GPUs, one worker per GPU.

        Read from the first worker group with GPUs, else from the first worker group, else from the head.

        Raises:
            ConfigError: the manifest starts no worker, or there is no manifest.
        """
        self.check_manifest()
        spec = self.manifest["spec"]
        if self.is_local:
            return Scale(spec["workers"], spec["cpus"], spec["gpus"])
        group = scaled_group(spec)
        per_pod = max(1, manifests.gpus(group))
        cpus = max(1, manifests.cpus(group) // per_pod)
        gpus = min(1, manifests.gpus(group))
        return Scale(self._workers(group), cpus, gpus, manifests.accelerator(group))

    def _workers(self, group: Mapping[str, Any]) -> int | tuple[int, int]:
        if "groupName" not in group:
            return 1
        per_replica = _per_replica(group)
        low, high = int(group.get("minReplicas") or 0), manifests.max_replicas(group)
        scales = bool(self.manifest["spec"].get("enableInTreeAutoscaling"))
        if scales and low < high < manifests.UNBOUNDED:
            return (max(1, low) * per_replica, high * per_replica)
        # Ray Train makes a list with an entry for each possible worker, so an unbounded range cannot be used.
        least = max(1, low) if scales and high else low
        if not (replicas := int(group.get("replicas") or least)):
            raise ConfigError(
                f"{self.source} starts no worker: group {group['groupName']!r} has 0 replicas",
                next_step="give --workers, or set replicas",
            )
        return replicas * per_replica

    @property
    def namespace(self) -> str:
        """The namespace that the manifest names; "" when it names none."""
        return "" if self.is_local else str(self.manifest["metadata"].get("namespace") or "")

    def placed(self, namespace: str = "", context: str = "") -> Cluster:
        """Return a copy in another namespace or context; "" keeps the current one."""
        moved = self._edited(lambda it: it["metadata"].update(namespace=namespace)) if namespace else self
        return dataclasses.replace(moved, context=context or self.context)

    @property
    def storage(self) -> str:
        """Where runs are kept: a path or URI; "" when the cluster names none, and its runs are lost when it ends."""
        if self.is_local:
            return str(self.manifest["spec"]["storage"]) or wire.default_storage()
        return self._annotation(marks.STORAGE)

    @property
    def tracking(self) -> str:
        """``off`` when runs are not to be tracked, else ""."""
        return str(self.manifest["spec"]["tracking"]) if self.is_local else self._annotation(marks.TRACKING)

    def _annotation(self, key: str) -> str:
        value = (self.manifest["metadata"].get("annotations") or {}).get(key)
        return "" if value is None else str(value)

    def sized(self, workers: int | tuple[int, int]) -> Cluster:
        """Return a copy with this number of training workers, or with a (min, max) range for the autoscaler.

        Only the replica counts of the group that :attr:`scale` is read from are edited and, for a range, the
        autoscaler is switched on. A number that whole replicas cannot make (a pod with 8 GPUs is 8 workers) is refused.

        Raises:
            ConfigError: this number of workers is impossible, or there is no manifest to size.
        """
        workers = _plain(workers)
        if wrong := list(_count_problems(workers)):
            raise ConfigError.of(f"{self.name} cannot be sized so", wrong)
        self.check_manifest()
        if self.is_local:
            return self._edited(lambda it: it["spec"].update(workers=workers))
        group = scaled_group(self.manifest["spec"])
        if "groupName" not in group:
            raise ConfigError(f"{self.source} has no worker group", next_step="add one to workerGroupSpecs")
        step = _per_replica(group)
        bounds = workers if isinstance(workers, tuple) else (workers, workers)
        if any(bound % step for bound in bounds):
            raise ConfigError(
                f"{self.name} cannot have {'..'.join(map(str, sorted({*bounds})))} workers",
                why=f"one replica of its group {group['groupName']!r} makes {step}",
                next_step=f"take a multiple of {step}",
            )
        low, high = (bound // step for bound in bounds)
        return self._edited(lambda it: _set_replicas(it["spec"], low, high))

    def with_image(self, image: str) -> Cluster:
        """Return a copy whose head and workers all run `image`, with the Ray version if the image's tag tells it.

        Raises:
            ConfigError: this machine or a place without a manifest has no images, or `image` is no image name.
        """
        if self.is_local:
            raise ConfigError("this machine runs no image", next_step="name a cluster whose pods have one")
        self.check_manifest()
        if not isinstance(image, str) or not image:
            raise ConfigError(f"{image!r} names no image", next_step="name one, as in rayproject/ray:2.60.0-py311")

        def edit(it: dict[str, Any]) -> None:
            for group in manifests.groups(it["spec"]):
                manifests.container(group)["image"] = image
            if version := manifests.version_of(image):
                it["spec"]["rayVersion"] = version

        return self._edited(edit)

    def _edited(self, edit: Callable[[dict[str, Any]], None]) -> Cluster:
        manifest = copy.deepcopy(dict(self.manifest))
        edit(manifest)
        return dataclasses.replace(self, manifest=manifest)


def scaled_group(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the group for training workers: the first worker group with GPUs, else the first, else the head."""
    head, *workers = manifests.groups(spec)
    return next((group for group in workers if manifests.gpus(group)), [*workers, head][0])


def _per_replica(group: Mapping[str, Any]) -> int:
    return manifests.hosts(group) * max(1, manifests.gpus(group))


def _set_replicas(spec: dict[str, Any], low: int, high: int) -> None:
    scaled_group(spec).update(replicas=low, minReplicas=low, maxReplicas=high)
    if low < high:
        spec["enableInTreeAutoscaling"] = True
        spec["autoscalerOptions"] = (spec.get("autoscalerOptions") or {}) | {"version": "v2"}


def _plain(value: Any) -> Any:
    """Return numbers, such as those of numpy, as Python's own, also inside a tuple; anything else unchanged."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _is_number(value: object) -> bool:
    """Whether `value` is a number; a bool is not, although Python counts it as an int."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _count_problems(workers: int | tuple[int, int]) -> Iterator[Problem]:
    bounds = workers if isinstance(workers, tuple) else (workers, workers)
    whole = len(bounds) == 2 and all(isinstance(bound, int) and _is_number(bound) for bound in bounds)
    if not whole or not 1 <= bounds[0] <= bounds[1]:
        yield Problem("workers", f"{workers!r} is not a number of workers", "give 8, or a range such as (2, 8)")


def _absolute(storage: str) -> str:
    """Return a relative path as an absolute one: the head and its workers have other working directories."""
    return storage if "://" in storage or not storage else str(from_here(storage))


def known() -> set[str]:
    """Return the names that :meth:`Cluster.load` accepts: the places, and the presets that it finds."""
    presets = {path.stem for folder in (*_folders(), _shipped()) for path in folder.glob("*.yaml")}
    return {LOCAL, KUBERNETES, *presets}


def _folders() -> list[Path]:
    return [parent / FOLDER for parent in upward() if seems((parent / FOLDER).is_dir)]


def _find(name: str) -> Path:
    """Return the preset's file from the nearest folder, from here upward, that has it; raykube's own comes last."""
    folders = _folders()
    for folder in (*folders, _shipped()):
        if seems((path := folder / f"{name}.yaml").is_file):
            return path
    here = next(iter(upward()), None)
    none = f"no folder {FOLDER}/ in {here} or above it" if here else "the folder that this runs in was removed"
    where = f"looked in {', '.join(map(str, folders))}" if folders else none
    raise ConfigError(f"there is no cluster {name!r}", why=where, next_step=nearest(name, known()))


def _shipped() -> Path:
    """Return the folder of raykube's own presets: inside the package when installed, beside the package in a clone."""
    package = Path(__file__).parent
    return installed if (installed := package / FOLDER).is_dir() else package.parent / FOLDER


def _read(path: Path) -> Cluster:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # also a file that is not UTF-8, and a name that no file can have
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(
            f"the manifest {path} cannot be read", why=why, next_step="name a readable YAML file"
        ) from None
    try:
        documents = [document for document in documents_of(text) if document is not None]
    except yaml.YAMLError as error:
        raise _yaml_error(path, error) from None
    found = [each for each in documents if isinstance(each, Mapping) and each.get("kind") == "RayCluster"] or documents
    if len(found) != 1:
        what = f"{path} holds {len(found)} YAML documents"
        raise ConfigError(what, next_step="keep just one RayCluster in it")
    manifest = manifests.with_version(found[0])
    if problems := list(rules.problems_of(manifest)):
        raise ConfigError.of(f"the manifest {path} cannot work", problems)
    beside = tuple(manifests.title(each) for each in documents if each is not found[0])
    return Cluster(manifest, str(path), path.stem, beside=beside)


def _yaml_error(path: Path, error: yaml.YAMLError) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    where = f"{path}:{mark.line + 1}" if mark else str(path)
    why = getattr(error, "problem", None) or str(error)
    return ConfigError(f"{where}: this is not YAML", why=str(why), next_step="correct that line")
