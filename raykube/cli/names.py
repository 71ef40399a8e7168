"""Names on the command line: what can be none is refused, and a shell completes what is there."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
from click.types import StringParamType

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from raykube.cli.place import Where

#: Whoever presses Tab waits no longer than that for a server that does not answer.
_PATIENCE_S = 2.0


class Name(StringParamType):
    """The name of a job, service or cluster, as the group of the command says, or `noun`."""

    def __init__(self, noun: str = "") -> None:
        self._noun = noun

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name. Raises ConfigError."""
        from raykube.names import asked_for

        return asked_for(super().convert(value, param, ctx), self._noun_of(ctx))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names at the place that the options say: those that are known in time."""
        from click.shell_completion import CompletionItem

        from raykube.cli.place import Where

        del param
        where = Where(*(ctx.params.get(key) for key in ("on", "namespace", "context")))
        found: list[str] = []

        def look() -> None:
            with contextlib.suppress(Exception):  # whatever it is: a word about it would stand in what is being typed
                for name in _known(self._noun_of(ctx), where):
                    found.append(name)  # noqa: PERF402 - what comes late is left out, what was in time is not

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        thread.join(_PATIENCE_S)
        return [CompletionItem(name) for name in found.copy() if name.startswith(incomplete)]

    def _noun_of(self, ctx: click.Context | None) -> str:
        group = ctx.parent.info_name if ctx and ctx.parent else None
        return self._noun or group or "job"


def _known(noun: str, where: Where) -> Iterator[str]:
    """Yield the names that are there; nothing is started for it."""
    from raykube import api

    if noun == "cluster":
        yield from _clusters(where)
    else:
        handles = api.endpoints(where.cluster()) if noun == "service" else api.runs(where.cluster())
        yield from (handle.name for handle in handles)


def _clusters(where: Where) -> Iterator[str]:
    from raykube.backends.kuberay import clusters
    from raykube.backends.local import head
    from raykube.settings import LOCAL

    if head.seen():
        yield LOCAL
    if where.on != LOCAL:
        yield from (status.name for status in clusters.listed(where.kube()))


def places(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete ``--on``: this machine, Kubernetes, the presets; else the path of a manifest."""
    from click.shell_completion import CompletionItem

    from raykube.cluster import known

    del ctx, param
    found: list[CompletionItem] = []
    with contextlib.suppress(OSError):  # as of a folder that somebody has removed
        found = [CompletionItem(name) for name in sorted(known()) if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]
