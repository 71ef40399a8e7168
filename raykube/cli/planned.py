"""Printing of plans: the output of --dry-run, and the notes for its reader."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from raykube.cli.common import tell

if TYPE_CHECKING:
    from raykube.plans import Plan

#: kubectl apply keeps a copy of an object in its annotations, and Kubernetes allows 262,144 bytes of annotations.
_APPLIED = 250_000


def show(plan: Plan, dry_run: str, output: str) -> None:
    """Print a plan as YAML, JSON or just its name; with ``server``, only if the server finds nothing wrong."""
    if dry_run == "server":
        from raykube import api

        api.check(plan)
    # kubectl reads a single JSON object; Ray's Serve API takes a list.
    whole = {"apiVersion": "v1", "kind": "List", "items": plan.body} if plan.backend == "kuberay" else plan.body
    texts = {"yaml": plan.yaml(), "json": json.dumps(whole, indent=2), "name": plan.name}
    click.echo(texts[output].rstrip("\n"))
    announce(plan)
    tell(*(f"note: {note}" for note in for_kubectl(plan) if output != "name"))


def announce(plan: Plan) -> None:
    """Print which files a plan sends, and its notes."""
    tell(*(plan.package.report() if plan.package else ()), *(f"note: {note}" for note in plan.notes))


def check_options(dry_run: str | None, output: str | None, *, as_json: bool) -> None:
    """Refuse -o without --dry-run, whose user expects to see a plan, not to start a run; and --json with --dry-run."""
    if dry_run and as_json:
        raise click.UsageError("--json prints a result, and --dry-run has none; for a plan as JSON: -o json")
    if output and not dry_run:
        step = "add --dry-run=client (or server), or use --json for the result"
        raise click.UsageError(f"-o sets the format of --dry-run; {step}")


def for_kubectl(plan: Plan) -> Iterator[str]:
    """Yield notes on what a printed plan lacks for kubectl, and how to apply a large one with it. Pure."""
    if plan.backend != "kuberay":
        return
    if plan.code and plan.code.way != "plan":
        yield "the code is not in this plan: raykube brings it when it sends the plan itself"
    if max(len(json.dumps(part)) for part in plan.body) > _APPLIED:
        yield "this plan is too large for a plain kubectl apply; write: kubectl apply --server-side -f -"
