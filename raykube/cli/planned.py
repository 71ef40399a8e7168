"""A plan on the terminal: what --dry-run prints, and what its reader should know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from raykube.cli.common import tell

if TYPE_CHECKING:
    from raykube.plans import Plan

#: kubectl apply keeps an object in an annotation of it, and Kubernetes takes 262,144 bytes of annotations.
_APPLIED = 250_000


def show(plan: Plan, dry_run: str, output: str) -> None:
    """Print a plan as yaml, json or just its name; for ``server`` once the server has found nothing wrong with it."""
    if dry_run == "server":
        from raykube import api

        api.check(plan)
    # What kubectl takes as JSON is one object; what Ray's Serve API takes here is a list.
    whole = {"apiVersion": "v1", "kind": "List", "items": plan.body} if plan.backend == "kuberay" else plan.body
    texts = {"yaml": plan.yaml(), "json": json.dumps(whole, indent=2), "name": plan.name}
    click.echo(texts[output].rstrip("\n"))
    announce(plan)
    tell(*(f"note: {note}" for note in for_kubectl(plan) if output != "name"))


def announce(plan: Plan) -> None:
    """Tell which files a plan sends, and what its reader should know."""
    tell(*(plan.package.report() if plan.package else ()), *(f"note: {note}" for note in plan.notes))


def check_options(dry_run: str | None, output: str | None, *, as_json: bool) -> None:
    """Refuse -o without --dry-run: who writes it expects to see a plan, and would start a run."""
    if dry_run and as_json:
        raise click.UsageError("--json prints a result, and --dry-run has none; for a plan as JSON: -o json")
    if output and not dry_run:
        step = "add --dry-run=client (or server), or use --json for the result"
        raise click.UsageError(f"-o sets the format of --dry-run; {step}")


def for_kubectl(plan: Plan) -> Iterator[str]:
    """Say what a plan that is printed lacks for kubectl, and how kubectl takes one that is large. Pure."""
    if plan.backend != "kuberay":
        return
    if plan.code and plan.code.way != "plan":
        yield "the code is not in this plan: raykube brings it when it sends the plan itself"
    if max(len(json.dumps(part)) for part in plan.body) > _APPLIED:
        yield "this plan is too large for a plain kubectl apply; write: kubectl apply --server-side -f -"
