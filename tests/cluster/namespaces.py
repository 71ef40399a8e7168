"""A namespace of its own for each test, users with many, few or no rights in it, and its end without a trace."""

import json
import secrets
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

from tests.cluster import layout, operator
from tests.cluster.kubectl import apply, get, is_other, kubectl, listed
from tests.cluster.shell import ClusterError, console, until, write

_RAY_KINDS = "rayclusters.ray.io,rayservices.ray.io,rayjobs.ray.io"
#: What takes room on the node, or holds a volume, and what would make it anew.
_HELD = "jobs.batch,pods,persistentvolumeclaims"
#: How long the operator may take to end what it owns before its finalizers are taken off.
_OPERATOR_S = 30
_SERVER_S = 90
_TOKEN = "4h"

_ALL = ("get", "list", "watch", "create", "patch", "delete")
_READ = ("get", "list", "watch")
#: What raykube's documentation asks an administrator to grant; tests use nothing else.
LEAST_PRIVILEGE = (
    ("ray.io", ("rayjobs", "rayclusters", "rayservices"), _ALL),
    ("", ("configmaps",), ("get", "create", "patch", "delete")),
    ("", ("pods",), _READ),
    ("", ("pods/log",), ("get",)),
    ("", ("events",), ("list", "watch")),
    ("", ("pods",), ("create", "patch", "delete")),  # one that reads a run's storage; annotations of those that serve
    ("", ("secrets",), ("get",)),  # the token of a cluster's Ray
    ("", ("services/proxy",), ("get", "create", "update")),
    ("", ("pods/proxy",), ("get", "create")),
    ("", ("pods/portforward",), ("get", "create")),  # by WebSocket it is a GET, which some servers ask for, some not
    ("", ("resourcequotas",), ("list",)),
    ("", ("persistentvolumeclaims",), ("get",)),
    ("kueue.x-k8s.io", ("workloads",), ("list", "watch", "patch")),
    ("visibility.kueue.x-k8s.io", ("localqueues/pendingworkloads",), ("get",)),
)


def create(prefix, *, quota=None):
    """Make a namespace of a fresh name, with a ResourceQuota if `quota` says what it limits, and return the name."""
    name = f"{prefix}-{secrets.token_hex(3)}"
    metadata = {"name": name, "labels": {layout.NAMESPACE_LABEL: prefix}}
    objects = [{"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}]
    if quota:
        limits = {"metadata": {"name": "quota", "namespace": name}, "spec": {"hard": quota}}
        objects.append({"apiVersion": "v1", "kind": "ResourceQuota", **limits})
    apply(*objects)
    # Pods are refused before it is there.
    until(lambda: get("serviceaccount", "default", name), f"{name} has its default service account", _SERVER_S)
    return name


@contextmanager
def fresh(prefix, *, quota=None):
    """Give a namespace for as long as the block runs."""
    name = create(prefix, quota=quota)
    try:
        yield name
    finally:
        delete(name)


def delete(name):
    """Delete all that is in a namespace, and have the namespace deleted; ``wait_gone`` waits for that.

    What takes room is gone on return, and volumes can be claimed again. The server itself then waits for five seconds
    with each namespace, in which the next test can already run.
    """
    shutil.rmtree(_folder(name), ignore_errors=True)
    if get("namespace", name) is None:
        return
    _end_ray(name)
    kubectl("delete", _HELD, "--all", "--grace-period=1", "--wait=false", namespace=name)
    fact = f"pods and claims in {name} are gone"
    until(lambda: not listed(_HELD, name), fact, _SERVER_S)
    _release_volumes(name)
    kubectl("delete", "namespace", name, "--ignore-not-found", "--wait=false")


def wait_gone():
    """Wait until the server let go of all namespaces that were deleted.

    Raises:
        ClusterError: one stays, with the server's words on what holds it.
    """
    try:
        until(lambda: not _terminating(), "", _SERVER_S)
    except ClusterError as error:
        held = {each["metadata"]["name"]: _what_holds(each) for each in _terminating()}
        raise ClusterError(f"namespaces that stay for {_SERVER_S} s: {held}") from error


def _terminating():
    found = listed("namespaces", selector=layout.NAMESPACE_LABEL)
    return [each for each in found if "deletionTimestamp" in each["metadata"]]


def _what_holds(namespace):
    """Return what the server says of a namespace that does not go."""
    conditions = namespace["status"].get("conditions", [])
    return "; ".join(each["message"] for each in conditions if each["status"] == "True") or "nothing holds it now"


def _end_ray(name):
    """Have the operator let go of its objects while it can still read them; else take off its finalizers, and say so.

    Their pods become orphans, because pods that are deleted with them have the full 30 s of grace to end, which a head
    takes, and which a later and shorter grace does not cut short. Clusters go first: who owns them would delete them.
    """
    kubectl("delete", _RAY_KINDS, "--all", "--cascade=orphan", "--wait=false", namespace=name)
    try:
        until(lambda: not listed(_RAY_KINDS, name), "", _OPERATOR_S)
    except ClusterError:
        for item in listed(_RAY_KINDS, name):
            words = f"{item['kind'].lower()}.ray.io", item["metadata"]["name"]
            console.print(
                f"finalizers of {'/'.join(words)} in {name} taken off: the operator did not in {_OPERATOR_S} s"
            )
            kubectl("patch", *words, "--type=merge", '-p={"metadata":{"finalizers":null}}', namespace=name, check=False)


def _release_volumes(name):
    """Empty the volumes that were claimed from a namespace; on another cluster that is for its provisioner to do."""
    if is_other():
        return
    for volume in listed("persistentvolumes"):
        claim = volume["spec"].get("claimRef") or {}
        if claim.get("namespace") == name and volume["spec"].get("storageClassName") == "shared":
            operator.clear_volume(volume["metadata"]["name"])


def admin(namespace):
    """Return a kubeconfig for a user who may do everything in one namespace, and nothing outside."""
    return _user(namespace, "admin", [("*", ("*",), ("*",))])


def least(namespace):
    """Return a kubeconfig for a user who may do what raykube needs, and nothing else."""
    return _user(namespace, "least", LEAST_PRIVILEGE)


def nobody(namespace):
    """Return a kubeconfig for a user whom the cluster knows and who may do nothing."""
    return _user(namespace, "nobody", [])


def _user(namespace, name, granted):
    """Make a ServiceAccount with rights, and return a kubeconfig with its token."""
    metadata = {"name": name, "namespace": namespace}
    rbac = "rbac.authorization.k8s.io"
    rules = [{"apiGroups": [group], "resources": [*kinds], "verbs": [*verbs]} for group, kinds, verbs in granted]
    apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": metadata, "rules": rules},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        },
    )
    token = kubectl("create", "token", name, f"--duration={_TOKEN}", namespace=namespace).strip()
    return _kubeconfig(namespace, name, token)


def _kubeconfig(namespace, name, token):
    """Write the cluster's kubeconfig with another user in it."""
    config = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
    context = {"cluster": config["clusters"][0]["name"], "user": name, "namespace": namespace}
    config["users"] = [{"name": name, "user": {"token": token}}]
    config["contexts"] = [{"name": name, "context": context}]
    config["current-context"] = name
    path = _folder(namespace) / f"{name}.kubeconfig"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    return str(write(path, config))


def _folder(namespace):
    """Return where a namespace's kubeconfigs lie; its name is random, so nobody can have put something there."""
    return Path(tempfile.gettempdir()) / f"raykube-{namespace}"
