"""``raykube job``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click

from raykube.cli import common, planned, view
from raykube.cli.common import tell
from raykube.cli.names import Name
from raykube.cli.options import PATH, code_options, json_option, name_argument, names_argument, plan_options
from raykube.cli.place import Where, goes_to_kubernetes, place_options
from raykube.errors import ConfigError, RunError

if TYPE_CHECKING:
    from raykube.handles import Run
    from raykube.plans import Plan


@click.group()
def job() -> None:
    """Submit a script and follow it to its result."""


class _Submit(click.Command):
    """Wants raykube's options before the command: after it they would go to the script, and --dry-run start a job."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, then refuse raykube's options among the command's words, unless ``--`` comes before the command."""
        typed = list(args)
        rest = super().parse_args(ctx, args)
        words = ctx.params.get("entrypoint") or ()
        before = typed[: len(typed) - len(words)]
        # No refusal while a shell completes what is being typed.
        if before[-1:] != ["--"] and not ctx.resilient_parsing:
            _refuse_options_among(words, {name for option in self.get_params(ctx) for name in option.opts})
        return rest


def _refuse_options_among(words: Sequence[str], options: set[str]) -> None:
    names = [word.partition("=")[0] for word in words if word.startswith("--")]
    if ours := [name for name in names if name in options and name != "--"]:
        verb = "stands" if len(ours) == 1 else "stand"
        raise ConfigError(
            f"{', '.join(ours)} {verb} after the command and would go to the script",
            why="raykube's own options stand before the command",
            next_step="write it before the command, or, if the script is meant, put -- before the command",
        )


@job.command(cls=_Submit, context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@place_options
@click.option(
    "-f",
    "--filename",
    type=PATH,
    help="YAML file with a RayJob, or with a job's fields: entrypoint, name, working_dir, …",
)
@click.option(
    "--cluster",
    metavar="NAME",
    type=Name("cluster"),
    help="Run on this long-lived cluster; made by: raykube cluster create.",
)
@click.option(
    "--workers",
    metavar="N|MIN..MAX",
    help="Training workers: one a pod, or one a GPU where a pod has several. [as the place says]",
)
@click.option(
    "--name",
    default="",
    help="Name of the run; give one to resume it or to send it twice safely. [the script's and 5 random letters]",
)
@code_options
@click.option("--env", "env_vars", multiple=True, metavar="KEY=VALUE", help="Environment of the job; repeatable.")
@click.option("--entrypoint-num-cpus", type=float, help="CPUs that the driver itself reserves.")
@click.option("--entrypoint-num-gpus", type=float, help="GPUs that the driver itself reserves.")
@click.option(
    "--entrypoint-memory", type=int, help="Bytes of memory that the driver itself reserves; not on Kubernetes."
)
@click.option("--entrypoint-resources", metavar="JSON", help="Custom resources that the driver itself reserves.")
@click.option("--metadata-json", metavar="JSON", help="Your own keys and values, kept with the run.")
@click.option(
    "--max-retries",
    type=int,
    help="How often to start it again when it fails; it resumes if its script loads its checkpoint. [0]",
)
@click.option(
    "--timeout-s",
    type=float,
    help="Seconds from submission, waiting and retries included, after which it is ended as failed. [none]",
)
@click.option("--pending-timeout-s", type=float, help="Seconds it may wait for its cluster. [900]")
@click.option("--keep-cluster-s", type=float, help="Seconds to keep the cluster after the end. [300]")
@click.option("--queue", help="Kueue's local queue.")
@click.option("--no-wait", is_flag=True, help="Print the name and return at once.")
@plan_options
@json_option
@click.argument("entrypoint", nargs=-1, type=click.UNPROCESSED)
def submit(entrypoint: tuple[str, ...], where: Where, **given: Any) -> None:
    """Submit a command and follow it.

    Example: raykube job submit --on local -- python -m jobs.digits --epochs 20
    """
    from raykube import api

    no_wait, as_json, dry_run, output = (given.pop(key) for key in ("no_wait", "as_json", "dry_run", "output"))
    planned.check_options(dry_run, output, as_json=as_json)
    plan = _plan(entrypoint, where, given)
    if dry_run:
        planned.show(plan, dry_run, output or "yaml")
        return
    planned.announce(plan)
    with _sent_hint(plan.name):
        run = api.start(plan)
    if no_wait:
        click.echo(json.dumps({"name": run.name}) if as_json else run.name)
        return
    common.follow_run(run, as_json=as_json)


def _sent_hint(name: str) -> AbstractContextManager[None]:
    """After Ctrl-C, say how to find out whether a run was submitted, how to submit it, and how to end it."""
    return common.hint(
        f"\ninterrupted while {name} was sent: it may have been submitted, or not",
        f"  see whether it was: raykube job status {name}",
        f"  submit or join it:  the same command, with --name {name}",
        f"  end and remove it:  raykube job delete {name}",
    )


def _plan(entrypoint: tuple[str, ...], where: Where, given: dict[str, Any]) -> Plan:
    """Plan what the options and the file that they name say."""
    from raykube import api, plans
    from raykube.cli import args

    workers, file, cluster = (given.pop(key) for key in ("workers", "filename", "cluster"))
    words = args.manifest_of(file) if file else None
    if words and "kind" in words[-1]:
        args.refuse_beside_manifest(entrypoint, given | {"workers": workers, "on": where.on, "cluster": cluster})
        own = (words[-1].get("metadata") or {}).get("namespace") or ""
        goes_to_kubernetes(where, own)
        return plans.written_rayjob(words, where.kubernetes() if own else where.in_kubernetes(), name=given["name"])
    if cluster:
        args.refuse_beside_cluster(cluster, given | {"workers": workers, "on": where.on})
        goes_to_kubernetes(where)
    job = args.job_of(entrypoint, given, words[-1] if words else {})
    place = api.running(cluster, where.in_kubernetes()) if cluster else where.cluster(workers)
    return api.plan(job, place)


@job.command("list")
@place_options
@json_option
def list_jobs(where: Where, *, as_json: bool) -> None:
    """List all runs."""
    from raykube import api
    from raykube.handles import statuses

    common.print_table(statuses(api.runs(where.cluster())), as_json=as_json)


@job.command()
@place_options
@json_option
@name_argument
def status(name: str, where: Where, *, as_json: bool) -> None:
    """Show one run."""
    common.print_value(common.find_run(name, where).status(), as_json=as_json)


@job.command()
@place_options
@click.option("-f", "--follow", is_flag=True, help="Go on until the run has ended.")
@click.option(
    "--source",
    metavar="driver|rank-N|autoscaler|events",
    default="driver",
    show_default=True,
    help="Which log: driver, what the script printed; rank-N, all that training worker N printed; on Kubernetes also "
    "autoscaler, Ray's, and events, of the run's objects.",
)
@name_argument
def logs(name: str, where: Where, source: str, *, follow: bool) -> None:
    """Print a log of a run: the driver's, or another source's."""
    run = common.find_run(name, where)
    if follow:
        common.follow_log(run, source)
        return
    for line in run.logs(source=source):
        click.echo(line)


@job.command()
@place_options
@click.option("--timeout-s", type=float, help="Give up after so many seconds; the run goes on.")
@json_option
@name_argument
def wait(name: str, where: Where, timeout_s: float | None, *, as_json: bool) -> None:
    """Wait for the end of a run.

    Exit code 0: it went well; 1: it failed, was stopped or deleted, or has not ended in --timeout-s seconds.
    """
    run = common.find_run(name, where)
    shown = common.screen(as_json=as_json)
    try:
        with common.detach_hint(run), shown:
            run.wait(timeout_s=timeout_s, on_event=lambda event: shown.show(event.status))
    except RunError:
        common.finish_failed(run, as_json=as_json)
        raise
    common.finish(run, as_json=as_json)


@job.command()
@place_options
@json_option
@name_argument
def result(name: str, where: Where, *, as_json: bool) -> None:
    """Print what the script's train or sweep returned.

    Exit code 1: there is none, and the run failed or was stopped.
    """
    run = common.find_run(name, where)
    if found := run.result():
        common.print_value(found, as_json=as_json)
        return
    if as_json:
        click.echo("null")
    if (state := run.status().state) in ("FAILED", "STOPPED"):
        raise RunError(f"{name} {state}: it has recorded no result", next_step=f"raykube job why {name}")
    if not as_json:
        tell(f"{name} has recorded no result: its script has not returned from raykube.train or raykube.sweep")


@job.command()
@place_options
@json_option
@name_argument
def why(name: str, where: Where, *, as_json: bool) -> None:
    """Explain why a run is in its state: one cause, one next step."""
    common.print_value(common.find_run(name, where).why(), as_json=as_json)


@job.command()
@place_options
@names_argument
def stop(names: tuple[str, ...], where: Where) -> None:
    """Stop runs; what they made stays."""

    def act(name: str) -> None:
        run = common.find_run(name, where)
        run.stop()
        ended = run.status()
        click.echo(f"{name} {ended.state}")
        if ended.state == "STOPPED":
            tell(view.kept(ended))

    common.each(names, act)


@job.command()
@place_options
@names_argument
def delete(names: tuple[str, ...], where: Where) -> None:
    """Stop runs and remove all that was kept of them, checkpoints too. Registered models stay."""

    def act(name: str) -> None:
        _run_to_delete(name, where).delete()
        click.echo(f"{name} deleted")

    common.each(names, act)


def _run_to_delete(name: str, where: Where) -> Run:
    """Find a run, even one on this machine whose record cannot be read."""
    from raykube import handles
    from raykube.backends import backend_for
    from raykube.backends.local.records import Unreadable

    try:
        return common.find_run(name, where)
    except Unreadable:
        return handles.Run(name, backend_for(where.cluster()))
