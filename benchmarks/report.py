"""Render what was measured: tables as Markdown and one figure, from the newest session that measured each thing.

Run: python -m benchmarks.report
     python -m benchmarks.report --full --out docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import figure, findings, rows, tables


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="leave quick sessions out")
    parser.add_argument("--results", type=Path, default=rows.RESULTS, help="folder of the rows")
    parser.add_argument("--out", type=Path, default=rows.RESULTS / "report.md", help="the figure goes beside it")
    said = parser.parse_args(arguments)
    found = findings.latest(rows.read(said.results), full=said.full)
    if not found:
        kind, option = (" of a full session", "") if said.full else ("", " --quick")
        print(f"{said.results} holds no rows{kind}\n  next: python -m benchmarks.overhead{option}", file=sys.stderr)
        sys.exit(2)
    picture = said.out.with_suffix(".png")
    said.out.parent.mkdir(parents=True, exist_ok=True)
    said.out.write_text(tables.render(found, picture.name), encoding="utf-8")
    figure.draw(found, picture)
    print(f"{said.out}\n{picture}")


if __name__ == "__main__":
    main()
