"""What any Kubernetes with KubeRay does, from raw manifests: if this fails, look at the cluster and not at raykube."""

import base64
import io
import json
import urllib.request
import zipfile

import pytest

from tests.cluster import faults, kubectl, namespaces, operator, workloads
from tests.cluster.shell import ClusterError, until

pytestmark = [pytest.mark.cluster, pytest.mark.rig]


@pytest.fixture(scope="module")
def head(request):
    """Give a RayCluster of a head alone: its namespace and the head's pod."""
    request.getfixturevalue("cluster")
    with namespaces.fresh("head") as name:
        kubectl.apply(workloads.manifest("raycluster"), namespace=name)
        yield name, workloads.ready_head(name)


def test_head_pod_runs_as_user_1000_with_the_programs_that_kuberay_calls(head):
    namespace, pod = head
    script = "id -u && type -P bash wget ray python | wc -l && touch /tmp/ray/written"
    assert kubectl.kubectl("exec", pod, "--", "bash", "-c", script, namespace=namespace).split() == ["1000", "4"]


def test_log_of_a_head_pod_is_read(head):
    namespace, pod = head
    assert "Ray runtime started" in kubectl.kubectl("logs", pod, namespace=namespace)


def test_dashboard_answers_through_a_forwarded_port(head):
    namespace, pod = head
    with (
        workloads.port_forwarded(namespace, f"pod/{pod}", 8265) as port,
        urllib.request.urlopen(f"http://127.0.0.1:{port}/api/version", timeout=10) as answer,
    ):
        assert json.load(answer)["ray_version"] == workloads.ray_version()


@pytest.mark.parametrize("port", ["dashboard", "8265"])
def test_dashboard_answers_through_the_api_servers_proxy(head, port):
    namespace, _ = head
    version = json.loads(workloads.through_proxy(namespace, "ray-head-svc", port, "/api/version"))
    assert version["ray_version"] == workloads.ray_version()


def test_job_trains_on_two_pods_that_agree(namespace):
    kubectl.apply(workloads.manifest("rayjob-train"), namespace=namespace)
    job = workloads.finished_job(namespace, "train")
    line = next(line for line in workloads.job_log(namespace, job).splitlines() if "RESULT {" in line)
    result = json.loads(line.split("RESULT ", 1)[1])
    workers = {pod["metadata"]["name"] for pod in workloads.pods(namespace, "worker")}
    assert {each["host"] for each in result["everyone"]} == workers
    assert len(workers) == 2
    assert result["everyone"][0]["weights"] == result["everyone"][1]["weights"]
    assert result["backend"] == "gloo"
    assert result["loss"] < 0.1
    assert result["checkpoint"].startswith("/shared/smoke/checkpoint_")


def zipped(**modules):
    """Return a zip of modules as a ConfigMap holds it."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in modules.items():
            archive.writestr(f"{name}.py", text)
    return base64.b64encode(content.getvalue()).decode()


MAIN = """
import ray, shapes

@ray.remote
def area():
    return shapes.square(3), ray.util.get_node_ip_address()

ray.init()
found, where = ray.get(area.remote())
assert found == shapes.square(3) == 9
assert where != ray.util.get_node_ip_address(), "the task ran on the head"
"""


def test_job_imports_on_all_pods_from_a_zip_in_a_config_map(namespace):
    code = zipped(main=MAIN, shapes="def square(side):\n    return side * side\n")
    kubectl.apply(workloads.manifest("rayjob-zip", CODE=code), namespace=namespace)
    workloads.finished_job(namespace, "zip")
    with pytest.raises(ClusterError, match="asked for the client to provide credentials"):
        workloads.through_proxy(namespace, "zip-head-svc", "dashboard", "/api/jobs/")


def test_service_scales_up_and_down_under_load_without_a_failed_request(namespace):
    values = {"UPGRADE": "{type: NewCluster}", "VERSION": "1", "MAX_REPLICAS": 2}
    kubectl.apply(workloads.manifest("rayservice", **values), namespace=namespace)

    def workers_are(count):
        fact = f"{count} workers"
        workloads.until_or_explained(lambda: len(workloads.pods(namespace, "worker")) == count, fact, namespace, 120)

    def serves():
        return kubectl.ready(kubectl.get("rayservice", "slow", namespace))

    workloads.ready_head(namespace)
    workers_are(0)
    workers_are(1)
    workloads.until_or_explained(serves, "the service is ready", namespace, 120)
    with workloads.load(namespace, "http://slow-serve-svc:8000/", clients=8) as load:
        workers_are(2)
        until(lambda: all(map(kubectl.ready, workloads.pods(namespace, "worker"))), "both workers serve", 60)
        load.clients(1)
        workers_are(1)
    assert load.failed == []
    assert load.answers["1"] > 100


def claimers(namespace, *names):
    """Start pods that share a volume."""
    pods = (workloads.manifest("claimer", NAME=name) for name in names)
    kubectl.apply(workloads.manifest("claim"), *pods, namespace=namespace)
    for name in names:
        workloads.running(namespace, name)


def test_volume_written_by_one_pod_is_read_by_another(namespace):
    claimers(namespace, "writer", "reader")
    kubectl.kubectl("exec", "writer", "--", "sh", "-c", "echo kept > /shared/note", namespace=namespace)
    assert kubectl.kubectl("exec", "reader", "--", "cat", "/shared/note", namespace=namespace) == "kept\n"


@pytest.mark.usefixtures("cluster")
def test_volume_is_empty_for_the_next_who_claims_it():
    for _ in range(2):
        with namespaces.fresh("volume") as name:
            claimers(name, "writer")
            assert kubectl.kubectl("exec", "writer", "--", "ls", "/shared", namespace=name) == ""
            kubectl.kubectl("exec", "writer", "--", "touch", "/shared/left", namespace=name)


def test_mlflow_keeps_what_a_pod_tells_it(namespace):
    operator.wait_mlflow()
    kubectl.apply(workloads.manifest("mlflow-client"), namespace=namespace)
    assert "RESULT 0.5 kept" in workloads.succeeded(namespace, "client")


def test_user_without_rights_is_refused_in_the_servers_words(namespace):
    config = namespaces.nobody(namespace)
    words = rf'"system:serviceaccount:{namespace}:nobody" cannot create resource "rayclusters" in API group "ray.io"'
    with pytest.raises(ClusterError, match=words):
        kubectl.kubectl("create", "-f", "-", stdin=workloads.manifest("raycluster"), namespace=namespace, config=config)


def test_user_of_least_privilege_makes_a_cluster_and_reads_no_secret(namespace):
    config = namespaces.least(namespace)
    words = ["create", "--dry-run=server", "-f", "-"]
    kubectl.kubectl(*words, stdin=workloads.manifest("raycluster"), namespace=namespace, config=config)
    for kind in ("secrets", "nodes", "persistentvolumeclaims"):
        with pytest.raises(ClusterError, match=f'cannot list resource "{kind}"'):
            kubectl.kubectl("get", kind, namespace=namespace, config=config)


def test_admin_of_a_namespace_is_refused_outside(namespace):
    config = namespaces.admin(namespace)
    kubectl.kubectl("get", "secrets", namespace=namespace, config=config)
    with pytest.raises(ClusterError, match='cannot list resource "secrets"'):
        kubectl.kubectl("get", "secrets", namespace="kube-system", config=config)


@pytest.mark.usefixtures("cluster")
def test_quota_refuses_a_pod_that_is_too_many():
    with namespaces.fresh("quota", quota={"pods": "1"}) as name:
        kubectl.apply(workloads.manifest("sleeper", NAME="first", LIMITS="{}"), namespace=name)
        with pytest.raises(ClusterError, match="exceeded quota"):
            kubectl.apply(workloads.manifest("sleeper", NAME="second", LIMITS="{}"), namespace=name)


@pytest.fixture
def gpus(request):
    """Let a test offer GPUs, and take them back."""
    request.getfixturevalue("own_cluster")
    yield faults.offer_gpus
    faults.withdraw_gpus()


def test_pod_that_wants_a_gpu_waits_until_the_node_offers_one(namespace, gpus):
    limits = f'{{"{faults.GPU}": 1}}'
    kubectl.apply(workloads.manifest("sleeper", NAME="greedy", LIMITS=limits), namespace=namespace)

    def refused():
        conditions = kubectl.get("pod", "greedy", namespace)["status"].get("conditions", [])
        return [each["message"] for each in conditions if each["type"] == "PodScheduled" and each["status"] == "False"]

    assert f"Insufficient {faults.GPU}" in until(refused, "the scheduler spoke", 30)[0]
    gpus(8)
    workloads.running(namespace, "greedy")
