"""The add-ons do with raw manifests what they are there for."""

import json
import time
import urllib.error
import urllib.request

import pytest
import yaml

from raykube.backends.kuberay.backend import KubeRay
from raykube.backends.kubernetes.fields import seconds
from raykube.handles import Run
from tests import docs
from tests.cluster import addons, kubectl, metrics, workloads
from tests.cluster.shell import ClusterError, until
from tests.support import run as run_command

pytestmark = pytest.mark.cluster


@pytest.fixture
def addon(request):
    """Give the function that starts an add-on on this machine's own cluster."""
    request.getfixturevalue("own_cluster")
    return addons.start


@pytest.fixture
def kueue(addon):
    addon("kueue")
    yield
    addons.stop_kueue()


@pytest.fixture
def run(least):  # noqa: ARG001
    """Give a function that returns the handle of a run, as a user with the documented rights has it."""
    return lambda name: Run(name, KubeRay())


def has_come(namespace, name):
    """Whether Kueue has taken note of a job a second ago: of one second's jobs it takes any first."""
    found = [each["metadata"] for each in kubectl.listed("workloads", namespace)]
    made = [each["creationTimestamp"] for each in found if each["ownerReferences"][0]["name"] == name]
    return bool(made) and time.time() - seconds(made[0]) > 1


@pytest.mark.usefixtures("kueue")
def test_second_job_on_a_queue_for_one_waits_for_the_first_and_a_stopped_one_never_runs(namespace, run):
    with addons.queue(namespace, cpu=1, memory="1500Mi") as queue:
        for name in ("first", "second", "stopped"):
            kubectl.apply(workloads.manifest("rayjob-queued", NAME=name, QUEUE=queue), namespace=namespace)
            until(lambda name=name: has_come(namespace, name), "it has its place in the queue", 30)

        def why_not():
            """Return what the queue says of a job that it does not admit."""
            found = [each["status"].get("conditions", []) for each in kubectl.listed("workloads", namespace)]
            pending = [each for conditions in found for each in conditions if each["type"] == "QuotaReserved"]
            return [each["message"] for each in pending if each["status"] == "False"]

        assert "insufficient unused quota for memory" in until(why_not, "a job is held back", 30)[0]
        told = until(run("second").why, "why tells it", 5)
        assert told.reason == "Queued"
        assert "insufficient unused quota for memory" in told.message
        assert told.message.endswith("It is the first in the queue")
        until(run("stopped").why, "the third is queued too", 5)
        run("stopped").stop()
        jobs = [kubectl.get("rayjob", name, namespace) for name in ("first", "second")]
        assert [job["spec"].get("suspend", False) for job in jobs] == [False, True]
        first, second = (workloads.finished_job(namespace, name)["status"] for name in ("first", "second"))
        assert first["endTime"] <= second["rayJobInfo"]["startTime"]
        assert run("stopped").status().state == "STOPPED"
        assert kubectl.get("rayjob", "stopped", namespace)["spec"]["suspend"] is True


@pytest.fixture
def metrics_server(addon):
    addon("metrics")
    yield
    metrics.stop()


@pytest.mark.rig
@pytest.mark.usefixtures("metrics_server")
def test_use_of_a_pod_is_measured(namespace):
    kubectl.apply(workloads.manifest("sleeper", NAME="one", LIMITS="{}"), namespace=namespace)
    workloads.running(namespace, "one")
    assert until(lambda: metrics.usage("pods", namespace), "the pod was measured", 60).split()[0] == "one"


@pytest.mark.rig
def test_policy_of_the_guide_closes_rays_ports_to_strangers_and_leaves_raykube_and_rays_pods_theirs(
    namespace, addon, tmp_path
):
    addon("policies")
    kubectl.apply(workloads.manifest("sleeper", NAME="stranger", LIMITS="{}"), namespace=namespace)
    workloads.running(namespace, "stranger")
    kubectl.apply(docs.file("policy.yaml"), namespace=namespace)
    place = tmp_path / "two.yaml"
    place.write_text(yaml.safe_dump(workloads.head_and_worker()))

    def raykube(*words):
        who = {"KUBECONFIG": kubectl.kubeconfig(), "RAYKUBE_NAMESPACE": namespace}
        done = run_command("raykube", *words, cwd=tmp_path, timeout=240, **who)
        assert done.returncode == 0, done.stderr
        return done.stdout

    raykube("cluster", "create", "demo", "--on", str(place))
    task = "import ray; ray.init(); print(ray.get(ray.remote(num_cpus=1)(lambda: 6 * 7).remote()))"
    assert "42" in raykube("job", "submit", "--cluster", "demo", "--", "python", "-c", task)

    (head,) = workloads.pods(namespace, "head")

    def reaches(port):
        asks = f"nc -w 2 {head['status']['podIP']} {port} </dev/null"
        try:
            kubectl.kubectl("exec", "stranger", "--", "sh", "-c", asks, namespace=namespace)
        except ClusterError:
            return False
        return True

    assert not any(map(reaches, (6379, 8265, 8080)))
    kubectl.deleted("networkpolicy", "ray", namespace)
    until(lambda: reaches(8265), "without the policy a stranger reaches the dashboard", 60)


def answered():
    try:
        with urllib.request.urlopen(addons.GATEWAY, timeout=5) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, TimeoutError):
        return None


@pytest.mark.rig
def test_incremental_upgrade_under_load_fails_no_request(namespace, addon):
    addon("gateway")
    options = {"gatewayClassName": addons.GATEWAY_CLASS, "maxSurgePercent": 100}
    options |= {"stepSizePercent": 25, "intervalSeconds": 5}
    upgrade = json.dumps({"type": "NewClusterWithIncrementalUpgrade", "clusterUpgradeOptions": options})

    def deploy(version):
        text = workloads.manifest("rayservice", UPGRADE=upgrade, MAX_REPLICAS=1, VERSION=version)
        kubectl.apply(text, namespace=namespace)

    def active():
        return kubectl.get("rayservice", "slow", namespace)["status"]["activeServiceStatus"]["rayClusterName"]

    deploy(1)
    workloads.until_or_explained(lambda: answered() == "1", "version 1 is served", namespace, 240)
    before = active()
    with workloads.load(namespace, addons.GATEWAY, clients=2) as load:
        deploy(2)
        workloads.until_or_explained(lambda: active() != before, "the other cluster is active", namespace, 240)
        until(lambda: {answered() for _ in range(5)} == {"2"}, "version 2 alone is served", 60)
    assert load.failed == []
    assert set(load.answers) == {"1", "2"}


@pytest.mark.rig
def test_large_cluster_runs_on_nodes_that_do_not_exist(namespace, addon):
    addon("kwok")
    with addons.fake_nodes(20):
        kubectl.apply(workloads.manifest("raycluster-fake", WORKERS=100), namespace=namespace)

        def provisioned():
            return kubectl.ready(kubectl.get("raycluster", "large", namespace), "RayClusterProvisioned")

        workloads.until_or_explained(provisioned, "all pods are ready", namespace, 120)
        nodes = {pod["spec"]["nodeName"] for pod in workloads.pods(namespace, "worker")}
        assert nodes <= {f"fake-{number:03}" for number in range(20)}
        assert kubectl.get("raycluster", "large", namespace)["status"]["readyWorkerReplicas"] == 100
        kubectl.deleted("raycluster", "large", namespace)
        until(lambda: not kubectl.listed("pods", namespace), "no pod is left", 60)
