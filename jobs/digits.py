"""Digits classifier: a small CNN on scikit-learn's digits, trained data-parallel.

Run: python -m jobs.digits --epochs 12 --lr 2e-3
"""

from __future__ import annotations

import argparse

import raykube
from jobs import _digits


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=_digits.CONFIG["epochs"])
    parser.add_argument("--lr", type=float, default=_digits.CONFIG["lr"], help="learning rate")
    parser.add_argument("--batch-size", type=int, default=_digits.CONFIG["batch_size"], help="of all workers together")
    parser.add_argument("--seed", type=int, default=_digits.CONFIG["seed"])
    parser.add_argument("--data", default="", help="folder for the Parquet files that all workers can read")
    return parser.parse_args(arguments)


def main() -> None:
    config = vars(parse())
    config["data"] = _digits.write_data(config["data"])
    result = raykube.train(_digits.loop, config, experiment="digits", metric="accuracy", mode="max", model=_digits.load)
    print(f"run         {result.run}")
    print(f"accuracy    {result.metrics['accuracy']:.4f} after epoch {result.metrics['epoch']}")
    print(f"checkpoint  {result.checkpoint}")
    print(f"model       {result.model_uri or 'not registered'}")
    for note in result.notes:
        print(f"note        {note}")
    print(f"weights     sha256:{_digits.fingerprint(result.checkpoint or '')}")


if __name__ == "__main__":
    main()
