"""The add-on that enforces network policies: kube-router, only as a firewall, on the host that routes the pods."""

from tests.cluster import binaries, layout, processes
from tests.cluster.shell import ClusterError, run, until

_HEALTH = 20244
_NAME = "kube-router"


def start(folder):
    """Enforce policies from now on. Without one that selects a pod, nothing changes for it."""
    words = [
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
    processes.launch(_NAME, [folder / _NAME, *words])
    until(_enforces, "kube-router enforces; its log: python -m tests.cluster logs kube-router", 60)


def _enforces():
    if end := processes.dead().get(_NAME):
        raise ClusterError(f"kube-router ended ({end}); why: python -m tests.cluster logs kube-router")
    return "KUBE-ROUTER-FORWARD" in run("iptables", "-S", check=False)


def stop():
    """Enforce none any more, and take away the rules."""
    processes.stop(_NAME)
    clean()


def clean():
    """Take away what kube-router left: its chains, sets and, if nobody else uses them, iptables' own tables."""
    run(binaries.build("policies") / _NAME, "--cleanup-config", check=False)
