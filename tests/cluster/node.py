"""This machine as the one node: its bridge, the configuration of its components, and what is left to clean away."""

import contextlib
import ipaddress
import json
import os
import shutil
from pathlib import Path

import psutil

from tests.cluster import layout
from tests.cluster.shell import run, write

CONTAINERD_SOCKET = layout.RUN / "containerd.sock"
#: nftables tables of kube-proxy and of our own faults.
_TABLES = (("ip", "kube-proxy"), ("ip6", "kube-proxy"), ("inet", "raykube-test-drop"))
_NAMESPACES = Path("/var/run/netns")
_CNI_BIN = ("/usr/lib/cni", "/opt/cni/bin")


def prepare():
    """Make the bridge that carries the node's address, and write all configuration."""
    if not _has_link(layout.BRIDGE):
        # A dummy link would do, but not every kernel has those.
        run("ip", "link", "add", layout.BRIDGE, "type", "bridge")
    run("ip", "addr", "replace", f"{layout.NODE_ADDRESS}/32", "dev", layout.BRIDGE)
    run("ip", "link", "set", layout.BRIDGE, "up")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    for folder in (layout.DATA, layout.CONTAINERD, layout.LOGS, layout.CONF):
        folder.mkdir(parents=True, exist_ok=True)
    write(layout.CONF / "cni" / "10-raykube.conflist", _cni())
    write(layout.CONF / "containerd.toml", _containerd())
    write(layout.CONF / "kubelet.json", _kubelet())
    write(layout.CONF / "kube-proxy.json", _kube_proxy())
    write(layout.CONF / "Corefile", _corefile())
    write(layout.CONF / "resolv.conf", f"nameserver {layout.NODE_ADDRESS}\n")


def _has_link(name):
    return Path("/sys/class/net", name).exists()


def _cni():
    """Route each pod through the host: service addresses then work between pods without a kernel module."""
    ipam = {
        "type": "host-local",
        "subnet": layout.PODS,
        "dataDir": str(layout.DATA / "cni"),
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    return {"cniVersion": "0.4.0", "name": "raykube", "plugins": [{"type": "ptp", "ipMasq": False, "ipam": ipam}]}


def _containerd():
    plugins = next((folder for folder in _CNI_BIN if Path(folder, "ptp").exists()), _CNI_BIN[0])
    return f"""version = 2
root = "{layout.CONTAINERD}"
state = "{layout.RUN}/containerd"
[grpc]
address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
path = "{layout.DATA}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "docker.io/{layout.PAUSE_IMAGE}"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{layout.CONF}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"""


def _kubelet():
    return {
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "address": layout.NODE_ADDRESS,
        "port": layout.KUBELET_PORT,
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(layout.PKI / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "featureGates": {"KubeletInUserNamespace": True},  # it then bears with what a container may not set
        "enforceNodeAllocatable": [],
        "makeIPTablesUtilChains": False,
        "failSwapOn": False,
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "clusterDNS": [layout.NODE_ADDRESS],
        "clusterDomain": "cluster.local",
        "resolvConf": str(layout.CONF / "resolv.conf"),
        "podLogsDir": str(layout.DATA / "pod-logs"),
        "volumePluginDir": str(layout.DATA / "volume-plugins"),
        "maxPods": 110,
        "shutdownGracePeriod": "0s",
        "nodeStatusUpdateFrequency": "5s",
    }


def _kube_proxy():
    return {
        "kind": "KubeProxyConfiguration",
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(layout.CONF / "kube-proxy.kubeconfig")},
        "clusterCIDR": layout.PODS,
        "hostnameOverride": layout.NODE,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "conntrack": {"maxPerCore": 0},
        "nodePortAddresses": [f"{layout.NODE_ADDRESS}/32"],
    }


def _corefile():
    return f""".:53 {{
    bind {layout.NODE_ADDRESS}
    errors
    ready 127.0.0.1:18181
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {layout.CONF}/coredns.kubeconfig
        ttl 5
    }}
}}
"""


def clean():
    """Take away mounts, network namespaces, links, tables and data of a cluster whose processes have ended."""
    for mount in sorted(mounts(), reverse=True):
        run("umount", "--lazy", mount, check=False)
    for name in namespaces():
        run("ip", "netns", "delete", name, check=False)
    for family, table in tables():
        run("nft", "delete", "table", family, table)
    if _has_link(layout.BRIDGE):  # the host's ends of pods' links went with their namespaces
        run("ip", "link", "delete", layout.BRIDGE, check=False)
    for folder in (layout.RUN, layout.DATA):
        shutil.rmtree(folder, ignore_errors=True)
    _remove_cgroups()


def mounts():
    """Return mount points below our folders."""
    own = (f"{layout.RUN}/", f"{layout.DATA}/", f"{layout.CONTAINERD}/")
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [line.split()[1] for line in lines if line.split()[1].startswith(own)]


def namespaces():
    """Return the network namespaces of our pods: those with an address of their range."""
    return [path.name for path in _NAMESPACES.glob("cni-*") if _is_ours(path.name)]


def _is_ours(name):
    shown = run("ip", "-n", name, "-json", "-4", "addr", check=False)
    addresses = [each["local"] for link in json.loads(shown or "[]") for each in link.get("addr_info", ())]
    return any(ipaddress.ip_address(each) in ipaddress.ip_network(layout.PODS) for each in addresses)


def tables():
    """Return the nftables tables that kube-proxy or a fault left."""
    listed = run("nft", "list", "tables", check=False)
    found = {tuple(line.split()[1:3]) for line in listed.splitlines() if line.strip()}
    return [table for table in _TABLES if table in found]


def _remove_cgroups():
    """Remove the kubelet's cgroups, which are empty now, deepest first."""
    for top in Path("/sys/fs/cgroup").glob("**/kubepods"):
        for folder in sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        with contextlib.suppress(OSError):
            top.rmdir()


def problems():
    """Return why this machine cannot be a node; empty if it can."""
    found = []
    if os.geteuid() != 0:
        found.append("not root: containerd and the kubelet need it")
    if not Path("/proc/sys/net/ipv4/ip_forward").exists():
        found.append("not Linux, or no network of its own")
    if shutil.which("go") is None:
        found.append("no Go: install Go 1.25 or newer")
    needed = ("containerd", "runc", "nft", "ip", "conntrack")
    if missing := [name for name in needed if shutil.which(name) is None]:
        found.append(f"not installed: {', '.join(missing)} (python -m tests.cluster up --install does it on Debian)")
    if psutil.virtual_memory().total < 8e9:
        found.append("less than 8 GB of memory")
    return found
