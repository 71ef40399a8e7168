"""What to run: a `Job`, or a `Service` of `App`s. Frozen values that are checked when they are made; no I/O.

Field names are those of Ray and Ray Serve. One `ConfigError` lists every problem of a value. An unknown key is an
error that names the nearest known keys, because Ray Serve accepts typing errors in silence, and a typing error in a
training job costs hours.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from raykube.autoscaling import Autoscaling
from raykube.errors import ConfigError, Problem
from raykube.names import made_name, name_problem, nearest
from raykube.runtime_env import REMOTE, TYPED, package_problems, problems_of, variable_problem
from raykube.strict import Spec, Text, jsonable

_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*[.:][A-Za-z_]\w*")

if TYPE_CHECKING:  # What callers may pass; the fields then hold the narrower types below.
    from collections.abc import Mapping, Sequence
    from typing import TypeAlias

    _Folder: TypeAlias = str | Path
    _Texts: TypeAlias = Sequence[str]
    _Apps: TypeAlias = Sequence["App"]
    _Scaling: TypeAlias = "Autoscaling | Mapping[str, Any] | None"
else:
    _Folder, _Texts, _Apps, _Scaling = Path, tuple[Text, ...], "tuple[App, ...]", Autoscaling | None


def _none_if_empty(value: Any) -> Any:
    return value or None


def _empty_if_none(value: Any) -> Any:
    return value or ""


def _kubernetes_name(value: str) -> str:
    if problem := name_problem(value):
        raise ValueError(problem)
    return value


class _Code(Spec):
    """The fields that say which code runs and in which environment."""

    working_dir: _Folder = Path()
    excludes: _Texts = ()
    pip: _Texts = ()
    runtime_env: dict[str, Any] = Field(default_factory=dict, repr=False)  # it may hold variables

    @model_validator(mode="before")
    @classmethod
    def _take_typed_keys(cls, data: Any) -> Any:
        """Move those keys of runtime_env that have a field of their own into that field."""
        if not isinstance(data, dict) or not isinstance(data.get("runtime_env"), dict):
            return data
        env = dict(data["runtime_env"])
        keys = [key for key in TYPED if key in env and key in cls.model_fields]
        keys += ["pip"] if isinstance(env.get("pip"), (list, tuple)) else []
        if both := [key for key in keys if key in data]:
            raise ConfigError.of("", [Problem(f"runtime_env.{key}", f"{key} is given twice") for key in both])
        return data | {key: env.pop(key) for key in keys} | {"runtime_env": env}

    @field_validator("working_dir", mode="before")
    @classmethod
    def _check_working_dir(cls, value: Any) -> Any:
        if isinstance(value, str) and REMOTE.match(value):
            raise ValueError(f"{value!r} is not a folder here; raykube packs a local folder and sends it itself")
        return value

    @field_validator("runtime_env")
    @classmethod
    def _check_runtime_env(cls, env: dict[str, Any]) -> dict[str, Any]:
        if problems := list(problems_of(env, of_a_job="env_vars" in cls.model_fields)):
            raise ConfigError.of("", problems)
        return jsonable(env, "runtime_env")

    @model_validator(mode="after")
    def _check_installers(self) -> _Code:
        used = [key for key in ("pip", "uv", "conda") if key in self.runtime_env or (key == "pip" and self.pip)]
        if "pip" in self.runtime_env and self.pip:
            raise ConfigError.of("", [Problem("runtime_env.pip", "pip is given twice")])
        if wrong := list(package_problems(self.pip, "pip")):
            raise ConfigError.of("", wrong)
        if len(used) > 1:
            raise ConfigError.of("", [Problem("runtime_env", f"Ray takes one of pip, uv and conda, not {used}")])
        return self


def _env_vars(variables: dict[str, str]) -> dict[str, str]:
    if problem := next(filter(None, map(variable_problem, variables)), ""):
        raise ValueError(problem)
    return variables


class Job(_Code):
    """One command that runs to its end on a cluster.

    Attributes:
        entrypoint: the command, as in Ray; run by a shell on the head.
        name: of the run; made from the entrypoint when empty. Kubernetes' rules for names apply on every backend.
        working_dir: the folder that is packed and sent.
        excludes: more patterns (as in .gitignore) of what is not sent; ``!data/**`` sends all of a folder.
        pip: packages to install before the start; this takes 20 s or more, which an image with the packages saves.
        env_vars: environment of the driver and its workers, passed on byte for byte. In the ``env_vars`` of
            ``runtime_env``, Ray replaces ``${NAME}`` with the variable's value there.
        runtime_env: the other keys of Ray's runtime environment, passed on as they are.
        metadata: your own keys and values, kept with the run.
        max_retries: how often to start the whole job again when it fails; it resumes if its script loads its
            checkpoint, on Kubernetes only with a storage.
        timeout_s: seconds from submission, waiting and retries included, after which the job is ended as failed.
        pending_timeout_s: seconds that the job may wait for its cluster.
        keep_cluster_s: seconds that the job's own cluster stays after the end, for its logs.
        queue: Kueue's local queue.
        entrypoint_num_cpus, entrypoint_num_gpus, entrypoint_memory, entrypoint_resources,
        entrypoint_label_selector: what the driver itself reserves, as in Ray; memory in bytes. A RayJob has no fields
            for memory and label selector.
    """

    entrypoint: Text
    name: Annotated[str, BeforeValidator(_empty_if_none)] = Field(default="", validate_default=True)
    env_vars: dict[str, Text] = Field(default_factory=dict, repr=False)
    metadata: dict[Text, Text] = Field(default_factory=dict)
    max_retries: int = Field(default=0, ge=0)
    timeout_s: float | None = Field(default=None, gt=0)
    pending_timeout_s: float = Field(default=900, ge=1)
    keep_cluster_s: float = Field(default=300, ge=0)
    queue: Annotated[str | None, BeforeValidator(_none_if_empty)] = None
    entrypoint_num_cpus: float | None = Field(default=None, ge=0)
    entrypoint_num_gpus: float | None = Field(default=None, ge=0)
    entrypoint_memory: int | None = Field(default=None, ge=0)
    entrypoint_resources: dict[Text, float] = Field(default_factory=dict)
    entrypoint_label_selector: dict[Text, Text] = Field(default_factory=dict)

    @classmethod
    def module(cls, module: str, *args: object, **fields: Any) -> Job:
        """Make the job ``python -m MODULE ARGS``.

        Args:
            module: its dotted name, as in ``"jobs.digits"``, not the path of a file.
            args: arguments of the script; each becomes text, and is quoted for the shell.
            fields: other fields of the job, such as ``name``.

        Raises:
            ConfigError: `module` is not text, or a field is wrong.

        Example:
            >>> Job.module("jobs.digits", "--note", "two words", name="a").entrypoint
            "python -m jobs.digits --note 'two words'"
        """
        if not isinstance(module, str):
            what = f"a value of type {type(module).__name__} names no module"
            raise ConfigError(what, next_step="write rk.Job.module('jobs.digits'), or rk.Job(entrypoint='python a.py')")
        return cls(entrypoint=shlex.join(["python", "-m", module, *map(str, args)]), **fields)

    @model_validator(mode="after")
    def _check_variables(self) -> Job:
        if both := sorted(self.env_vars.keys() & self.runtime_env.get("env_vars", {}).keys()):
            raise ConfigError.of("", [Problem(f"runtime_env.env_vars.{key}", f"{key} is given twice") for key in both])
        return self

    @field_validator("name")
    @classmethod
    def _fill_name(cls, value: str, info: ValidationInfo) -> str:
        if value or "entrypoint" not in info.data:  # a missing entrypoint is refused itself
            return value and _kubernetes_name(value)
        return made_name(info.data["entrypoint"])

    @field_validator("entrypoint")
    @classmethod
    def _check_entrypoint(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("is empty; name a command, as in 'python -m jobs.digits'")
        return value

    @field_validator("queue")
    @classmethod
    def _check_queue(cls, value: str | None) -> str | None:
        if value is not None and not _LABEL_VALUE.fullmatch(value):
            raise ValueError(f"{value!r} cannot be the value of a Kubernetes label")
        return value

    @field_validator("metadata")
    @classmethod
    def _check_metadata(cls, value: dict[str, str]) -> dict[str, str]:
        if own := [key for key in value if key.startswith("raykube.")]:
            raise ValueError(f"keys that begin with 'raykube.' are raykube's: {own}")
        return value

    _check_env_vars = field_validator("env_vars")(_env_vars)


_ACTOR_OPTIONS = (
    *("num_cpus", "num_gpus", "memory", "resources", "accelerator_type"),
    *("label_selector", "fallback_strategy", "runtime_env"),
)


class App(Spec):
    """One Ray Serve application.

    Attributes:
        import_path: ``module:attribute`` of the application or of its builder.
        name: of the application; by default the service's name, if this is its only application.
        args: the builder's arguments, which it checks strictly.
        model: a model reference (``run:NAME``, a checkpoint's path or URI, ``models:/NAME/VERSION`` or
            ``models:/NAME@ALIAS``); reaches the builder as ``args["model"]``.
        deployment: the deployment that num_replicas, autoscaling_config, ray_actor_options and the two
            request bounds apply to.
    """

    import_path: str
    name: Text = Field(default="app", min_length=1)
    route_prefix: Text = "/"
    args: dict[str, Any] = Field(default_factory=dict)
    env_vars: dict[str, Text] = Field(default_factory=dict, repr=False)
    num_replicas: int | None = Field(default=None, ge=1)
    autoscaling_config: _Scaling = None
    ray_actor_options: dict[str, Any] = Field(default_factory=dict, repr=False)  # it may hold variables
    max_ongoing_requests: int | None = Field(default=None, ge=1)
    max_queued_requests: int | None = Field(default=None, ge=-1)
    model: Text | None = None
    deployment: Text = Field(default="Model", min_length=1)

    @field_validator("import_path")
    @classmethod
    def _check_import_path(cls, value: str) -> str:
        if value.endswith((".yaml", ".yml")):
            raise ValueError(f"{value!r} is a file: apply a RayService manifest by kubectl apply -f")
        if not _IMPORT_PATH.fullmatch(value):
            raise ValueError(f"{value!r} is not 'module:attribute', as in 'jobs.digits_app:app'")
        return value

    @field_validator("route_prefix")
    @classmethod
    def _check_route_prefix(cls, value: str) -> str:
        if not value.startswith("/") or (value != "/" and value.endswith("/")) or "{" in value:
            raise ValueError(f"{value!r} must begin with '/', not end with one, and hold no '{{'")
        return value

    @field_validator("args", "ray_actor_options")
    @classmethod
    def _check_json(cls, value: dict[str, Any]) -> dict[str, Any]:
        return jsonable(value, "it")

    @field_validator("ray_actor_options")
    @classmethod
    def _check_actor_options(cls, value: dict[str, Any]) -> dict[str, Any]:
        if unknown := [
            Problem(key, "unknown key", nearest(key, _ACTOR_OPTIONS)) for key in value.keys() - _ACTOR_OPTIONS
        ]:
            raise ConfigError.of("", unknown)
        return value

    @field_validator("model")
    @classmethod
    def _check_model(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"run:.+|models:/[^/@]+(/[^/]+|@.+)|(?!run:|models:).+", value):
            raise ValueError(f"{value!r} is not run:NAME, models:/NAME/VERSION, models:/NAME@ALIAS, a path or a URI")
        return value

    @model_validator(mode="after")
    def _check_pairs(self) -> App:
        problems = []
        if self.num_replicas is not None and self.autoscaling_config is not None:
            problems.append(Problem("num_replicas", "and autoscaling_config exclude each other", "give one of them"))
        if self.model is not None and "model" in self.args:
            problems.append(Problem("args.model", "the model is given twice", "give it as model"))
        if problems:
            raise ConfigError.of("", problems)
        return self

    _check_env_vars = field_validator("env_vars")(_env_vars)


class Service(_Code):
    """Ray Serve applications that stay up under one name.

    Attributes:
        name: of the service. Kubernetes' rules hold on every backend.
        apps: its applications, at least one; their names and their routes differ.
        working_dir, excludes, pip: the code of all applications and what it needs, as for a :class:`Job`.
        runtime_env: the other keys of Ray's runtime environment; variables go into ``env_vars`` of each application.
    """

    name: Annotated[str, Field(min_length=1)]
    apps: _Apps

    @field_validator("apps", mode="before")
    @classmethod
    def _check_list(cls, apps: Any) -> Any:
        if isinstance(apps, (App, dict, str)):
            raise ConfigError.of("", [Problem("", "is no list of App", "write apps=[rk.App(import_path=...)]")])
        return apps

    @field_validator("apps")
    @classmethod
    def _name_app(cls, apps: tuple[App, ...], info: ValidationInfo) -> tuple[App, ...]:
        """Give a single application the service's name: on one machine, application names must differ."""
        apps = tuple(app.model_copy() for app in apps)  # so that its dicts are not the caller's
        if len(apps) != 1 or "name" in apps[0].model_fields_set or "name" not in info.data:
            return apps
        named = apps[0].model_copy(update={"name": info.data["name"]})
        named.model_fields_set.discard("name")  # a copy of the service under another name names it anew
        return (named,)

    @model_validator(mode="after")
    def _check_apps(self) -> Service:
        if not self.apps:
            raise ConfigError.of("", [Problem("apps", "is empty", "give at least one App")])
        twice: list[Problem] = []
        for field in ("name", "route_prefix"):
            values = [getattr(app, field) for app in self.apps]
            twice += [
                Problem(f"apps[{index}].{field}", f"{value!r} is taken by apps[{values.index(value)}]")
                for index, value in enumerate(values)
                if values.index(value) < index
            ]
        if twice:
            raise ConfigError.of("", twice)
        return self

    _check_name = field_validator("name")(_kubernetes_name)
