"""The main job from start to end, with the commands a user would type. Run: make demo.

Trains a small network on scikit-learn's digits with two data-parallel workers, searches for better
settings with the same script, serves the best model over HTTP, sends it one real image, and leaves
nothing running. What it made stays in .demo/.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
from sklearn.datasets import load_digits

import raykube as rk

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".demo"
RAYKUBE = str(Path(sys.executable).parent / "raykube")


def say(text: str) -> None:
    """Print a line of our own."""
    print(text, flush=True)


def raykube(*words: str) -> None:
    """Type one command."""
    say(f"\n$ raykube {shlex.join(words)}")
    subprocess.run([RAYKUBE, *words], cwd=ROOT, check=True)


def ask(url: str) -> tuple[int, int]:
    """Send one image of a digit; return what it shows and what the service says it shows."""
    digits = load_digits()
    image, label = digits.images[-1], int(digits.target[-1])
    say(f"\n$ POST {url}  (an image of a {label})")
    answer = httpx.post(url, json={"instances": [image.tolist()]}, timeout=60, trust_env=False)
    answer.raise_for_status()
    say(f"  {answer.text}")
    return label, int(answer.json()["predictions"][0])


def end_head() -> None:
    """End the demo's Ray head, if one runs."""
    found = subprocess.run(
        [RAYKUBE, "cluster", "list", "--on", "local", "--json"], capture_output=True, text=True, check=True
    )
    if json.loads(found.stdout):
        raykube("cluster", "delete", "local")


def main() -> None:
    """Do it all; end the head that it started, whatever happens."""
    for name in [name for name in os.environ if name.startswith(("RAYKUBE_", "MLFLOW_"))]:
        del os.environ[name]  # what it makes is to lie in .demo/, whatever is set here
    os.environ["RAYKUBE_HOME"] = str(HOME)
    end_head()  # of a demo that was killed
    shutil.rmtree(HOME, ignore_errors=True)
    begun = time.monotonic()
    few = ("--epochs", "6")  # so that there is something for the search to gain, within three minutes
    try:
        raykube("job", "submit", "--workers", "2", "--name", "train", "--", "python", "-m", "jobs.digits", *few)
        raykube("job", "submit", "--name", "sweep", "--", "python", "-m", "jobs.digits_sweep", "--trials", "2", *few)
        raykube("service", "deploy", "digits", "jobs.digits_app:app", "--model", "run:sweep", "--replicas", "1..2")
        label, answer = ask(rk.attach("digits").url)
        raykube("job", "list")
    finally:
        end_head()
    train, sweep = (rk.attach(name).result() for name in ("train", "sweep"))
    say(f"\ntrained with 2 workers: accuracy {train.metrics['accuracy']:.4f}")
    say(f"best of {len(sweep.trials)} trials:       accuracy {sweep.metrics['accuracy']:.4f} with {sweep.params}")
    say(f"registered models:      {train.model_uri}, {sweep.model_uri}")
    say(f"the served model read a {label} as {answer}")
    say(f"runs, checkpoints and mlflow.db lie in {HOME / 'runs'}; nothing is left running")
    say(f"look at the runs:       mlflow ui --backend-store-uri sqlite:///{HOME / 'runs' / 'mlflow.db'}")
    say(f"all in {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
