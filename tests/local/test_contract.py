"""The local backend keeps the contract of all backends."""

import pytest

import raykube as rk
from tests.contract.backend import BackendContract

pytestmark = pytest.mark.local


class TestLocal(BackendContract):
    """The facts, on a real head on this machine."""

    @pytest.fixture
    def place(self):
        """Return this machine."""
        return rk.Cluster.local()
