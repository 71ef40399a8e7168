"""A place for trainings on the GPU of this machine."""

import pytest

from raykube import wire
from tests.local.conftest import raykube_home  # noqa: F401 - a fixture
from tests.local.inside.conftest import here, own_ray  # noqa: F401 - fixtures

torch = pytest.importorskip("torch")


@pytest.fixture(scope="session", autouse=True)
def _gpu():
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here that PyTorch can use")


@pytest.fixture
def on_gpu(here, monkeypatch):  # noqa: F811 - the fixture
    """Set the environment of a fresh run with one worker that has the GPU."""
    monkeypatch.setenv(wire.WORKERS, "1")
    monkeypatch.setenv(wire.GPUS, "1")
    return here
