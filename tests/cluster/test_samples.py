"""KubeRay's own sample manifests go through raykube, as far as the API server's strict validation."""

from contextlib import nullcontext

import pytest
import yaml

import raykube as rk
from raykube import api
from raykube.cli import args
from raykube.errors import ConfigError
from tests.cluster import binaries, layout

pytestmark = pytest.mark.cluster

#: What raykube refuses, each with its reason: the run would hang, or its Ray would take orders from everybody.
REFUSED = {
    "ray-cluster-label-selector.yaml": "spec.rayVersion: is required",  # an image whose tag is no version
    "ray-cluster.kubernetes.auth.yaml": "enableK8sTokenAuth: KubeRay refuses it for a RayJob",
    "ray-cluster.verl.yaml": "2.43.0 knows no tokens",
}


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


def test_rayjob_samples_pass_strict_validation_as_they_are():
    found = list(samples("RayJob"))
    for path in found:
        plan = api.plan_manifest(args.manifest_of(path), rk.Cluster.load("kubernetes"))
        api.check(plan)
    assert len(found) >= 20


def test_raycluster_samples_are_planned_for_or_refused_with_a_reason(tmp_path):
    (tmp_path / "a.py").write_text("print(1)\n")
    job = rk.Job(entrypoint="python a.py", name="sample", working_dir=tmp_path)
    found = list(samples("RayCluster"))
    for path in found:
        expected = pytest.raises(ConfigError, match=REFUSED[path.name]) if path.name in REFUSED else nullcontext()
        with expected:
            api.check(rk.plan(job, rk.Cluster.load(path)))
    assert len(found) >= 35
