"""The place that a command's options name, and how the commands that raykube suggests name it."""

from __future__ import annotations

import functools
import re
import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import click

from raykube.cli.names import places
from raykube.cli.options import Function, joined
from raykube.errors import ConfigError
from raykube.settings import KUBERNETES, LOCAL, setting

if TYPE_CHECKING:
    from raykube.backends.kubernetes.kubeapi import Kube
    from raykube.cluster import Cluster

#: The options that named this command's place: the commands that raykube suggests need them, too.
_PLACE_WORDS: list[str] = []
_QUOTED = "    "
_COMMAND = re.compile(r"\braykube (?:job|service|cluster) \w+")


def with_place(text: str) -> str:
    """Return a text with the options that name this command's place added to each raykube command in it.

    Lines of a log, which are indented further, stay as they are: they are not raykube's own text.
    """
    lines = text.split("\n") if _PLACE_WORDS else ()
    return "\n".join(line if line.startswith(_QUOTED) else _COMMAND.sub(_placed, line) for line in lines) or text


def _placed(found: re.Match[str]) -> str:
    return shlex.join([*found.group().split(), *_PLACE_WORDS])


def goes_to_kubernetes(where: Where, namespace: str = "") -> None:
    """Have suggested commands name Kubernetes when only a file, or a cluster's name, has implied it."""
    if namespace and not where.namespace:
        _PLACE_WORDS[:] = replace(where, namespace=namespace).words()
    elif where.on is None and where.cluster().is_local:
        _PLACE_WORDS[:] = replace(where, on=KUBERNETES).words()


@dataclass(frozen=True)
class Where:
    """The place that the options name."""

    on: str | None
    namespace: str | None
    context: str | None

    def check(self) -> None:
        """Refuse a namespace or context with ``--on local``: they would be ignored, and mean somewhere else."""
        if self.on == LOCAL and (words := replace(self, on=None).words()):
            said = " ".join(words)
            raise ConfigError(
                f"--on local is this machine, and {said} is in Kubernetes",
                next_step=f"leave out {said}, or name a place in Kubernetes: --on NAME|PATH",
            )

    def words(self) -> list[str]:
        """Return the options as they were given."""
        given = {"--on": self.on, "-n": self.namespace, "--context": self.context}
        return [word for option, value in given.items() if value for word in (option, value)]

    def name(self) -> str:
        """Return the place's name, or the path of its manifest, from the options or the settings."""
        said: str = setting("on", self.on).value
        # A namespace or context means Kubernetes, even when nothing says what cluster to make there.
        return KUBERNETES if said == LOCAL and (self.namespace or self.context) else said

    def cluster(self, workers: str | None = None) -> Cluster:
        """Return the cluster there, with this number or range of workers if one is given."""
        from raykube.cli import args

        cluster = self._loaded(self.name())
        return cluster.sized(workers=args.count("--workers", workers)) if workers else cluster

    def kubernetes(self) -> Cluster:
        """Return Kubernetes as a place, without a manifest."""
        return self._loaded(KUBERNETES)

    def in_kubernetes(self) -> Cluster:
        """Return the place in Kubernetes: that of the named preset or manifest, or else without a manifest."""
        found = self.cluster()
        return self.kubernetes() if found.is_local else found

    def kube(self) -> Kube:
        """Return a client for the place in Kubernetes: its context and its namespace."""
        from raykube.backends.kubernetes import shared

        place = self.in_kubernetes()
        return shared.kube(place.context, place.namespace)

    def _loaded(self, name: str) -> Cluster:
        from raykube.cluster import Cluster as ClusterValue

        return ClusterValue.load(name, namespace=self.namespace, context=self.context)


_PLACE = joined(
    click.option(
        "--on",
        metavar="NAME|PATH",
        shell_complete=places,
        help="Where: local, kubernetes, a preset of cluster-configs/, or a manifest. [RAYKUBE_ON, else local]",
    ),
    click.option(
        "-n",
        "--namespace",
        help="Namespace there. [RAYKUBE_NAMESPACE, else the manifest's, else the context's]",
    ),
    click.option("--context", help="Context of the kubeconfig. [RAYKUBE_CONTEXT, else the current one]"),
)


def place_options(function: Function) -> Function:
    """Add the options that name a place; the command gets them as `where`."""

    @functools.wraps(function)
    def call(*words: Any, on: str | None, namespace: str | None, context: str | None, **options: Any) -> Any:
        where = Where(on, namespace, context)
        where.check()
        _PLACE_WORDS[:] = where.words()
        return function(*words, where=where, **options)

    return cast("Function", _PLACE(call))
