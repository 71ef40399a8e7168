"""``raykube job``."""

from __future__ import annotations

import json
from typing import Any

import click

from raykube.cli import common
from raykube.cli.common import code_options, json_option, name_argument, names_argument, on_option, plan_options, tell
from raykube.errors import RunError


@click.group()
def job() -> None:
    """Submit a script and follow it to its result."""


@job.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@on_option
@click.option("--workers", metavar="N|MIN..MAX", help="Training workers. [as the place says]")
@click.option("--name", default="", help="Name of the run. [made from the entrypoint]")
@code_options
@click.option("--env", "env_vars", multiple=True, metavar="KEY=VALUE", help="Environment of the job; repeatable.")
@click.option("--entrypoint-num-cpus", type=float, help="CPUs that the driver itself reserves.")
@click.option("--entrypoint-num-gpus", type=float, help="GPUs that the driver itself reserves.")
@click.option("--entrypoint-memory", type=int, help="Bytes of memory that the driver itself reserves.")
@click.option("--entrypoint-resources", metavar="JSON", help="Custom resources that the driver itself reserves.")
@click.option("--metadata-json", metavar="JSON", help="Words of your own, kept with the run.")
@click.option("--max-retries", type=int, help="Start it again so often; each attempt resumes. [0]")
@click.option("--timeout-s", type=float, help="Stop it after so many seconds.")
@click.option("--pending-timeout-s", type=float, help="How long it may wait for its cluster. [900]")
@click.option("--keep-cluster-s", type=float, help="Keep the cluster so long after the end. [300]")
@click.option("--queue", help="Kueue's local queue.")
@click.option("--no-wait", is_flag=True, help="Print the name and return at once.")
@plan_options
@json_option
@click.argument("entrypoint", nargs=-1, required=True, type=click.UNPROCESSED)
def submit(entrypoint: tuple[str, ...], **given: Any) -> None:
    """Run a command: raykube job submit --on local -- python -m jobs.digits --epochs 20."""
    from raykube import api
    from raykube.cli import args

    cluster = args.cluster_of(given.pop("on"), given.pop("workers"))
    no_wait, as_json, dry_run, output = (given.pop(key) for key in ("no_wait", "as_json", "dry_run", "output"))
    common.check_plan_options(dry_run, output)
    plan = api.plan(args.job_of(entrypoint, given), cluster)
    if dry_run:
        common.print_plan(plan, output or "yaml")
        return
    tell(*(plan.package.report() if plan.package else ()), *(f"note: {note}" for note in plan.notes))
    run = api.start(plan)
    if no_wait:
        click.echo(json.dumps({"name": run.name}) if as_json else run.name)
        return
    common.follow_run(run, as_json=as_json)


@job.command("list")
@on_option
@json_option
def list_jobs(on: str | None, *, as_json: bool) -> None:
    """List all runs."""
    from raykube import api

    common.print_table([run.status() for run in api.runs(on)], as_json=as_json)


@job.command()
@on_option
@json_option
@name_argument
def status(name: str, on: str | None, *, as_json: bool) -> None:
    """Show one run."""
    common.print_value(common.find_run(name, on).status(), as_json=as_json)


@job.command()
@on_option
@click.option("-f", "--follow", is_flag=True, help="Go on until the run has ended.")
@name_argument
def logs(name: str, on: str | None, *, follow: bool) -> None:
    """Print the driver's log."""
    for line in common.find_run(name, on).logs(follow=follow):
        click.echo(line)


@job.command()
@on_option
@click.option("--timeout-s", type=float, help="Give up after so many seconds; the run goes on.")
@json_option
@name_argument
def wait(name: str, on: str | None, timeout_s: float | None, *, as_json: bool) -> None:
    """Wait for the end of a run; the exit code says how it ended."""
    run = common.find_run(name, on)
    shown = common.screen(as_json=as_json)
    try:
        with common.detach_hint(run), shown:
            run.wait(timeout_s=timeout_s, on_event=lambda event: shown.show(event.status))
    except RunError:
        if as_json:
            common.finish(run, as_json=True)
        raise
    common.finish(run, as_json=as_json)


@job.command()
@on_option
@json_option
@name_argument
def result(name: str, on: str | None, *, as_json: bool) -> None:
    """Print what the script's train or sweep returned."""
    found = common.find_run(name, on).result()
    if found:
        common.print_value(found, as_json=as_json)
    elif as_json:
        click.echo("null")
    else:
        tell(f"{name} has recorded no result: its script has not returned from raykube.train or raykube.sweep")


@job.command()
@on_option
@json_option
@name_argument
def why(name: str, on: str | None, *, as_json: bool) -> None:
    """Say in one cause and one next step why a run is where it is."""
    common.print_value(common.find_run(name, on).why(), as_json=as_json)


@job.command()
@on_option
@names_argument
def stop(names: tuple[str, ...], on: str | None) -> None:
    """Stop runs; what they made stays."""
    for name in names:
        run = common.find_run(name, on)
        run.stop()
        click.echo(f"{name} {run.status().state}")


@job.command()
@on_option
@names_argument
def delete(names: tuple[str, ...], on: str | None) -> None:
    """Stop runs and remove all that was kept of them, checkpoints too. Registered models stay."""
    for name in names:
        common.find_run(name, on).delete()
        click.echo(f"{name} deleted")
