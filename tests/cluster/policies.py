"""The add-on that enforces network policies: kube-router, only as a firewall, on the host that routes the pods."""

import shutil

from tests.cluster import layout
from tests.cluster.shell import run, until

_HEALTH = 20244
_CHAINS = (":KUBE-ROUTER-", ":KUBE-POD-FW-", ":KUBE-NWPLCY-")
_HOOKS = ("-A INPUT", "-A FORWARD", "-A OUTPUT")
_SETS = ("KUBE-SRC-", "KUBE-DST-")


def words():
    """Return kube-router's arguments. Where no policy selects a pod, nothing changes for it."""
    return [
        "--run-router=false",
        "--run-service-proxy=false",
        "--run-firewall=true",
        f"--kubeconfig={layout.KUBECONFIG}",
        f"--hostname-override={layout.NODE}",
        f"--service-cluster-ip-range={layout.SERVICES}",
        f"--health-port={_HEALTH}",
        "--iptables-sync-period=30s",
        "--metrics-port=0",
    ]


def enforced():
    """Return whether kube-router has made its chains."""
    return "KUBE-ROUTER-FORWARD" in run("iptables", "-S", check=False)


def clean():
    """Take away what kube-router left: its rules, chains and sets, and iptables' table if it holds nothing else.

    Its own --cleanup-config crashes without IPVS.
    """
    lines = _rules() if shutil.which("iptables-save") else []
    chains = [line[1:].split()[0] for line in lines if line.startswith(_CHAINS)]
    if not chains:
        return
    jumps = [f"-D{line[2:]}" for line in lines if line.startswith(_HOOKS) and " -j KUBE-ROUTER-" in line]
    script = ["*filter", *jumps, *(f"-F {name}" for name in chains), *(f"-X {name}" for name in chains), "COMMIT"]
    run("iptables-restore", "--noflush", stdin="\n".join([*script, ""]).encode())
    until(_sets_gone, "kube-router's sets are gone: the kernel lets go of them a moment after their rules", 10)
    if not any(line.startswith("-A") for line in _rules()):
        run("nft", "delete", "table", "ip", "filter", check=False)


def _sets_gone():
    for name in _sets():
        run("ipset", "destroy", name, check=False)
    return not _sets()


def _sets():
    return [name for name in run("ipset", "list", "-name").split() if name.startswith(_SETS)]


def _rules():
    return run("iptables-save", "-t", "filter").splitlines()
