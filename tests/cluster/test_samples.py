"""KubeRay's own sample manifests go through raykube: all to the API server's strict validation, and those to their
end that need no more than this cluster has."""

import re
from contextlib import nullcontext

import pytest
import yaml

import raykube as rk
from raykube import api, plans
from raykube.cli import args
from raykube.errors import ConfigError
from tests.cluster import binaries, kubectl, layout, workloads
from tests.support import run

pytestmark = pytest.mark.cluster

#: What raykube refuses, each with its reason: the run would hang, or its Ray would take orders from everybody.
REFUSED = {
    "ray-cluster.auth-manual.yaml": "authOptions: {mode: token, secretName: ray-cluster-with-auth}",
    "ray-cluster-label-selector.yaml": "spec.rayVersion: is required",  # an image whose tag is no version
    "ray-cluster.kubernetes.auth.yaml": "enableK8sTokenAuth: KubeRay refuses it for a RayJob",
    "ray-cluster.verl.yaml": "2.43.0 knows no tokens",
}
_TPU, _GPU, _BUCKET, _REDIS = "TPUs", "GPUs", "a bucket of Google's", "an image of Redis"
_SCHEDULER = "a scheduler beside that of Kubernetes"
#: What the samples need that are not run here.
NEEDS = {
    "ray-cluster-resource-isolation-with-overrides.gke.yaml": "cgroups that a pod may write",
    "ray-cluster-resource-isolation.gke.yaml": "cgroups that a pod may write",
    "ray-cluster.deprecate-gcs-ft.yaml": _REDIS,
    "ray-cluster.external-redis-uri.yaml": _REDIS,
    "ray-cluster.external-redis.yaml": _REDIS,
    "ray-cluster.fluentbit.yaml": "an image of Fluent Bit",
    "ray-cluster.gke-bucket.yaml": _BUCKET,
    "ray-cluster.kai-gpu-sharing.yaml": _GPU,
    "ray-cluster.kai-scheduler.yaml": _SCHEDULER,
    "ray-cluster.kubernetes.auth-manual.yaml": "an audience of its own at the API server",
    "ray-cluster.persistent-redis.yaml": _REDIS,
    "ray-cluster.scheduler-plugins.yaml": _SCHEDULER,
    "ray-cluster.tpu-v4-multihost.yaml": _TPU,
    "ray-cluster.tpu-v4-singlehost.yaml": _TPU,
    "ray-cluster.tpu-v6e-16-multihost.yaml": _TPU,
    "ray-cluster.tpu-v6e-256-multihost.yaml": _TPU,
    "ray-cluster.tpu-v6e-singlehost.yaml": _TPU,
    "ray-cluster.volcano-scheduler-queue.yaml": _SCHEDULER,
    "ray-cluster.volcano-scheduler.yaml": _SCHEDULER,
    "ray-cluster.yunikorn-scheduler.yaml": _SCHEDULER,
    "ray-data-image-resize-gcsfusecsi-job.yaml": _BUCKET,
    "ray-job.batch-inference.yaml": _GPU,
    "ray-job.image-resize.yaml": _BUCKET,
    "ray-job.interactive-mode.yaml": "somebody who submits to it",
    "ray-job.kueue-toy-sample.yaml": "Kueue",
    "ray-job.light-weight-submitter.yaml": "an image of KubeRay's submitter",
    "ray-job.modin.yaml": "packages from the internet",
    "ray-job.pytorch-distributed-training.yaml": _GPU,
    "ray-job.pytorch-image-classifier.yaml": _GPU,
    "ray-job.pytorch-mnist.yaml": "data from the internet",
    "ray-job.tpu-v6e-16-multihost.yaml": _TPU,
    "ray-job.tpu-v6e-256-multihost.yaml": _TPU,
    "ray-job.tpu-v6e-singlehost.yaml": _TPU,
    "ray-job.volcano-scheduler-queue.yaml": _SCHEDULER,
    "ray-job.yunikorn-scheduler.yaml": _SCHEDULER,
}
#: What those print that are run.
JOBS = {
    "ray-job.custom-head-svc.yaml": "test_counter got 5",
    "ray-job.deletion-rules.yaml": "ray.cluster_resources()",
    "ray-job.resources.yaml": "",
    "ray-job.sample.yaml": "test_counter got 5",
    "ray-job.shutdown.yaml": "test_counter got 5",
    "ray-job.sidecar-mode.yaml": "test_counter got 5",
    "ray-job.use-existing-raycluster.yaml": "CPU",
}
CLUSTERS = (
    "ray-cluster.auth.secret-ref.yaml",
    "ray-cluster.auth.yaml",
    "ray-cluster.autoscaler-v2.yaml",
    "ray-cluster.autoscaler.yaml",
    "ray-cluster.complete.yaml",
    "ray-cluster.custom-head-service.yaml",
    "ray-cluster.embed-grafana.yaml",
    "ray-cluster.head-command.yaml",
    "ray-cluster.overwrite-command.yaml",
    "ray-cluster.py-spy.yaml",
    "ray-cluster.sample.yaml",
    "ray-cluster.separate-ingress.yaml",
    "ray-cluster.tls.yaml",
    "ray-cluster.uv.yaml",
)
SIX_TIMES_SEVEN = "import ray; ray.init(); print('6 * 7 =', ray.get(ray.remote(lambda: 6 * 7).remote()))"


def samples(kind):
    folder = binaries.source_of("kuberay", "github.com/ray-project/kuberay/ray-operator") / "config/samples"
    for path in sorted(folder.rglob("*.yaml")):
        if any(each and each.get("kind") == kind for each in yaml.safe_load_all(path.read_text())):
            yield path


@pytest.fixture(autouse=True)
def as_admin(own_cluster, namespace, monkeypatch):  # noqa: ARG001 - it has the samples
    """Look at the cluster with all rights: samples name things that do not exist."""
    monkeypatch.setenv("KUBECONFIG", str(layout.KUBECONFIG))
    monkeypatch.setenv("RAYKUBE_NAMESPACE", namespace)


def account(path, namespace):
    """Have the service accounts that a sample names: without them the server takes no pod of it."""
    for name in set(re.findall(r"serviceAccountName: *(\S+)", path.read_text())):
        kubectl.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}, namespace=namespace)


def test_rayjob_samples_pass_strict_validation_as_they_are(namespace):
    found = list(samples("RayJob"))
    for path in found:
        account(path, namespace)
        plan = plans.written_rayjob(args.manifest_of(path), rk.Cluster.load("kubernetes"))
        api.check(plan)
    assert len(found) >= 20


def test_raycluster_samples_are_planned_for_or_refused_with_a_reason(tmp_path, namespace):
    (tmp_path / "a.py").write_text("print(1)\n")
    job = rk.Job(entrypoint="python a.py", name="sample", working_dir=tmp_path)
    found = list(samples("RayCluster"))
    for path in found:
        account(path, namespace)
        expected = pytest.raises(ConfigError, match=REFUSED[path.name]) if path.name in REFUSED else nullcontext()
        with expected:
            api.check(rk.plan(job, rk.Cluster.load(path)))
    assert len(found) >= 35


def test_each_sample_is_run_or_refused_or_it_is_said_what_it_needs():
    jobs, clusters = ({path.name for path in samples(kind)} for kind in ("RayJob", "RayCluster"))
    assert jobs | clusters == JOBS.keys() | set(CLUSTERS) | NEEDS.keys() | REFUSED.keys()
    assert jobs >= JOBS.keys()
    assert clusters >= set(CLUSTERS)


def for_here(name, kind, folder):
    """Write a sample for this machine: the test cluster's image, few CPUs, and no packages from the internet.

    Return its path, and what it has beside the one of Ray's kind.
    """
    (path,) = (path for path in samples(kind) if path.name == name)
    text = re.sub(r"rayproject/ray:2\.5\d\.0", layout.RAY_IMAGE, path.read_text())
    parts = list(yaml.safe_load_all(re.sub(r"2\.5\d\.0", workloads.ray_version(), text)))
    (main,) = (each for each in parts if each["kind"] == kind)
    spec = main["spec"] if kind == "RayCluster" else main["spec"].get("rayClusterSpec", {})
    if "headGroupSpec" in spec:
        spec.setdefault("rayVersion", workloads.ray_version())  # an image of another name does not tell it
    for group in (spec.get("headGroupSpec"), *spec.get("workerGroupSpecs", ())):
        for container in group["template"]["spec"]["containers"] if group else ():
            container["resources"]["requests"] = {"cpu": "100m", "memory": "500Mi"}
    if "runtimeEnvYAML" in main["spec"]:
        environment = yaml.safe_load(main["spec"]["runtimeEnvYAML"])
        del environment["pip"]
        main["spec"]["runtimeEnvYAML"] = yaml.safe_dump(environment)
    for code in (each["data"] for each in parts if "sample_code.py" in each.get("data", ())):
        kept = (line for line in code["sample_code.py"].splitlines() if "__version__" not in line)
        code["sample_code.py"] = "\n".join(kept)
    (folder / name).write_text(yaml.safe_dump_all(parts))
    return folder / name, [each for each in parts if each is not main]


@pytest.mark.parametrize(
    "name", [each if "sidecar" in each else pytest.param(each, marks=pytest.mark.long) for each in JOBS]
)
def test_rayjob_sample_runs_to_its_end(tmp_path, namespace, name):
    path, _ = for_here(name, "RayJob", tmp_path)
    if "existing" in name:
        cluster, _ = for_here("ray-cluster.sample.yaml", "RayCluster", tmp_path)
        done = run("raykube", "cluster", "create", "ray-cluster-kuberay", "-n", namespace, "--on", str(cluster))
        assert done.returncode == 0, done.stderr
    done = run("raykube", "job", "submit", "-n", namespace, "-f", str(path), timeout=180)
    assert done.returncode == 0, done.stderr
    assert JOBS[name] in done.stdout


@pytest.mark.long
@pytest.mark.parametrize("name", CLUSTERS)
def test_job_runs_on_the_raycluster_of_a_sample(tmp_path, namespace, name):
    path, beside = for_here(name, "RayCluster", tmp_path)
    if beside:
        kubectl.apply(*beside, namespace=namespace)
    words = ("--name", "a", "--working-dir", str(tmp_path), "--", "python", "-c", SIX_TIMES_SEVEN)
    done = run("raykube", "job", "submit", "-n", namespace, "--on", str(path), *words, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "6 * 7 = 42" in done.stdout
