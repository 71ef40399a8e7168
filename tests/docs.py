"""The blocks of docs/kubernetes.md that tests read: each marked by a comment that says what is done with it."""

import re
from dataclasses import dataclass
from pathlib import Path

GUIDE = Path(__file__).parent.parent / "docs" / "kubernetes.md"
_BLOCK = re.compile(
    r"^## (?P<section>[^\n]+)$|<!-- (?P<verb>\w+): (?P<what>\S+) -->\n```\w+\n(?P<text>.*?)```",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block: of which section, ``file`` or ``run``, the file's name or who runs it, and its text."""

    section: str
    verb: str
    what: str
    text: str


def file(name):
    """Return the text of a file that the guide has the reader save."""
    return next(block.text for block in blocks() if (block.verb, block.what) == ("file", name))


def blocks():
    """Return the guide's blocks in their order."""
    found, section = [], ""
    for match in _BLOCK.finditer(GUIDE.read_text()):
        section = match["section"] or section
        if match["verb"]:
            found.append(Block(section, match["verb"], match["what"], match["text"]))
    return found
