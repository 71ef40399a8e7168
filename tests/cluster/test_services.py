"""Services on real pods: made, asked, changed in place, refused, scaled, taken down."""

import json
import shutil
import signal
import subprocess
from contextlib import contextmanager

import httpx
import pytest
import yaml

import raykube as rk
from raykube import api
from raykube.backends.kuberay.forward import Forward
from raykube.backends.kuberay.serve import servestates
from raykube.errors import Conflict
from tests.cluster import kubectl, namespaces, operator, workloads
from tests.cluster.shell import until
from tests.saying import SAY, counted, once, until_said
from tests.support import BIN, ROOT, run

pytestmark = pytest.mark.cluster

WAIT_S = 180

HELLO = (
    SAY
    + """
from ray import serve

VERSION = "1"


@serve.deployment
class Model:
    def __init__(self, word):
        self.word = word
        say("built " + VERSION)

    async def __call__(self, request):
        if what := request.query_params.get("say"):
            say(what)
        return f"{self.word} {VERSION}"


def app(args):
    if unknown := set(args) - {"word"}:
        raise ValueError(f"args {sorted(unknown)} are not known")
    return Model.bind(args.get("word", "hello"))
"""
)


@contextmanager
def at(namespace, folder):
    """Be a user of least privilege, in a folder of its own, for as long as the block runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", namespaces.least(namespace))
        patch.chdir(folder)
        yield


@pytest.fixture(scope="module")
def project(cluster, tmp_path_factory):  # noqa: ARG001 - it must be up
    """Give a namespace and a folder with the app and a cluster that is a head alone."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "app").mkdir()
    (folder / "app" / "hello.py").write_text(HELLO)
    (folder / "cluster-configs").mkdir()
    (folder / "cluster-configs" / "serve.yaml").write_text(yaml.safe_dump(workloads.head_alone(storage=False)))
    with namespaces.fresh("serve") as name, at(name, folder):
        yield name, folder


def app(**fields):
    return rk.App(**{"name": "hello", "import_path": "hello:app", "ray_actor_options": {"num_cpus": 0.5}} | fields)


def deploy(folder, *apps):
    """Deploy applications as the service ``hello``."""
    service = rk.Service(name="hello", apps=apps or (app(),), working_dir=folder / "app")
    return rk.deploy(service, "serve", timeout_s=WAIT_S)


@pytest.fixture(scope="module")
def hello(project):
    """Deploy the app and return its endpoint."""
    return deploy(project[1])


def test_change_of_code_is_applied_in_place_without_a_failed_request(project, hello):
    namespace, folder = project
    before = sorted(pod["metadata"]["uid"] for pod in workloads.pods(namespace, "head"))
    with workloads.load(namespace, hello.url, clients=2) as load:
        (folder / "app" / "hello.py").write_text(HELLO.replace('VERSION = "1"', 'VERSION = "2"'))
        deploy(folder)
        asked = f"import urllib.request; print(urllib.request.urlopen({hello.url!r}).read().decode())"
        assert kubectl.kubectl("exec", "load", "--", "python", "-c", asked, namespace=namespace) == "hello 2\n"
    assert load.failed == []
    assert set(load.answers) == {"hello 1", "hello 2"}
    assert sorted(pod["metadata"]["uid"] for pod in workloads.pods(namespace, "head")) == before


@pytest.mark.usefixtures("hello")
def test_same_plan_again_changes_nothing(project):
    namespace, folder = project
    before = kubectl.get("rayservice", "hello", namespace)["metadata"]["generation"]
    deploy(folder)
    assert kubectl.get("rayservice", "hello", namespace)["metadata"]["generation"] == before


@pytest.mark.usefixtures("hello")
@pytest.mark.parametrize("change", ["applications: [", "applications: [{import_path: 'hello:app', args: {word: bye}}]"])
def test_same_plan_again_puts_right_what_somebody_changed(project, change):
    namespace, folder = project
    before = kubectl.get("rayservice", "hello", namespace)["spec"]
    patch = json.dumps({"spec": {"serveConfigV2": change}})
    kubectl.kubectl("patch", "rayservice", "hello", "--type=merge", "-p", patch, namespace=namespace)
    assert deploy(folder).status().state == "RUNNING"
    assert kubectl.get("rayservice", "hello", namespace)["spec"] == before


@pytest.mark.usefixtures("hello")
def test_service_is_found_by_name_from_another_process():
    done = run("raykube", "service", "status", "--on", "serve", "--json", "hello")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "RUNNING"


def test_service_is_listed_and_its_log_read(hello):
    assert rk.attach("hello", "serve") == hello
    assert [each.name for each in api.endpoints("serve")] == ["hello"]
    for follow in (False, True):
        assert any("Importing application 'hello'" in line for line in hello.logs(follow=follow))


@contextmanager
def forwarded():
    """Give an address of this machine that leads to the service ``hello``."""
    words = [str(BIN / "raykube"), "service", "forward", "--on", "serve", "hello"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.send_signal(signal.SIGTERM)


@pytest.mark.usefixtures("hello")
def test_forwarded_port_leads_to_the_service():
    with forwarded() as address:
        assert httpx.get(address, timeout=30, trust_env=False).text.startswith("hello ")


def test_log_of_a_service_shows_all_that_its_replicas_write_once(project, hello):
    _, folder = project
    (folder / "app" / "hello.py").write_text(HELLO.replace('VERSION = "1"', 'VERSION = "logged"'))
    deploy(folder)  # the replica of before has ended
    lines = hello.logs(follow=True)
    with forwarded() as address:
        assert httpx.get(address, params={"say": "asked"}, timeout=30, trust_env=False).text == "hello logged"
        followed = until_said(lines, "asked")
        httpx.get(address, params={"say": "later"}, timeout=30, trust_env=False)
        followed += until_said(lines, "later")
    for shown in (followed, list(hello.logs())):
        for what in ("built logged", "asked", "later"):
            assert counted(shown, what) == once(what)
        assert any("built" in line and "built logged" not in line for line in shown)


def test_apps_that_cannot_be_built_fail_in_serves_own_words_and_are_mended_by_the_next_deploy(project, hello):
    _, folder = project
    with pytest.raises(rk.BackendError, match="the update of hello failed: DeployFailed"):
        deploy(
            folder,
            rk.App(name="hello", import_path="hello:nothing"),
            rk.App(name="misspelt", import_path="hello:app", args={"wrod": "bye"}, route_prefix="/misspelt"),
        )
    words = ("module 'hello' has no attribute 'nothing'", "ValueError: args ['wrod'] are not known")
    until(lambda: all(each in hello.why().message for each in words), "both have failed", 30)
    told = run("raykube", "service", "why", "--on", "serve", "hello").stdout
    assert all(each in told for each in words)
    deploy(folder, app(args={"word": "bye"}))
    assert hello.status().state == "RUNNING"


@pytest.mark.usefixtures("hello")
def test_name_of_a_run_is_a_conflict(project):
    namespace, folder = project
    spec = {"entrypoint": "true", "suspend": True, "shutdownAfterJobFinishes": True}
    spec["rayClusterSpec"] = workloads.head_alone(storage=False)["spec"]
    metadata = {"name": "taken", "namespace": namespace}
    kubectl.apply({"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec})
    with pytest.raises(Conflict, match="'taken' is taken by a run"):
        rk.deploy(rk.Service(name="taken", apps=(app(),), working_dir=folder / "app"), "serve")
    kubectl.deleted("rayjob", "taken", namespace)


def test_deleted_service_leaves_nothing(project, hello):
    namespace, _ = project
    hello.delete()
    assert api.endpoints("serve") == []

    def left():
        kinds = "rayservices,rayclusters,configmaps,services,pods"
        names = {each["metadata"]["name"] for each in kubectl.listed(kinds, namespace)}
        return {name for name in names if name.startswith("hello")}

    until(lambda: not left(), "nothing of the service is left", 90)


def scaling():
    """Return a cluster of a head and none to two workers that come and go with the load."""
    documents = [*yaml.safe_load_all(workloads.manifest("rayservice", UPGRADE="{}", VERSION="1", MAX_REPLICAS=2))]
    spec = json.loads(json.dumps(documents[1]["spec"]["rayClusterConfig"]))  # without anchors that are shared
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        pod["terminationGracePeriodSeconds"] = workloads.GRACE_S
        pod["volumes"] = [{"name": "shared", "persistentVolumeClaim": {"claimName": "shared"}}]
        pod["containers"][0]["volumeMounts"] = [{"name": "shared", "mountPath": "/shared"}]
        tracking = {"name": "MLFLOW_TRACKING_URI", "value": "http://mlflow.mlflow.svc:5000"}
        pod["containers"][0]["env"] = [tracking, pod["containers"][0]["env"][-1]]
    return ray_cluster("scaling", spec)


def training():
    """Return a cluster of a head alone that trains, with the same volume and tracking server."""
    spec = scaling()["spec"]
    del spec["workerGroupSpecs"], spec["enableInTreeAutoscaling"], spec["autoscalerOptions"]
    spec["headGroupSpec"]["rayStartParams"] = {"num-cpus": "2"}
    return ray_cluster("training", spec)


def ray_cluster(name, spec):
    metadata = {"name": name, "annotations": {"raykube.io/storage": "/shared"}}
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata, "spec": spec}


@pytest.fixture
def mission(namespace, tmp_path):
    """Give a namespace with a volume, and a folder with the project's jobs and two clusters."""
    operator.wait_mlflow()
    kubectl.apply(workloads.manifest("claim"), namespace=namespace)
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "cluster-configs").mkdir()
    for manifest in (scaling(), training()):
        path = tmp_path / "cluster-configs" / f"{manifest['metadata']['name']}.yaml"
        path.write_text(yaml.safe_dump(manifest))
    with at(namespace, tmp_path):
        yield namespace


def trained():
    """Train digits on the cluster and return the registered model's URI."""
    job = rk.Job.module("jobs.digits", "--epochs", 3, name="train", keep_cluster_s=0)
    ended = rk.submit(job, "training").wait(timeout_s=WAIT_S)
    return ended.result().model_uri


def right_of_fifty(endpoint):
    """Return how many of fifty digits a service reads."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    body = {"instances": (digits.images[:50] / 16).tolist()}
    kube = endpoint.backend.kube
    with Forward(kube, servestates.serving_cluster(kube.get("RayService", endpoint.name)), remote="serve") as there:
        found = httpx.post(there.address, json=body, timeout=60, trust_env=False).json()["predictions"]
    return sum(a == b for a, b in zip(found, digits.target[:50], strict=True))


@pytest.mark.long
def test_registered_model_is_served_and_scales_from_one_pod_to_two_and_back(mission):
    quick = {"target_ongoing_requests": 0.3, "upscale_delay_s": 1, "downscale_delay_s": 5, "look_back_period_s": 2}
    app = rk.App(
        name="digits",
        import_path="jobs.digits_app:app",
        model=trained(),
        autoscaling_config={"min_replicas": 1, "max_replicas": 2, **quick},
        ray_actor_options={"num_cpus": 1},
    )
    endpoint = rk.deploy(rk.Service(name="digits", apps=(app,)), "scaling", timeout_s=WAIT_S)
    assert right_of_fifty(endpoint) >= 45

    def workers_are(count):
        ready = [*filter(kubectl.ready, workloads.pods(mission, "worker"))]
        return len(ready) == count and f"({count} replica" in endpoint.status().detail

    assert workers_are(1)
    with workloads.load(mission, endpoint.url, clients=8) as load:
        workloads.until_or_explained(lambda: workers_are(2), "two workers serve", mission, 90)
    assert load.failed == []
    workloads.until_or_explained(lambda: workers_are(1), "one worker is left", mission, 90)
    assert right_of_fifty(endpoint) >= 45
    endpoint.delete()
