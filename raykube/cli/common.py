"""What the commands share: options, how a run is found, how things are printed."""

from __future__ import annotations

import contextlib
import functools
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from raykube.cli import view
from raykube.cli.names import Name, places
from raykube.errors import BackendError, ConfigError, Failure, NotFound, RaykubeError, RunError
from raykube.settings import KUBERNETES, LOCAL, setting

if TYPE_CHECKING:
    from raykube.backends import Status
    from raykube.backends.kubernetes.kubeapi import Kube
    from raykube.cli.follow import Screen
    from raykube.cluster import Cluster
    from raykube.handles import Endpoint, Run
    from raykube.wire import Result

_Function = TypeVar("_Function", bound=Callable[..., Any])


def joined(*options: Callable[[_Function], _Function]) -> Callable[[_Function], _Function]:
    """Join several options to one decorator, in the order in which --help shows them."""

    def decorate(function: _Function) -> _Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


# Not `readable`: what cannot be read is refused with its reason, like everything else about it.
PATH = click.Path(path_type=Path, readable=False)


#: The options that named the place of this command: what is told to be typed next needs them, too.
_SAID: list[str] = []
_QUOTED = "    "
_COMMAND = re.compile(r"\braykube (?:job|service|cluster) \w+")


def with_place(text: str) -> str:
    """Return a text in which each raykube command is told with the options that name this command's place.

    Not in lines of a log, which are told further in: they are somebody else's words.
    """
    lines = text.split("\n") if _SAID else ()
    return "\n".join(line if line.startswith(_QUOTED) else _COMMAND.sub(_placed, line) for line in lines) or text


def _placed(found: re.Match[str]) -> str:
    return shlex.join([*found.group().split(), *_SAID])


def goes_to_kubernetes(where: Where, namespace: str = "") -> None:
    """Have told commands name Kubernetes, which nothing but a file or the name of a cluster has said."""
    if namespace and not where.namespace:
        _SAID[:] = replace(where, namespace=namespace).words()
    elif where.on is None and where.cluster().is_local:
        _SAID[:] = replace(where, on=KUBERNETES).words()


@dataclass(frozen=True)
class Where:
    """The place that the options name."""

    on: str | None
    namespace: str | None
    context: str | None

    def check(self) -> None:
        """Refuse a namespace or context for this machine: what is ignored in silence was meant for somewhere else."""
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
        """Return the name of the place, or the path of its manifest, as the options or the settings say."""
        said: str = setting("on", self.on).value
        # Who names a namespace means Kubernetes, also where nothing says what cluster to make there.
        return KUBERNETES if said == LOCAL and (self.namespace or self.context) else said

    def cluster(self, workers: str | None = None) -> Cluster:
        """Return the cluster there, with so many workers if they are given."""
        from raykube.cli import args

        cluster = self._loaded(self.name())
        return cluster.sized(workers=args.count("--workers", workers)) if workers else cluster

    def kubernetes(self) -> Cluster:
        """Return Kubernetes as a place, whatever clusters are in it."""
        return self._loaded(KUBERNETES)

    def around(self) -> Cluster:
        """Return Kubernetes as a place for what is there or is written already: where a manifest that is named goes."""
        found = self.cluster()
        return self.kubernetes() if found.is_local else found

    def kube(self) -> Kube:
        """Return the namespace that is meant: that of a manifest if one is named, else what the options say."""
        from raykube.backends.kubernetes.kubeapi import Kube as Client

        place = self.around()
        return Client(place.context, place.namespace)

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


def place_options(function: _Function) -> _Function:
    """Add the options that name a place; the command gets them as `where`."""

    @functools.wraps(function)
    def call(*words: Any, on: str | None, namespace: str | None, context: str | None, **options: Any) -> Any:
        where = Where(on, namespace, context)
        where.check()
        _SAID[:] = where.words()
        return function(*words, where=where, **options)

    return cast("_Function", _PLACE(call))


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
name_argument = click.argument("name", type=Name())
names_argument = click.argument("names", type=Name(), nargs=-1, required=True)
plan_options = joined(
    click.option(
        "--dry-run",
        type=click.Choice(["client", "server"]),
        help="Print the plan and start nothing; server: ask the API server to check it, too.",
    ),
    click.option("-o", "--output", type=click.Choice(["yaml", "json", "name"]), help="How --dry-run prints. [yaml]"),
)
code_options = joined(
    # A text, not a path, which would make s3:/b of s3://b: the spec says what is wrong with that.
    click.option("--working-dir", metavar="PATH", help="Folder to pack and send. [.]"),
    click.option(
        "--excludes",
        multiple=True,
        metavar="PATTERN",
        help="Files not to send, as in .gitignore; '!data/**': send all of a folder.",
    ),
    click.option("--pip", multiple=True, metavar="PACKAGE", help="Install before the start; repeatable."),
    click.option("--runtime-env", type=PATH, help="YAML file with a Ray runtime environment."),
    click.option("--runtime-env-json", metavar="JSON", help="A Ray runtime environment."),
)


def find_run(name: str, where: Where) -> Run:
    """Return the handle of a run; NotFound when the name is a service's."""
    from raykube import api
    from raykube.handles import Run as RunHandle

    found = api.attach(name, where.cluster(), kind="job")
    if isinstance(found, RunHandle):
        return found
    raise NotFound(f"{name} is a service, not a run", next_step=f"raykube service status {name}")


def find_endpoint(name: str, where: Where) -> Endpoint:
    """Return the handle of a service; NotFound when the name is a run's."""
    from raykube import api
    from raykube.handles import Endpoint as EndpointHandle

    found = api.attach(name, where.cluster(), kind="service")
    if isinstance(found, EndpointHandle):
        return found
    raise NotFound(f"{name} is a run, not a service", next_step=f"raykube job status {name}")


def exit_code(error: RaykubeError) -> int:
    """Return 1 for a run that failed, 2 for wrong use and a place that said no."""
    return 1 if isinstance(error, RunError) else 2


def each(names: Iterable[str], act: Callable[[str], None]) -> None:
    """Act on every name, as kubectl does: after an error go on, and exit with the worst code at the end."""
    if worst := max(_tried(act, name) for name in names):
        sys.exit(worst)


def _tried(act: Callable[[str], None], name: str) -> int:
    try:
        act(name)
    except RaykubeError as error:
        tell(f"error: {error}")
        return exit_code(error)
    return 0


def tell(*lines: str) -> None:
    """Print lines of progress, on stderr."""
    for line in lines:
        click.echo(with_place(line), err=True)


def line_of(status: Status) -> str:
    """Return a status on one line."""
    return view.status_line(status, time.time())


def print_table(statuses: list[Status], *, as_json: bool) -> None:
    """Print statuses as a table, or as JSON."""
    if as_json:
        click.echo(view.dump([asdict(status) for status in statuses]))
    else:
        click.echo(view.table(statuses, time.time()))


def print_value(value: Status | Failure | Result, *, as_json: bool) -> None:
    """Print one value as text, or as JSON."""
    click.echo(view.dump(asdict(value)) if as_json else with_place(view.text(value)))


def screen(*, as_json: bool) -> Screen:
    """Return where a wait is shown; with JSON logs go to stderr, so that stdout is data alone."""
    from raykube.cli import follow

    kind = follow.LiveScreen if sys.stderr.isatty() else follow.Screen
    return kind(functools.partial(click.echo, err=as_json), tell)


def follow_run(run: Run, *, as_json: bool) -> None:
    """Show a run until it has ended."""
    from raykube.cli import follow

    with detach_hint(run):
        error = follow.follow(run, screen(as_json=as_json))
    if as_json or error is None:
        finish(run, as_json=as_json)
    if error:
        raise error


def follow_log(run: Run, source: str) -> None:
    """Show a log of a run until it has ended, and what it waits for before; how it ends is not ours to judge."""
    from raykube.cli import follow

    with detach_hint(run, source):
        follow.follow_log(run, screen(as_json=False), source)


def finish(run: Run, *, as_json: bool) -> None:
    """Show how a run ended, and what it returned."""
    status, found = run.status(), _result_of(run)
    if as_json:
        click.echo(view.dump(asdict(status) | {"result": found and asdict(found)}))
        return
    tell(line_of(status), *([view.result_text(found)] if found else []))


def _result_of(run: Run) -> Result | None:
    """Return a run's result; that it cannot be read is told, and no failure of a run that went well."""
    try:
        return run.result()
    except BackendError as error:
        tell(f"note: the result could not be read: {error}")
    return None


@contextlib.contextmanager
def hint(*lines: str) -> Iterator[None]:
    """After Ctrl-C, say what goes on, and how to get back to it."""
    try:
        yield
    except KeyboardInterrupt:
        tell(*lines)
        raise


def detach_hint(run: Run, source: str = "driver") -> AbstractContextManager[None]:
    """After Ctrl-C, say that the run goes on and how to get back to it."""
    log = run.name if source == "driver" else f"--source {source} {run.name}"
    return hint(
        f"\ndetached; {run.name} goes on",
        f"  follow it again: raykube job logs -f {log}",
        f"  stop it:         raykube job stop {run.name}",
    )
