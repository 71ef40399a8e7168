"""Which tests may run beside which."""

import signal

import pytest

_WITH_TORCH = tuple(f"tests/unit/test_inside_{each}.py" for each in ("history", "scalars", "tracking", "training"))


@pytest.fixture(scope="session", autouse=True)
def heeded_ctrl_c():
    """Have commands that tests start heed Ctrl-C, which shells switch off for what they run in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Have tests that start Ray run one after another in one process, and all others beside them.

    Some of them damage the cluster or the head that they share. And two of these at once are too much for two cores:
    Ray gives up where its head has not started within half a minute. Unit tests that import PyTorch, which
    takes seconds, do so in one process.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByNeed(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            if nodeid.startswith(("tests/cluster/", "tests/gpu/", "tests/local/")):
                return "Ray"
            return "PyTorch" if nodeid.startswith(_WITH_TORCH) else nodeid

    return ByNeed(config, log)
