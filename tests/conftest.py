"""Which tests may run beside which."""

import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Have tests that start Ray run one after another in one process, and all others beside them.

    Some of them damage the cluster or the head that they share. And two of these at once are too much for two cores:
    Ray gives up where its head has not started within half a minute.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByNeed(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return "Ray" if nodeid.startswith(("tests/cluster/", "tests/gpu/", "tests/local/")) else nodeid

    return ByNeed(config, log)
