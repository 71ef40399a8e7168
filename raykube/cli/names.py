"""Names on the command line: invalid ones are refused, and a shell completes existing ones."""

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

#: How long completion waits for a server that does not answer.
_PATIENCE_S = 2.0


class Name(StringParamType):
    """The name of a job, service or cluster: of `noun`, or of what the command's group is for."""

    def __init__(self, noun: str = "") -> None:
        self._noun = noun

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name. Raises ConfigError if it is not valid."""
        from raykube.names import asked_for

        return asked_for(super().convert(value, param, ctx), self._noun_of(ctx))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names at the place that the options name, as far as they are known in time."""
        from click.shell_completion import CompletionItem

        from raykube.cli.place import Where

        del param
        where = Where(*(ctx.params.get(key) for key in ("on", "namespace", "context")))
        found: list[str] = []

        def look() -> None:
            with contextlib.suppress(Exception):  # any error: its message would appear in the line that is being typed
                for name in _existing(self._noun_of(ctx), where):
                    found.append(name)  # noqa: PERF402 - one by one, so that names found in time are kept

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        thread.join(_PATIENCE_S)
        return [CompletionItem(name) for name in found.copy() if name.startswith(incomplete)]

    def _noun_of(self, ctx: click.Context | None) -> str:
        group = ctx.parent.info_name if ctx and ctx.parent else None
        return self._noun or group or "job"


def _existing(noun: str, where: Where) -> Iterator[str]:
    """Yield the existing names; nothing is started for this."""
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
    """Complete ``--on`` with this machine, Kubernetes and the presets; else with the path of a manifest."""
    from click.shell_completion import CompletionItem

    from raykube.cluster import known

    del ctx, param
    found: list[CompletionItem] = []
    with contextlib.suppress(OSError):  # such as a folder that was removed
        found = [CompletionItem(name) for name in sorted(known()) if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]
