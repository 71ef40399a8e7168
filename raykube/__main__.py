"""``python -m raykube``: the ``raykube`` command, for where that is not on PATH."""

from raykube.cli import main

main()
