"""How the library reads, as code that mypy checks. Not run."""

from contextlib import closing
from pathlib import Path

import raykube as rk
from raykube.handles import Event


def laptop() -> None:
    """A script on a laptop."""
    job = rk.Job.module("jobs.digits", "--epochs", "20", name="digits-a1")
    text: str = rk.plan(job, on="gpu").yaml()
    run: rk.Run = rk.submit(job, on=rk.Cluster.load("gpu").sized(workers=8))
    result: rk.Result | None = run.wait().result()
    rk.submit(job, on="local").wait(timeout_s=60, on_event=changed)
    rk.submit(job, on=rk.Cluster.local(workers=2, cpus=1, gpus=0).sized(workers=(1, 2)))
    names: list[str] = [each.name for each in rk.runs()]
    lines: list[str] = [*run.logs(follow=True), *run.logs(source="rank-0"), *run.logs(source="events")]
    with closing(run.logs(follow=True)) as followed:
        first: str = next(followed)
    rk.plan(rk.Job(entrypoint="python a.py", working_dir="src", pip=["torch"], excludes=["data/"]), on=Path("a.yaml"))
    assert text and result and names and lines and first


def changed(event: Event) -> None:
    """What a wait may tell."""
    state: str = event.status.state
    assert state


def serve() -> None:
    """A service."""
    app = rk.App(import_path="jobs.digits_app:app", model="run:digits-a1", num_replicas=2)
    scaled = rk.App(import_path="jobs.digits_app:app", route_prefix="/b", autoscaling_config={"max_replicas": 2})
    rk.deploy(rk.Service(name="digits", apps=[app, scaled]))
    endpoint: rk.Endpoint = rk.deploy(rk.Service(name="digits", apps=(app,)), on="local")
    status: rk.Status = endpoint.status()
    url: str = endpoint.url
    found: rk.Run | rk.Endpoint = rk.attach("digits")
    result: rk.Result | None = rk.attach("digits", kind="job").wait().result()
    lines: list[str] = [*rk.attach("digits", "local", kind="service").wait_ready(timeout_s=None).logs()]
    assert status and url and found and result and lines


def errors(run: rk.Run) -> None:
    """Every field that an error carries."""
    try:
        run.wait()
    except rk.RunFailed as error:
        fields: tuple[str, int | None, tuple[str, ...]] = (error.reason, error.exit_code, error.tail)
        assert fields
    except rk.errors.Conflict as error:
        assert isinstance(error, rk.BackendError)
    except rk.ConfigError as error:
        assert [problem.path for problem in error.problems]
    except rk.RaykubeError as error:
        assert error.what and error.why and error.next_step


def inside() -> None:
    """An entry script."""

    def loop(config: dict[str, float]) -> None:
        rk.report({"loss": config["lr"]})
        rk.report({"loss": 0.0}, checkpoint={"model": {}})

    trained: rk.Result = rk.train(loop, {"lr": 0.1}, experiment="digits", metric="loss", mode="min")
    best: rk.Result = rk.sweep(loop, {"lr": 0.1}, trials=4, metric="loss", mode="min", experiment="digits")
    assert trained.metrics["loss"] and best.params
    rk.train(loop, mode="least")  # type: ignore[arg-type]


def misspelt() -> None:
    """A name that there is not; an unused ignore is an error of its own."""
    rk.sumbit()  # type: ignore[attr-defined]
    rk.Job("python a.py")  # type: ignore[call-arg]
    rk.attach("digits", kind="jbo")  # type: ignore[call-overload]
    rk.attach("digits").wait_ready()  # type: ignore[union-attr]
