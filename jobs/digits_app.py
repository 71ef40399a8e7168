"""Serve the digits classifier over HTTP.

Run: python -m jobs.digits_app --model run:RUN, on this machine until Ctrl-C. For a service that stays, here or on
Kubernetes: raykube service deploy NAME jobs.digits_app:app --model run:RUN
"""

from __future__ import annotations

import argparse
import contextlib
import threading

import raykube
from jobs import _digits
from raykube.errors import NotFound, RaykubeError
from raykube.inside import serving

app = serving.application(_digits.load, _digits.predict)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="run:NAME, a checkpoint's path, or models:/NAME/VERSION")
    parser.add_argument("--name", default="digits-app", help="of the service")
    return parser.parse_args(arguments)


def main() -> None:
    given = parse()
    with contextlib.suppress(NotFound):
        raykube.attach(given.name, "local")
        raise SystemExit(f"something is called {given.name} on this machine: give another --name")
    served = raykube.App(import_path="jobs.digits_app:app", model=given.model)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            endpoint = raykube.deploy(raykube.Service(name=given.name, apps=(served,)), on="local")
            print(f"serving     {endpoint.url}  until Ctrl-C", flush=True)
            threading.Event().wait()
    except RaykubeError as error:
        raise SystemExit(str(error)) from None
    finally:
        with contextlib.suppress(NotFound):  # the deployment was refused
            raykube.attach(given.name, "local", kind="service").delete()


if __name__ == "__main__":
    main()
