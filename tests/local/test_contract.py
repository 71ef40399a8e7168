"""The local backend keeps the contract of all backends."""

import pytest

import raykube as rk
from tests.contract.backend import BackendContract

pytestmark = pytest.mark.local


class TestLocal(BackendContract):
    """The facts, on a real head on this machine."""

    @pytest.fixture(scope="class")
    @classmethod
    def own_place(cls):
        """Return this machine, whose head is for all runs."""
        return rk.Cluster.local()

    @pytest.fixture
    def place(self, own_place):
        """Return this machine."""
        return own_place
