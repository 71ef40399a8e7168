"""The Python of the README that no test runs, line by line, as code that mypy checks. Not run either."""

from collections.abc import Callable
from typing import Any

from ray import tune

import raykube as rk
from raykube.inside import serving


def submit() -> None:
    """Send a job, and look at a plan."""
    run = rk.submit(rk.Job.module("jobs.line", name="line-a1"), on=rk.Cluster.local(workers=2))
    print(run.wait().result())  # RunFailed tells reason, last log lines and the next step
    print(rk.plan(rk.Job.module("jobs.line"), on="gpu-t4").yaml())
    rk.submit(rk.Job.module("jobs.line"), on="house", cluster="demo")  # on a cluster that is there already


def search_and_serve(
    loop: Callable[[dict[str, Any]], None],
    load: Callable[[str], dict[str, float]],
    predict: Callable[[dict[str, float], list[Any]], list[float]],
) -> tuple[rk.Result, Any]:
    """Search with a loop, and make an application of two functions."""
    best = rk.sweep(loop, {"lr": tune.loguniform(1e-3, 1)}, trials=8, metric="loss", mode="min")
    app = serving.application(load, predict)  # load(checkpoint) -> model; predict(model, instances) -> predictions
    return best, app
