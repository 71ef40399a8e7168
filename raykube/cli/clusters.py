"""``raykube cluster``: long-lived Ray clusters on Kubernetes, and the one Ray head on this machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raykube.cli import common, planned, view
from raykube.cli.common import tell
from raykube.cli.options import json_option, name_argument, names_argument, plan_options
from raykube.cli.place import Where, place_options
from raykube.errors import BackendError, ConfigError, NotFound, Unreachable
from raykube.settings import LOCAL, setting

if TYPE_CHECKING:
    from raykube.backends.kuberay.clusterstates import ClusterStatus

_FORWARD_HINTS = (
    "carrying 127.0.0.1:{port} to the head of {name}; Ctrl-C ends it. In another shell take the lines above, then:",
    "  ray job submit --working-dir . -- python script.py",
    "  the dashboard: {address} (it asks for the token in the file named above)",
)


@click.group()
def cluster() -> None:
    """Make, look at and end long-lived clusters.

    The name "local" means the Ray head on this machine. Any other name is a RayCluster on Kubernetes, in the context
    and namespace of --on where it names a preset or manifest, or of --context and -n, or in the current ones.
    """


@cluster.command()
@place_options
@click.option(
    "--workers",
    metavar="N|MIN..MAX",
    help="Training workers: one a pod, or one a GPU where a pod has several. [as the manifest says]",
)
@click.option("--timeout-s", type=float, default=900, show_default=True, help="Seconds to wait until it is ready.")
@click.option("--no-wait", is_flag=True, help="Print the name and return at once.")
@plan_options
@json_option
@click.argument("name")
def create(name: str, where: Where, timeout_s: float, *, no_wait: bool, as_json: bool, **given: Any) -> None:
    """Create a cluster from a preset or manifest, and wait until it is ready.

    Example: raykube cluster create demo --on cpu-small. Repeated with the same name and manifest it changes nothing;
    with another manifest it is refused.
    """
    from raykube import plans
    from raykube.backends.kuberay import clusters
    from raykube.backends.kubernetes import shared
    from raykube.handles import check_time

    check_time(timeout_s)
    dry_run, output = given["dry_run"], given["output"]
    planned.check_options(dry_run, output, as_json=as_json)
    plan = plans.raycluster(where.cluster(given["workers"]), name)
    (body,) = plan.body
    if dry_run:
        planned.show(plan, dry_run, output or "yaml")
        return
    planned.announce(plan)
    kube = shared.kube(plan.context, plan.namespace)
    with _hint(name, f"interrupted while cluster {name} was sent; if it has arrived, it goes on starting"):
        clusters.create(kube, body)
    if not no_wait:
        with _hint(name, f"cluster {name} goes on starting"):
            clusters.wait_ready(
                kube, name, timeout_s=timeout_s, on_change=lambda status: tell(view.cluster_line(status))
            )
    click.echo(view.dump(view.cluster_fields(clusters.status(kube, name), time.time())) if as_json else name)


@cluster.command("list")
@place_options
@json_option
def list_clusters(where: Where, *, as_json: bool) -> None:
    """List the clusters: the local head, and those of the Kubernetes namespace.

    With --on local (or RAYKUBE_ON) just the local head; with any other just those on Kubernetes.
    """
    found = list(_listed(where))
    if as_json:
        click.echo(view.dump([view.cluster_fields(status, time.time()) for status in found]))
        return
    click.echo(view.cluster_table(found, time.time()))


@cluster.command("status")
@place_options
@json_option
@name_argument
def cluster_status(name: str, where: Where, *, as_json: bool) -> None:
    """Show one cluster."""
    from raykube.backends.kuberay import clusters

    found = _local() if name == LOCAL else clusters.status(where.kube(), name)
    now = time.time()
    click.echo(view.dump(view.cluster_fields(found, now)) if as_json else view.cluster_text(found, now))


@cluster.command()
@place_options
@json_option
@name_argument
def why(name: str, where: Where, *, as_json: bool) -> None:
    """Say in one cause and one next step why a cluster does not do what it should."""
    from raykube.backends.kuberay import clusters

    failure = _local().failure if name == LOCAL else clusters.why(where.kube(), name)
    if as_json:
        click.echo(view.dump(failure and asdict(failure)))
    elif failure:
        click.echo(view.failure_text(failure))
    else:
        tell(f"nothing is known to be wrong with {name}; how far it is: raykube cluster status {name}")


@cluster.command()
@place_options
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port on this machine. [a free one]")
@name_argument
def forward(name: str, where: Where, port: int) -> None:
    """Give a cluster's head an address on this machine until Ctrl-C, for ray job submit and for the browser.

    Prints the lines that a shell needs for Ray's own commands. The token is in a file that only you can read, and that
    is removed when this ends. A connection that drops does not end it: connect again.
    """
    from raykube.backends.kuberay import clusters
    from raykube.backends.kuberay.forward import Forward, check_right
    from raykube.backends.local import head

    if name == LOCAL:
        _say_exports(_local().address, head.home() / "token")
        tell("the head runs on this machine: nothing needs to be carried")
        return
    for number in (signal.SIGTERM, signal.SIGHUP):  # the token's file must be removed then, too
        signal.signal(number, signal.default_int_handler)
    kube = where.kube()
    token = clusters.token(kube, name)
    check_right(kube)
    with _token_file(token, name) as path, Forward(kube, name, port) as there:
        _say_exports(there.address, path)
        tell(*(line.format(name=name, port=there.port, address=there.address) for line in _FORWARD_HINTS))
        there.gone.wait()
    raise NotFound(f"cluster {name} is gone, and so is what was forwarded", next_step="see: raykube cluster list")


@cluster.command()
@place_options
@names_argument
def delete(names: tuple[str, ...], where: Where) -> None:
    """End clusters, and stop the runs on them before. Results, logs and models stay where storage keeps them."""
    from raykube.backends.kuberay import clusters

    def act(name: str) -> None:
        if name == LOCAL:
            _end_local()
        else:
            clusters.delete(where.kube(), name, tell=tell)
        click.echo(f"{name} deleted")

    common.each(names, act)


def _hint(name: str, goes_on: str) -> contextlib.AbstractContextManager[None]:
    """After Ctrl-C, say what goes on, how to look at it and how to end it."""
    return common.hint(
        f"\n{goes_on}",
        f"  look at it: raykube cluster status {name}",
        f"  end it:     raykube cluster delete {name}",
    )


def _listed(where: Where) -> Iterator[ClusterStatus]:
    from raykube.backends.kuberay import clusters
    from raykube.backends.kubernetes.kubeconfig import NotConfigured

    on = setting("on", where.on)
    names_kubernetes = where.name() != LOCAL
    just_here = on.source != "default" and not names_kubernetes
    if on.value == LOCAL:
        yield from _of_this_machine(is_asked=just_here)
    if just_here:
        return
    try:
        yield from clusters.listed(where.kube())
    except (ConfigError, BackendError) as error:
        # Users without Kubernetes or KubeRay, who do not name it, still get the list of this machine.
        if names_kubernetes:
            raise
        if not isinstance(error, NotConfigured):
            tell(f"note: {error}")


def _of_this_machine(*, is_asked: bool) -> Iterator[ClusterStatus]:
    try:
        yield _local()
    except NotFound:
        pass
    except (ConfigError, Unreachable) as error:  # others still get the list of Kubernetes
        if is_asked:
            raise
        tell(f"note: {error}")


def _local() -> ClusterStatus:
    from raykube.backends.kuberay.clusterstates import ClusterStatus as Value
    from raykube.backends.local import head

    running = head.current()
    if running is None:
        raise NotFound("no Ray head of raykube runs on this machine", next_step="it starts with the first job")
    return Value(LOCAL, "RUNNING", created=running.started, address=running.address)


def _end_local() -> None:
    from raykube.backends.local import head
    from raykube.backends.local.starting import end_head

    with head.lock():
        if not end_head():
            raise NotFound("no Ray head of raykube runs on this machine")


@contextlib.contextmanager
def _token_file(token: str, name: str) -> Iterator[Path | None]:
    """Keep a token in a file that only this user can read, for as long as the block runs.

    A lock marks the file as in use, and ends with the process, however that ends. So the next process can remove the
    file of one that was killed.
    """
    from raykube.backends.local import records

    if not token:
        yield None
        return
    folder = records.ensure_home() / "tokens"
    folder.mkdir(exist_ok=True, mode=0o700)
    with tempfile.NamedTemporaryFile("w", prefix=".", dir=folder, delete=False) as file:  # made with mode 0600
        fcntl.flock(file, fcntl.LOCK_EX)
        draft = Path(file.name)
        path = draft.rename(folder / f"{name}{draft.name}")
        _remove_stale(folder)
        try:
            file.write(token)
            file.flush()
            yield path
        finally:
            path.unlink(missing_ok=True)


def _remove_stale(folder: Path) -> None:
    for path in folder.glob("[!.]*"):
        with contextlib.suppress(OSError), path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while another process holds it
            path.unlink()


def _say_exports(address: str, token: Path | None) -> None:
    """Print the shell commands with which Ray's own commands reach a head."""
    click.echo(f"export RAY_ADDRESS={address}")
    click.echo(f"export RAY_AUTH_MODE={'token' if token else 'disabled'}")
    if token:
        click.echo(f"export RAY_AUTH_TOKEN_PATH={shlex.quote(str(token))}")
    if os.environ.get("RAY_AUTH_TOKEN"):
        click.echo("unset RAY_AUTH_TOKEN")  # Ray would prefer it to the file
