"""What doctor makes of what a cluster told it."""

import compileall
import json
import re
import sys
import time

import pytest

from raykube.backends.kuberay import quotas
from raykube.backends.kubernetes.kubeapi import _PATHS, Kube
from raykube.cluster import Cluster
from raykube.doctor import kuberay, machine, named, rights, server
from raykube.errors import Unreachable
from tests.servers import Quiet, kubernetes

CONTAINER = {"image": "quay.io/kuberay/operator:v1.6.2"}
NOW = 1_000_000_000.0
THEN = "2001-09-09T01:46:00Z"  # 40 s before


def settings(**container):
    return [*kuberay.settings(CONTAINER | container, "deployment/kuberay-operator -n ray-system", "team")]


def test_settings_that_cost_time_are_named_with_what_they_cost():
    checks = settings()
    assert [check.ok for check in checks] == [None, None]
    assert "3 to 12 s" in checks[0].found
    assert "kubectl set env deployment/kuberay-operator -n ray-system" in checks[0].next_step


def test_settings_that_cost_nothing_are_not_named():
    env = [{"name": "ENABLE_INIT_CONTAINER_INJECTION", "value": "false"}]
    assert settings(env=env, args=["--reconcile-concurrency", "10"]) == []
    assert settings(env=env, args=["--reconcile-concurrency=10"]) == []


def test_operator_that_watches_other_namespaces_is_a_fault():
    (check,) = [each for each in settings(args=["-watch-namespace=a,b"]) if each.ok is False]
    assert "only a, b" in check.found
    assert not [each for each in settings(args=["--watch-namespace=a,team"]) if each.ok is False]


def test_kinds_that_are_missing_are_named():
    told = {"resources": [{"name": "rayjobs"}, {"name": "rayclusters"}]}
    assert kuberay.kinds(told).ok is False
    assert "rayservices" in kuberay.kinds(told).found


@pytest.mark.parametrize(
    ("lease", "alive"),
    [
        ({"holderIdentity": "a", "renewTime": THEN}, True),
        ({"holderIdentity": "", "renewTime": THEN}, False),
        ({"holderIdentity": "a", "renewTime": "2001-09-09T01:40:00.000000Z"}, False),
    ],
)
def test_lease_tells_whether_the_operator_lives(lease, alive):
    assert kuberay.leased(lease, NOW).ok is alive


def test_object_without_a_status_tells_that_no_operator_works():
    thing = {"metadata": {"name": "a", "creationTimestamp": THEN}, "spec": {}}
    assert kuberay.noticed([thing], NOW).ok is False
    assert kuberay.noticed([thing], NOW - 30).ok is None
    assert kuberay.noticed([thing | {"spec": {"suspend": True}}], NOW).ok is None
    works = kuberay.noticed([thing | {"status": {"state": "ready"}}], NOW)
    assert (works.ok, "an administrator sees it" in works.next_step) == (None, True)


@pytest.mark.parametrize(("ahead", "ok"), [(0, True), (4, True), (-4, True), (7, False), (-3600, False)])
def test_clock_is_compared_with_the_servers(ahead, ok):
    found = server.clock("Sun, 09 Sep 2001 01:46:40 GMT", NOW + 0.5 + ahead)
    assert found.ok is ok
    assert ("ahead of" if ahead > 0 else "behind") in found.found or ok


def test_certificate_that_is_not_trusted_is_told_apart_from_no_answer():
    refused = Unreachable("no answer", why="ConnectError: [SSL: CERTIFICATE_VERIFY_FAILED] unable to get local issuer")
    assert "certificate-authority-data" in server.unreachable(refused).next_step
    assert "VPN" in server.unreachable(Unreachable("no answer", why="ConnectTimeout: ")).next_step


class Behind(Quiet):
    """An API server whose clock is 90 s behind this one, and whose KubeRay has just renewed its lease."""

    def date_time_string(self, timestamp=None):
        return super().date_time_string(timestamp or time.time() - 90)

    def do_GET(self):  # noqa: N802
        renewed = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(time.time() - 90))
        self.answer(
            *self.server.answers.get(
                self.path.partition("?")[0].rpartition("/")[2],
                (
                    200,
                    {
                        "items": [
                            {
                                "metadata": {"name": "a", "creationTimestamp": renewed},
                                "spec": {"holderIdentity": "a", "renewTime": renewed},
                            }
                        ]
                    },
                ),
            )
        )


@pytest.mark.parametrize("answers", [{}, {"leases": (403, {"kind": "Status", "code": 403, "message": "no"})}])
def test_operator_is_judged_by_the_servers_clock(answers):
    with kubernetes(Behind) as api:
        api.answers = answers
        assert kuberay._alive(Kube()).ok is not False


class Denying(Quiet):
    """An API server with a webhook that lets no job pass."""

    def do_POST(self):  # noqa: N802
        self.body()
        words = 'admission webhook "policy.test" denied the request: label team is required'
        self.answer(403, {"kind": "Status", "code": 403, "message": words})


def test_webhook_that_denies_doctors_own_job_is_no_fault_for_it_may_take_the_users():
    with kubernetes(Denying):
        (check,) = kuberay._schema(Kube())
    assert (check.name, check.ok) == ("kuberay schema", None)
    assert "webhook policy.test refused" in check.found
    assert "label team is required" in check.found
    assert "--dry-run=server" in check.next_step


PAGE = "<html><style>p {}</style><h1>Log in</h1></html>"


class Page(Quiet):
    """No API server: every path of it is what a test says."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        code, text = self.server.page
        self.send_response(code)
        self.send_header("location", "https://login.test/?state=SECRET")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.mark.parametrize(
    ("code", "text", "why"),
    [
        (200, PAGE, "HTTP 200: Log in"),
        (302, "", "HTTP 302 to https://login.test/"),
        (200, "[]", "HTTP 200: []"),
        (404, "not found", "not found"),
    ],
)
def test_address_that_is_no_api_server_is_said(code, text, why):
    with kubernetes(Page) as page:
        page.page = (code, text)
        *_, check = server.checks(Kube())
        told = f"http://127.0.0.1:{page.server_port} is no Kubernetes API server: {why}"
        assert (check.name, check.ok, check.found) == ("server", False, told)
        if code < 400:
            with pytest.raises(Unreachable, match="is no Kubernetes API server"):
                Kube().listed("RayJob")


def test_missing_rights_are_told_a_resource_at_a_time_with_the_rule_to_ask_for():
    rule = rights.Rule("ray.io", ("rayjobs",), ("get", "create"), "to run")
    (check,) = rights.lacking([(rule, "rayjobs", "get"), (rule, "rayjobs", "create")], "jane")
    assert (check.name, check.ok) == ("right rayjobs", False)
    assert check.found == "jane may not get, create; needed to run"
    assert '{apiGroups: ["ray.io"], resources: ["rayjobs"], verbs: ["get", "create"]}' in check.next_step


class Granting(Quiet):
    """An API server on which a pod's account may do all but what a test says, and which has these API groups."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        self.answer(200, {"groups": [{"name": name} for name in self.server.groups]})

    def do_POST(self):  # noqa: N802
        asked = json.loads(self.body()).get("spec", {}).get("resourceAttributes", {})
        told = {"allowed": (asked.get("group"), asked.get("resource")) not in self.server.denied}
        self.answer(201, {"status": told | {"userInfo": {"username": "system:serviceaccount:team:runner"}}})


KUEUE = [("kueue.x-k8s.io", "workloads"), ("visibility.kueue.x-k8s.io", "localqueues")]


@pytest.mark.parametrize(
    ("groups", "denied", "found"),
    [
        ([], KUEUE, {"rights": True, "right workloads": None, "right localqueues/pendingworkloads": None}),
        (KUEUE[0][:1], KUEUE, {"right workloads": False, "right localqueues/pendingworkloads": None}),
        ([], [*KUEUE[:1], ("", "events")], {"right events": False, "right workloads": None}),
        ([], [], {"rights": True}),
    ],
)
def test_rights_of_kueue_are_no_fault_where_there_is_no_kueue(groups, denied, found):
    with kubernetes(Granting) as api:
        api.groups, api.denied = groups, denied
        checks = [*rights.checks(Kube())]
    assert {check.name: check.ok for check in checks} == found
    lacking = [check.found for check in checks if check.name != "rights"]
    assert all(words.startswith("system:serviceaccount:team:runner may not ") for words in lacking)


def test_pod_without_a_kubeconfig_is_said_to_ask_as_its_service_account(monkeypatch):
    with kubernetes(Behind) as api:
        api.answers = {"version": (200, {"major": "1", "minor": "34", "gitVersion": "v1.34.4"})}
        kube = Kube()
        monkeypatch.setenv("KUBECONFIG", "none")
        assert next(server.checks(kube)).found == "none; asks as this pod's service account, namespace default"


def pod(**fields):
    return {"template": {"spec": {"containers": [{"image": "ray:1", **fields}]}}}


def test_references_are_found_in_volumes_and_environment():
    container = {
        "env": [
            {"name": "A", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "a"}}},
            {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "maybe", "key": "b", "optional": True}}},
        ],
        "envFrom": [{"configMapRef": {"name": "words"}}],
    }
    head = pod(**container)
    head["template"]["spec"]["volumes"] = [
        {"name": "v", "persistentVolumeClaim": {"claimName": "shared"}},
        {"name": "w", "secret": {"secretName": "tls"}},
        {"name": "x", "emptyDir": {}},
        {"name": "y", "projected": {"sources": [{"secret": {"name": "more"}}, {"configMap": {"name": "files"}}]}},
    ]
    assert named.references({"headGroupSpec": head}) == {
        ("PersistentVolumeClaim", "shared"),
        *(("Secret", name) for name in ("keys", "tls", "more")),
        *(("ConfigMap", name) for name in ("words", "files")),
    }
    assert {kind for kind, _ in named.references({"headGroupSpec": head})} <= _PATHS.keys()


class Secrets(Quiet):
    """An API server that has the Secret `there`, and no other."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        name = self.path.rpartition("/")[2]
        if name in ("there", "resourcequotas"):
            return self.answer(200, {"kind": "Secret", "items": []})
        about = {"kind": "secrets", "name": name}
        return self.answer(404, {"kind": "Status", "code": 404, "message": "not found", "details": about})


def test_pull_secret_that_is_missing_is_told_and_is_no_fault_for_nodes_pull_without_it():
    head = pod(env=[{"name": "A", "valueFrom": {"secretKeyRef": {"name": "both", "key": "a"}}}])
    head["template"]["spec"]["imagePullSecrets"] = [{"name": name} for name in ("regcred", "there", "both", "")]
    cluster = Cluster({"metadata": {"name": "c"}, "spec": {"headGroupSpec": head}}, "a file", "c")
    with kubernetes(Secrets):
        found = {each.name: each for each in named.checks(Kube(), cluster) if each.name.startswith("secret ")}
    assert {name: each.ok for name, each in found.items()} == {
        "secret regcred": None,
        "secret there": True,
        "secret both": False,
    }
    assert "nodes pull images without it" in found["secret regcred"].found
    assert "kubectl -n default get secrets" in found["secret regcred"].next_step


CLUSTER = {
    "headGroupSpec": pod(resources={"requests": {"cpu": "500m", "memory": "1Gi"}}),
    "workerGroupSpecs": [
        {
            "groupName": "a",
            "replicas": 2,
            **pod(resources={"limits": {"cpu": 2, "memory": "2Gi", "nvidia.com/gpu": "1"}}),
        },
        {"groupName": "b", "replicas": 0, "minReplicas": 0, **pod(resources={"limits": {"cpu": 99}})},
    ],
}


def test_requests_of_a_cluster_are_summed_as_a_quota_counts_them():
    asked = quotas.asked(CLUSTER)
    assert (asked["pods"], asked["requests.cpu"], asked["cpu"], asked["limits.cpu"]) == (3, 4.5, 4.5, 4)
    assert asked["requests.memory"] == 5 * 2**30
    assert asked["requests.nvidia.com/gpu"] == 2


@pytest.mark.parametrize(
    ("counts", "pods"), [({"minReplicas": 2, "maxReplicas": 4}, 3), ({"maxReplicas": 1}, 2), ({"suspend": True}, 1)]
)
def test_pods_of_a_cluster_are_those_that_kuberay_makes(counts, pods):
    group = CLUSTER["workerGroupSpecs"][0]
    replicas = 0 if "minReplicas" in counts else 2
    assert quotas.asked({**CLUSTER, "workerGroupSpecs": [{**group, "replicas": replicas, **counts}]})["pods"] == pods


def test_newest_lease_counts():
    times = (NOW - 3 * 86400, NOW - 5)
    made = [time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(each)) for each in times]
    items = [{"spec": {"holderIdentity": "a", "renewTime": each}} for each in made]
    for found in (items, items[::-1]):
        assert kuberay.newest_lease(found) == items[1]["spec"]


def test_autoscaler_counts_with_what_kuberay_gives_it_where_the_manifest_does_not_say():
    asked, alone = quotas.asked({**CLUSTER, "enableInTreeAutoscaling": True}), quotas.asked(CLUSTER)
    assert asked["requests.cpu"] - alone["requests.cpu"] == 0.5
    assert asked["limits.memory"] - alone["limits.memory"] == 512 * 2**20


def quota(hard, **spec):
    used = {"requests.cpu": "1500m"}
    return {"metadata": {"name": "q"}, "spec": spec, "status": {"hard": hard, "used": used}}


def test_quota_without_room_is_a_fault_that_names_what_is_short():
    asked = quotas.asked(CLUSTER)
    short = [("q", ["requests.cpu: 4.5 asked, 3.5 left"])]
    assert list(quotas.compared([quota({"requests.cpu": "5", "pods": "10"})], asked)) == short
    assert list(quotas.compared([quota({"requests.cpu": "6", "secrets": "1"})], asked)) == [("q", [])]
    # In binary three tenths are not three times a tenth.
    exact = {"metadata": {"name": "q"}, "spec": {}, "status": {"hard": {"cpu": "300m"}, "used": {}}}
    assert list(quotas.compared([exact], {"cpu": 0.1 + 0.1 + 0.1})) == [("q", [])]
    assert list(quotas.compared([quota({"pods": "1"}, scopes=["BestEffort"])], asked)) == []


class Limited(Quiet):
    """An API server that has quotas, and lets no pod pass that does not say what it needs."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        self.answer(200, {"items": [quota({"limits.cpu": "10"}), {**quota({"pods": "9"}), "metadata": {"name": "r"}}]})

    def do_POST(self):  # noqa: N802
        self.body()
        words = 'pods "c-zk7m6" is forbidden: failed quota: q: must specify limits.cpu for: ray'
        self.answer(403, {"kind": "Status", "code": 403, "message": words})


def test_quota_that_refuses_pods_without_limits_is_a_fault_although_it_has_room():
    cluster = Cluster({"metadata": {"name": "c"}, "spec": {"headGroupSpec": pod()}}, "a file", "c")
    with kubernetes(Limited):
        refusing, roomy = named.quota(Kube(), cluster)
    assert (refusing.name, refusing.ok, refusing.found) == ("quota q", False, "must specify limits.cpu for: ray")
    assert refusing.next_step == "set resources.limits.cpu of container ray in the manifest"
    assert (roomy.name, roomy.ok) == ("quota r", True)


def test_each_resource_that_a_quota_demands_is_to_be_set_where_it_lacks():
    words = "failed quota: q: must specify cpu for: i,other; requests.memory for: ray"
    step = "set resources.requests.cpu of containers i, other and resources.requests.memory of container ray"
    assert quotas.unset(words) == ("q", words.removeprefix("failed quota: q: "), f"{step} in the manifest")
    assert quotas.unset("exceeded quota: q, requested: pods=1, used: pods=0, limited: pods=0") is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("2", 2), (0.5, 0.5), ("250m", 0.25), ("1Gi", 2**30), ("3k", 3000), ("1e3", 1000), ("x", 0), ("1.2.3", 0)],
        *[("1E", 10**18), ("2Ei", 2**61), ("1E3", 1000), ("1.5E-3", 0.0015), ("250u", 0.00025), ("500000000n", 0.5)],
        *[(".5", 0.5), ("2.", 2), ("-1", -1), ("1Q", 0)],
    ],
)
def test_quantity_is_read_as_kubernetes_writes_it(text, value):
    assert quotas.quantity(text) == pytest.approx(value)


def claim(phase, *modes):
    return {
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "shared"},
        "spec": {"accessModes": list(modes)},
        "status": {"phase": phase},
    }


@pytest.mark.parametrize(
    ("thing", "ok"),
    [
        (claim("Bound", "ReadWriteMany"), True),
        (claim("Bound", "ReadWriteOnce"), None),
        (claim("Bound", "ReadOnlyMany"), None),
        (claim("Pending", "ReadWriteMany"), None),
        (claim("Lost", "ReadWriteMany"), False),
        ({"kind": "Secret", "metadata": {"name": "shared"}}, True),
    ],
)
def test_claim_is_judged_by_its_volume(thing, ok):
    assert named.bound("claim shared", thing, "team").ok is ok


@pytest.mark.parametrize(
    ("container", "ok"),
    [
        ({"image": "registry:5000/ray:1"}, True),
        ({"image": "registry:5000/ray"}, None),
        ({"image": "ray:latest"}, None),
        ({"image": "ray:latest", "imagePullPolicy": "IfNotPresent"}, True),
        ({"image": "ray:1", "imagePullPolicy": "Always"}, None),
        ({"image": "ray:1", "imagePullPolicy": "Never"}, None),
    ],
)
def test_image_that_costs_time_or_may_be_missing_is_named(container, ok):
    (check,) = named.images({"headGroupSpec": pod(**container)})
    assert check.ok is ok
    assert ("the first pod shows whether nodes can pull it" in check.found) == bool(ok)


@pytest.mark.parametrize("image", [{}, {"image": None}, {"image": ""}])
def test_container_without_an_image_is_a_fault_that_names_it(image):
    bare = {"template": {"spec": {"containers": [{"name": "ray-head", **image}]}}}
    missing, known = named.images({"headGroupSpec": bare, "workerGroupSpecs": [pod()]})
    assert (missing.ok, known.ok) == (False, True)
    assert "'ray-head'" in missing.found


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Install a package that is not compiled, where Python may not write bytecode; return its folder."""
    (tmp_path / "heavy").mkdir()
    (tmp_path / "heavy" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path / "heavy"


def test_package_that_each_process_compiles_anew_is_named_with_the_command_that_ends_it(package):
    (check,) = machine.bytecode(["heavy", "is_not_there"])
    assert (check.ok, "compiles heavy anew, as PYTHONDONTWRITEBYTECODE" in check.found) == (None, True)
    assert check.next_step == f"{sys.executable} -m compileall -q {package.parent}"
    compileall.compile_dir(package, quiet=1)
    assert [*machine.bytecode(["heavy"])] == []


def test_package_that_the_first_import_compiles_is_not_named(package, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert package.exists()
    assert [*machine.bytecode(["heavy"])] == []


def test_gpu_that_pytorch_cannot_use_is_told_with_its_words(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()
    pytest.importorskip("torch")
    check = machine.gpus(tmp_path)
    assert check.ok is None
    assert re.match(r"PyTorch cannot use the NVIDIA GPUs: \w+", check.found)
    assert "pytorch.org" in check.next_step


def test_home_that_is_nobodys_hides_nothing_else_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYKUBE_HOME", str(tmp_path))
    sound = [check.name for check in machine.checks()]
    monkeypatch.setenv("RAYKUBE_HOME", "~no-such-user")
    found = {check.name: check for check in machine.checks()}
    assert [*found] == sound
    told = [name for name, check in found.items() if "is nobody's home folder" in check.found]
    assert told == ["state folder", "disk", "local head"]
    assert all(found[name].ok is False for name in told)


def test_machine_without_a_gpu_is_no_fault(tmp_path):
    assert (machine.gpus(tmp_path).ok, machine.gpus(tmp_path).found) == (True, "no NVIDIA GPUs")


@pytest.mark.parametrize(
    ("share", "ok", "found"), [("1", None, "is to have 1"), ("all", False, "which is not 0, a part")]
)
def test_share_of_gpus_that_are_not_there_is_told(tmp_path, monkeypatch, share, ok, found):
    monkeypatch.setenv("RAYKUBE_GPUS_PER_WORKER", share)
    check = machine.gpus(tmp_path)
    assert check.ok is ok
    assert found in check.found


@pytest.mark.parametrize(
    ("share", "ok", "found"),
    [("0", None, "no training on this machine"), ("1", True, "a worker has 1"), ("4", False, "is to have 4")],
)
def test_share_of_the_gpus_that_there_are_is_told(monkeypatch, share, ok, found):
    monkeypatch.setattr(machine, "_cuda", lambda _: (2, ""))
    monkeypatch.setenv("RAYKUBE_GPUS_PER_WORKER", share)
    check = machine.gpus()
    assert (check.ok, check.found.startswith("2 NVIDIA GPUs"), found in check.found) == (ok, True, True)
