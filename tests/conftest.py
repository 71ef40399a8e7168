"""Which tests may run beside which."""

import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Have the tests of a folder that share a Ray head or a cluster, and may damage it, run in one process."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFolder(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            folder = nodeid.split("/")[1]
            return folder if folder in ("cluster", "local") else nodeid

    return ByFolder(config, log)
