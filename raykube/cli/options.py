"""Options and arguments that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from raykube.cli.names import Name

Function = TypeVar("Function", bound=Callable[..., Any])


def joined(*options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Join several options into one decorator, in the order in which --help shows them."""

    def decorate(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


# Not `readable`: the code that reads the file reports why it cannot, in raykube's own form.
PATH = click.Path(path_type=Path, readable=False)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
name_argument = click.argument("name", type=Name())
names_argument = click.argument("names", type=Name(), nargs=-1, required=True)
plan_options = joined(
    click.option(
        "--dry-run",
        type=click.Choice(["client", "server"]),
        is_flag=False,
        flag_value="client",
        help="Print the plan and start nothing; server: ask the API server to check it, too. Alone: client.",
    ),
    click.option("-o", "--output", type=click.Choice(["yaml", "json", "name"]), help="How --dry-run prints. [yaml]"),
)
code_options = joined(
    # Text, not a Path, which would turn s3://b into s3:/b: the spec explains why a URI is refused.
    click.option("--working-dir", metavar="PATH", help="Folder to pack and send. [.]"),
    click.option(
        "--excludes",
        multiple=True,
        metavar="PATTERN",
        help="Files not to send, as in .gitignore; '!data/**': send all of a folder.",
    ),
    click.option("--pip", multiple=True, metavar="PACKAGE", help="Install before the start; repeatable."),
    click.option("--runtime-env", type=PATH, help="YAML file with a Ray runtime environment."),
    click.option("--runtime-env-json", metavar="JSON", help="A Ray runtime environment."),
)
