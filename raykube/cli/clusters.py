"""``raykube cluster``: the long-lived clusters; today the one Ray head on this machine."""

from __future__ import annotations

import time

import click

from raykube.cli.common import json_option
from raykube.errors import NotFound


@click.group()
def cluster() -> None:
    """Look at and end long-lived clusters: today, the Ray head on this machine."""


@cluster.command("list")
@json_option
def list_clusters(*, as_json: bool) -> None:
    """List the clusters that run."""
    from raykube.backends import head
    from raykube.cli import view

    running = head.current()
    age_s = time.time() - running.started if running else 0.0
    if as_json:
        click.echo(view.dump([{"name": "local", "address": running.address, "age_s": age_s}] if running else []))
        return
    click.echo("NAME    AGE   ADDRESS")
    if running:
        click.echo(f"{'local':<7} {view.age(age_s):<5} {running.address}")


@cluster.command()
@click.argument("name", type=click.Choice(["local"]))
def delete(name: str) -> None:
    """End a cluster at once, with all that runs on it. Results, logs and models stay."""
    from raykube.backends import head
    from raykube.backends.local import end_head

    with head.lock():
        if not end_head():
            raise NotFound("no Ray head of raykube runs on this machine")
    click.echo(f"{name} deleted")
