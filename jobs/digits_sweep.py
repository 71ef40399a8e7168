"""Search for better settings of the digits classifier: the same loop as jobs.digits, many times.

Run: python -m jobs.digits_sweep --trials 4
"""

from __future__ import annotations

import argparse

import raykube
from jobs import _digits


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=_digits.CONFIG["epochs"])
    parser.add_argument("--seed", type=int, default=_digits.CONFIG["seed"])
    parser.add_argument("--data", default="", help="folder for the Parquet files that all workers can read")
    return parser.parse_args(arguments)


def main() -> None:
    arguments = parse()
    from ray import tune

    space = {
        "lr": tune.loguniform(1e-4, 1e-1),
        "width": tune.choice([8, 16, 24]),
        "batch_size": 64,
        "epochs": arguments.epochs,
        "seed": arguments.seed,
        "data": _digits.write_data(arguments.data),
    }
    result = raykube.sweep(
        _digits.loop,
        space,
        trials=arguments.trials,
        metric="accuracy",
        mode="max",
        experiment="digits",
        model=_digits.load,
    )
    for trial in result.trials:
        settings = f"lr {trial['params']['lr']:.2e} width {trial['params']['width']}"
        accuracy = f"accuracy {trial['metrics'].get('accuracy', float('nan')):.4f}"
        print(f"trial       {trial['trial']} {settings} {accuracy}{' stopped early' * trial['stopped_early']}")
    print(f"run         {result.run}")
    print(f"best        accuracy {result.metrics['accuracy']:.4f} with {result.params}")
    print(f"checkpoint  {result.checkpoint}")
    print(f"model       {result.model_uri or 'not registered'}")
    for note in result.notes:
        print(f"note        {note}")


if __name__ == "__main__":
    main()
