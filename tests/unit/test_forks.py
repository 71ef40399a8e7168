"""A child of a fork and its parent ask over connections of their own, or each would read answers to the other."""

import sys

import pytest

from tests.servers import Quiet, serving, write_kubeconfig
from tests.support import run

HANDLES = {
    "head": "from raykube.backends.local.head import Head, api\n"
    "def ask():\n    api(Head('h', 1, '', 1, '', sys.argv[1], '', '', 1, '', 0.0, '')).job('a')\n",
    "kubernetes": "from raykube.backends.kubernetes.kubeapi import Kube\n"
    "kube = Kube()\n"
    "def ask():\n    kube.find('Pod', 'a')\n",
}
FORKS = """
import os, sys
{handle}
ask()
if not (child := os.fork()):
    ask()
    os._exit(0)
os.waitpid(child, 0)
ask()
"""


class Ports(Quiet):
    """Notes from which port it is asked, which is which connection."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        self.server.asked.append(self.client_address[1])
        self.answer(200, {})


@pytest.mark.parametrize("handle", HANDLES)
def test_child_of_a_fork_asks_over_a_connection_of_its_own(handle, tmp_path):
    with serving(Ports) as server:
        config, address = write_kubeconfig(server, tmp_path / "kubeconfig"), f"http://127.0.0.1:{server.server_port}"
        environ = {"KUBECONFIG": config, "RAYKUBE_HOME": str(tmp_path)}
        done = run(sys.executable, "-c", FORKS.format(handle=HANDLES[handle]), address, **environ)
    assert done.stderr == ""
    first, of_the_child, last = server.asked
    assert of_the_child != first == last


HOLDS = """
import fcntl, os
from raykube.backends.local import head
with head.lock():
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.close(writer)
        os.read(reader, 1)  # lives until its parent is done
        os._exit(0)
with (head.home() / "lock").open("w") as file:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
os.close(writer)
os.waitpid(child, 0)
"""


def test_child_of_a_fork_does_not_keep_the_lock_that_its_parent_held(tmp_path):
    assert run(sys.executable, "-c", HOLDS, RAYKUBE_HOME=str(tmp_path)).stderr == ""
