"""``raykube service``."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import Any

import click

from raykube.cli import common, planned
from raykube.cli.options import code_options, json_option, name_argument, names_argument, plan_options
from raykube.cli.place import Where, place_options
from raykube.errors import ConfigError, NotFound, RaykubeError


@click.group()
def service() -> None:
    """Serve models over HTTP."""


@service.command()
@place_options
@click.option("--model", help="run:NAME, a checkpoint's path, or MLflow's models:/NAME/VERSION.")
@click.option("--route-prefix", default="/", show_default=True, help="Path of its HTTP address.")
@click.option("--replicas", metavar="N|MIN..MAX", help="Replicas; a range autoscales. [as the application says]")
@click.option("--num-gpus", type=float, help="GPUs of one replica. [as the application says]")
@click.option("--deployment", metavar="NAME", help="The deployment that --replicas and --num-gpus are for. [Model]")
@click.option(
    "--workers",
    metavar="N|MIN..MAX",
    help="Workers: one a pod, or one a GPU where a pod has several; a range scales with the load. [as the place says]",
)
@click.option("--args", "args_json", metavar="JSON", default="{}", help="More arguments for the application builder.")
@click.option("--env", "env_vars", multiple=True, metavar="KEY=VALUE", help="Environment of the replicas; repeatable.")
@code_options
@click.option("--timeout-s", type=float, default=600, show_default=True, help="Seconds to wait until it answers.")
@plan_options
@json_option
@click.argument("name")
@click.argument("import_path")
def deploy(name: str, where: Where, timeout_s: float, *, as_json: bool, **given: Any) -> None:
    """Serve an application and wait until it answers.

    Example: raykube service deploy digits jobs.digits_app:app --model run:digits-a1

    Exit code 0: it answers; 1: it failed, was replaced or deleted by somebody else, or does not answer yet after
    --timeout-s seconds; 2: it was refused; 130: Ctrl-C, and the deployment goes on.
    """
    from raykube import api
    from raykube.cli import args
    from raykube.handles import check_time, ready

    cluster = where.cluster(given.pop("workers"))
    dry_run, output = given.pop("dry_run"), given.pop("output")
    planned.check_options(dry_run, output, as_json=as_json)
    work = args.service_of(name, given)
    check_time(timeout_s)
    plan = api.plan(work, cluster)
    if dry_run:
        planned.show(plan, dry_run, output or "yaml")
        return
    planned.announce(plan)
    begun, sent, shown = time.monotonic(), time.time(), common.screen(as_json=as_json)
    with _detach_hint(name, f"interrupted while {name} was sent; what has arrived of it goes on"):
        endpoint = api.serve(plan)
    try:
        with _detach_hint(name, f"detached; the deployment of {name} goes on"), shown:
            # The time shown is that since this deployment, not the age of a service that is updated.
            ready(endpoint, timeout_s, begun, lambda event: shown.show(replace(event.status, submitted=sent)))
    except RaykubeError:
        if as_json:  # as for a failed job
            with contextlib.suppress(RaykubeError):  # the error that is told is the one above
                common.print_value(endpoint.status(), as_json=True)
        raise
    if as_json:
        common.print_value(endpoint.status(), as_json=True)
        return
    click.echo(endpoint.url)
    if not cluster.is_local:
        common.tell(f"pods of its Kubernetes reach this address; from elsewhere: raykube service forward {name}")


def _detach_hint(name: str, goes_on: str) -> contextlib.AbstractContextManager[None]:
    """After Ctrl-C, say what goes on, how to look at it, and how to end it."""
    return common.hint(
        f"\n{goes_on}",
        f"  look at it:   raykube service status {name}",
        f"  take it down: raykube service delete {name}",
    )


@service.command("list")
@place_options
@json_option
def list_services(where: Where, *, as_json: bool) -> None:
    """List all services."""
    from raykube import api
    from raykube.handles import statuses

    common.print_table(statuses(api.endpoints(where.cluster())), as_json=as_json)


@service.command("status")
@place_options
@json_option
@name_argument
def service_status(name: str, where: Where, *, as_json: bool) -> None:
    """Show one service."""
    common.print_value(common.find_endpoint(name, where).status(), as_json=as_json)


@service.command("why")
@place_options
@json_option
@name_argument
def service_why(name: str, where: Where, *, as_json: bool) -> None:
    """Explain why a service is in its state: one cause, one next step."""
    common.print_value(common.find_endpoint(name, where).why(), as_json=as_json)


@service.command("forward")
@place_options
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port on this machine. [a free one]")
@name_argument
def service_forward(name: str, where: Where, port: int) -> None:
    """Forward a port of this machine to a service on Kubernetes, until Ctrl-C; prints its address."""
    from raykube.backends.kuberay import objects
    from raykube.backends.kuberay.forward import Forward, check_right
    from raykube.backends.kuberay.serve import servestates

    if where.cluster().is_local:
        step = f"raykube service status {name} shows its address; for one on Kubernetes give --on"
        raise ConfigError("a service on this machine needs no forward", next_step=step)
    kube = where.kube()

    def serving() -> str:
        """Return the current cluster: an update of the service may replace it with another one."""
        return servestates.serving_cluster(objects.found(kube, "RayService", name))

    found = objects.found(kube, "RayService", name)
    servestates.serving_cluster(found)  # reports at once, like check_right, what would make the forward fail
    check_right(kube)
    route = servestates.route_of(found).rstrip("/")
    with Forward(kube, serving, port, remote="serve") as there:
        click.echo(f"{there.address}{route}")
        common.tell(f"carrying 127.0.0.1:{there.port} to service {name}; Ctrl-C ends it")
        there.gone.wait()
        raise NotFound(f"service {name} is gone, and so is what was forwarded", next_step="raykube service list")


@service.command("logs")
@place_options
@click.option("-f", "--follow", is_flag=True, help="Go on until the service is taken down.")
@name_argument
def service_logs(name: str, where: Where, *, follow: bool) -> None:
    """Print what the replicas log and print."""
    for line in common.find_endpoint(name, where).logs(follow=follow):
        click.echo(line)


@service.command("delete")
@place_options
@names_argument
def service_delete(names: tuple[str, ...], where: Where) -> None:
    """Take services down."""

    def act(name: str) -> None:
        common.find_endpoint(name, where).delete()
        click.echo(f"{name} deleted")

    common.each(names, act)
