"""``python -m raykube`` is ``raykube``, where that is not on PATH."""

from raykube.cli import main

main()
