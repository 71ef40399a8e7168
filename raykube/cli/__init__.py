"""The command line. Only this package prints: data on stdout, progress and errors on stderr.

Exit codes: 0 success, 1 the run or service failed, 2 wrong use or a refusal by the place, 130 after
Ctrl-C or when the reader of the output went away.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import click

from raykube.cli import clusters, jobs, services, view
from raykube.cli.common import exit_code, tell
from raykube.cli.options import json_option
from raykube.cli.place import Where, place_options
from raykube.errors import RaykubeError
from raykube.settings import LOCAL

INTERRUPTED = 130
_MARKS = {True: "ok  ", False: "FAIL", None: "--  "}


class _ReaderGone(Exception):
    """The reader of our output went away, as `head` does."""


class _Commands(click.Group):
    """Raises an error of its own when the reader goes away: click itself would exit with 1, as for a failed run."""

    def make_context(self, *words: Any, **options: Any) -> click.Context:
        """Read the command line; ``--help`` is printed here."""
        with _reader_watched():
            return super().make_context(*words, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _reader_watched():
            return super().invoke(ctx)


@contextlib.contextmanager
def _reader_watched() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise _ReaderGone from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="raykube")
def raykube() -> None:
    """Run Ray jobs and services, on this machine or on KubeRay, by the same commands."""


@raykube.command()
@place_options
@json_option
def doctor(where: Where, *, as_json: bool) -> None:
    """Check whether this machine can do what raykube will ask of it.

    With a place on Kubernetes, by --on, RAYKUBE_ON, -n or --context, also whether that can: server, rights, KubeRay,
    and what a manifest names. Nothing is made there.
    """
    from raykube import doctor as doctor_module

    found = list(doctor_module.checks())
    if where.name() != LOCAL:
        found += doctor_module.kubernetes_checks(where.cluster, where.kubernetes)
    if as_json:
        click.echo(view.dump([vars(check) | ({"next_step": ""} if check.ok else {}) for check in found]))
    width = max(len(check.name) for check in found)
    for check in found if not as_json else ():
        click.echo(f"{_MARKS[check.ok]}  {check.name:<{width}} {check.found}")
        if not check.ok:
            click.echo(f"      next: {check.next_step}")
    sys.exit(1 if any(check.ok is False for check in found) else 0)


raykube.add_command(jobs.job)
raykube.add_command(services.service)
raykube.add_command(clusters.cluster)


def main() -> None:
    """Run the command line and exit with its code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("raykube").setLevel(logging.INFO)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # as on stderr: a name may hold any bytes
    try:
        with _reader_watched():
            code = _run()
    except _ReaderGone:
        _drop_unread()
        code = INTERRUPTED
    sys.exit(code)


def _run() -> int:
    """Run the command line, print any error, and return the exit code."""
    try:
        raykube.main(prog_name="raykube", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except RaykubeError as error:
        tell(f"error: {error}")
        return exit_code(error)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    return 0


def _drop_unread() -> None:
    """Redirect streams that nobody reads any more to /dev/null: flushing them at exit would raise again."""
    for stream in (sys.stdout, sys.stderr):
        if _is_unread(stream):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_unread(stream: TextIO) -> bool:
    try:
        stream.flush()
    except BrokenPipeError:
        return True
    return False
