"""What is installed in the cluster: the KubeRay operator, volumes that are ready to be claimed, and MLflow."""

import shutil
import string

from tests.cluster import binaries, kubectl, layout

NAMESPACE = "ray-system"
_MODULE = "github.com/ray-project/kuberay/ray-operator"
_FEATURE_GATE = "RayServiceIncrementalUpgrade=true"
_VOLUMES = 24
_STORAGE_CLASS = "shared"


def install():
    """Install KubeRay's CRDs and operator from its own manifests."""
    source = binaries.source_of("kuberay", _MODULE) / "config" / "default"
    objects = kubectl.kustomized(source)
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    definitions = [each for each in objects if each["kind"] == "CustomResourceDefinition"]
    rest = [_ours(each) for each in objects if each not in definitions and each["kind"] != "Namespace"]
    kubectl.apply(namespace, *definitions)
    kubectl.apply(*rest, namespace=NAMESPACE)


def _ours(item):
    """Return a manifest with our namespace and, for the operator, our image."""
    item["metadata"].pop("namespace", None)
    for subject in item.get("subjects", ()):
        subject["namespace"] = NAMESPACE
    if item["kind"] == "Deployment":
        container = item["spec"]["template"]["spec"]["containers"][0]
        container |= {"image": layout.OPERATOR_IMAGE, "imagePullPolicy": "Never"}
        container["resources"] = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}}
        container["readinessProbe"] |= {"initialDelaySeconds": 1, "periodSeconds": 1}
        # On from the start: with the gateway as an add-on of its own, the operator need not be restarted for it.
        container["args"] = [*container.get("args", ()), f"--feature-gates={_FEATURE_GATE}"]
    return item


def wait():
    """Wait until the operator answers: its pod is ready, and the API server knows its kinds."""
    if not kubectl.is_other():  # where it has whatever name it was given
        kubectl.wait_rollout("kuberay-operator", NAMESPACE)
    kubectl.kubectl("get", "rayjobs", "-A")


def revive():
    """Have the operator run at once where it waits to be restarted, as after tests that took its API server away."""
    for pod in kubectl.listed("pods", NAMESPACE):
        states = [each.get("state", {}) for each in pod["status"].get("containerStatuses", ())]
        if any(state.get("waiting", {}).get("reason") == "CrashLoopBackOff" for state in states):
            kubectl.kubectl("delete", "pod", pod["metadata"]["name"], namespace=NAMESPACE)
    wait()


def volumes():
    """Offer volumes that many pods may write at once; the class is the default one.

    They are folders of this machine. A dynamic provisioner would be one more foreign program, and claims bind sooner
    to what is ready.
    """
    storage = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": _STORAGE_CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "Immediate",
        "reclaimPolicy": "Retain",
    }
    kubectl.apply(storage, *(_volume(f"shared-{number:02}") for number in range(_VOLUMES)))


def _volume(name):
    folder = layout.DATA / "volumes" / name
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o777)
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "storageClassName": _STORAGE_CLASS,
            "capacity": {"storage": "20Gi"},
            "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": str(folder)},
        },
    }


def clear_volume(name):
    """Empty a volume whose claim is gone, so that it can be claimed again."""
    for path in (layout.DATA / "volumes" / name).iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    kubectl.kubectl("patch", "pv", name, "--type=json", '-p=[{"op":"remove","path":"/spec/claimRef"}]')


def mlflow():
    """Install MLflow's tracking server and the PostgreSQL it keeps its records in."""
    text = (layout.HERE / "manifests" / "mlflow.yaml").read_text()
    images = {"MLFLOW_IMAGE": layout.MLFLOW_IMAGE, "POSTGRES_IMAGE": layout.POSTGRES_IMAGE}
    kubectl.apply(string.Template(text).safe_substitute(images))


def wait_mlflow():
    """Wait until MLflow answers."""
    kubectl.wait_rollout("mlflow", "mlflow")
