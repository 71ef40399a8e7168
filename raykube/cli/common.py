"""What the commands share: finding runs and services, printing, following."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from raykube.backends import lines
from raykube.cli import view
from raykube.cli.place import Where, with_place
from raykube.errors import BackendError, Failure, NotFound, RaykubeError, RunError, ServiceFailed

if TYPE_CHECKING:
    from raykube.backends import Status
    from raykube.cli.follow import Screen
    from raykube.handles import Endpoint, Run
    from raykube.wire import Result


def find_run(name: str, where: Where) -> Run:
    """Return the handle of a run; NotFound when the name is a service's."""
    from raykube import api

    return api.attach(name, where.cluster(), kind="job")


def find_endpoint(name: str, where: Where) -> Endpoint:
    """Return the handle of a service; NotFound when the name is a run's."""
    from raykube import api

    return api.attach(name, where.cluster(), kind="service")


def exit_code(error: RaykubeError) -> int:
    """Return 1 for a run or service that failed, 2 for wrong use or a refusal by the place."""
    return 1 if isinstance(error, RunError | ServiceFailed) else 2


def each(names: Iterable[str], act: Callable[[str], None]) -> None:
    """Act on every name, as kubectl does: go on after an error, and exit with the worst code at the end."""
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
    """Print lines of progress or errors on stderr."""
    for line in lines:
        click.echo(with_place(line), err=True)


def line_of(status: Status) -> str:
    """Return a status on one line."""
    return lines.status_line(status, time.time())


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
    """Return the screen for a wait; with JSON, logs go to stderr, so that stdout has only data."""
    from raykube.cli import follow

    kind = follow.LiveScreen if sys.stderr.isatty() else follow.Screen
    return kind(functools.partial(click.echo, err=as_json), tell)


def follow_run(run: Run, *, as_json: bool) -> None:
    """Show a run until it has ended."""
    from raykube.cli import follow

    with detach_hint(run):
        error = follow.follow(run, screen(as_json=as_json))
    if error:
        finish_failed(run, as_json=as_json)
        raise error
    finish(run, as_json=as_json)


def follow_log(run: Run, source: str) -> None:
    """Show a log of a run until it has ended, and its state meanwhile; a failed run is no error here."""
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


def finish_failed(run: Run, *, as_json: bool) -> None:
    """As JSON, show how a run ended whose error is reported next; of one that was deleted nothing is left to show."""
    if as_json:
        with contextlib.suppress(NotFound):
            finish(run, as_json=True)


def _result_of(run: Run) -> Result | None:
    """Return a run's result; if it cannot be read, print a note: the run itself has not failed."""
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
