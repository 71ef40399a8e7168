"""Where an error arose in the user's own code, by the text of its traceback."""

from __future__ import annotations

import re
from pathlib import Path

_FRAME = re.compile(r'^\s*File "(.+)", line (\d+)', re.MULTILINE)
_INSTALLED = re.compile(r"/(lib/python3[^/]*|site-packages|dist-packages)/|^<frozen ")
_RAYKUBE = Path(__file__).parents[1]


def own_line(text: str) -> str:
    """Return the last line of the user's own code in a traceback, as in ``job.py line 7``; "" where it has none.

    A file below the working directory of this process is named from there, which is a job's of whatever machine.
    """
    own = [(path, line) for path, line in _FRAME.findall(text) if _is_own(path)]
    return f"{_named(own[-1][0])} line {own[-1][1]}" if own else ""


def _is_own(path: str) -> bool:
    return not _INSTALLED.search(path) and not Path(path).is_relative_to(_RAYKUBE)


def _named(path: str) -> str:
    if "/ipykernel_" in path:  # a file that there never was
        return "notebook cell"
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path
