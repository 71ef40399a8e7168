"""``raykube service``."""

from __future__ import annotations

from typing import Any

import click

from raykube.cli import common
from raykube.cli.common import code_options, json_option, name_argument, names_argument, on_option, plan_options


@click.group()
def service() -> None:
    """Serve models over HTTP."""


@service.command()
@on_option
@click.option("--model", help="run:NAME, a checkpoint's path, or MLflow's models:/NAME/VERSION.")
@click.option("--route-prefix", default="/", show_default=True, help="Path of its HTTP address.")
@click.option("--replicas", metavar="N|MIN..MAX", default="1", show_default=True, help="A range autoscales.")
@click.option("--args", "args_json", metavar="JSON", default="{}", help="More arguments for the application builder.")
@click.option("--env", "env_vars", multiple=True, metavar="KEY=VALUE", help="Environment of the replicas; repeatable.")
@code_options
@click.option("--timeout-s", type=float, default=600, show_default=True, help="How long to wait until it answers.")
@plan_options
@json_option
@name_argument
@click.argument("import_path")
def deploy(name: str, on: str | None, timeout_s: float, *, as_json: bool, **given: Any) -> None:
    """Serve an application: raykube service deploy digits jobs.digits_app:app --model run:digits-a1."""
    from raykube import api
    from raykube.cli import args

    dry_run, output = given.pop("dry_run"), given.pop("output")
    common.check_plan_options(dry_run, output)
    plan = api.plan(args.service_of(name, given), args.cluster_of(on, None))
    if dry_run:
        common.print_plan(plan, output or "yaml")
        return
    endpoint, shown = api.serve(plan), common.screen(as_json=as_json)
    with shown:
        endpoint.wait_ready(timeout_s=timeout_s, on_event=lambda event: shown.show(event.status))
    if as_json:
        common.print_value(endpoint.status(), as_json=True)
    else:
        click.echo(endpoint.url)


@service.command("list")
@on_option
@json_option
def list_services(on: str | None, *, as_json: bool) -> None:
    """List all services."""
    from raykube import api

    common.print_table([endpoint.status() for endpoint in api.endpoints(on)], as_json=as_json)


@service.command("status")
@on_option
@json_option
@name_argument
def service_status(name: str, on: str | None, *, as_json: bool) -> None:
    """Show one service."""
    common.print_value(common.find_endpoint(name, on).status(), as_json=as_json)


@service.command("logs")
@on_option
@click.option("-f", "--follow", is_flag=True, help="Go on until the service is taken down.")
@name_argument
def service_logs(name: str, on: str | None, *, follow: bool) -> None:
    """Print the log of the replicas."""
    for line in common.find_endpoint(name, on).logs(follow=follow):
        click.echo(line)


@service.command("delete")
@on_option
@names_argument
def service_delete(names: tuple[str, ...], on: str | None) -> None:
    """Take services down."""
    for name in names:
        common.find_endpoint(name, on).delete()
        click.echo(f"{name} deleted")
