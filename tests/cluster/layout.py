"""Where the test cluster keeps its things, and the addresses it uses.

One cluster a machine: it has bridges, addresses and ports of its own, so a second one could not stand beside it.
"""

import os
from pathlib import Path

HERE = Path(__file__).parent
PROJECT = HERE.parent.parent

#: Sockets, certificates, configuration, logs: what a reboot may take.
RUN = Path("/run/raykube-cluster")
LOGS = RUN / "logs"
PKI = RUN / "pki"
CONF = RUN / "conf"
LOCK = Path("/run/raykube-cluster.lock")

#: What takes long to make, each under a name that says from what.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raykube" / "cluster"
#: What pods and components write. Images stay in CONTAINERD from one cluster to the next; DATA does not.
CONTAINERD = CACHE / "containerd"
DATA = CACHE / "data"

BRIDGE = "kc0"
NODE = "node-1"
NODE_ADDRESS = "172.31.255.1"
PODS = "10.244.0.0/16"
SERVICES = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
API_PORT = 6443
ETCD_PORT = 12379
KUBELET_PORT = 10250
API = f"https://{NODE_ADDRESS}:{API_PORT}"
KUBECONFIG = CONF / "admin.kubeconfig"
NAMESPACE_LABEL = "raykube-test"

KUBERNETES = "1.34.4"
RAY_IMAGE = "raykube-test/ray:local"
SMALL_IMAGE = "raykube-test/small:local"
MLFLOW_IMAGE = "raykube-test/mlflow:local"
POSTGRES_IMAGE = "raykube-test/postgres:local"
OPERATOR_IMAGE = "raykube-test/kuberay-operator:local"
PAUSE_IMAGE = "raykube-test/pause:local"
