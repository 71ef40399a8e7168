"""As whom raykube comes to a real API server, and by which way: from inside a pod, and by what a kubeconfig may say."""

import base64
import io
import json
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import raykube as rk
from raykube.backends.kuberay.forward import Forward
from raykube.backends.kubernetes.kubeapi import Kube
from raykube.errors import Forbidden
from tests.cluster import kubectl, layout, namespaces, workloads
from tests.cluster.shell import until
from tests.cluster.test_services import HELLO
from tests.servers import Proxy, serving

pytestmark = pytest.mark.cluster
RAYKUBE = "from raykube.cli import main; main()"


def packed():
    """Return the package as a zip: an image needs what raykube depends on, and not raykube itself."""
    found = io.BytesIO()
    with zipfile.ZipFile(found, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in (layout.PROJECT / "raykube").rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                archive.write(path, path.relative_to(layout.PROJECT))
    return base64.b64encode(found.getvalue()).decode()


def pod(name, command, **spec):
    """Return a pod with the package on its path and a manifest of a head alone beside it."""
    mounted = {"volumeMounts": [{"name": "raykube", "mountPath": "/raykube"}]}
    container = {"name": "main", "image": layout.RAY_IMAGE, "imagePullPolicy": "IfNotPresent", **mounted}
    container |= {"command": ["sh", "-c", f"python -m zipfile -e /raykube/raykube.zip /tmp/site && {command}"]}
    container |= {"env": [{"name": "PYTHONPATH", "value": "/tmp/site"}]}
    container |= {
        "readinessProbe": {"exec": {"command": ["test", "-e", "/tmp/site/raykube/api.py"]}, "periodSeconds": 1}
    }
    volumes = [{"name": "raykube", "configMap": {"name": "raykube"}}]
    spec = {"terminationGracePeriodSeconds": 1, "containers": [container], "volumes": volumes, **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


@pytest.fixture
def inside(namespace):
    """Return a function that types a raykube command in a pod, whose service account has the least rights."""
    namespaces.least(namespace)
    files = {"binaryData": {"raykube.zip": packed()}, "data": {"house.yaml": yaml.safe_dump(workloads.head_alone())}}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "raykube"}, **files}
    made = pod("inside", "sleep 600", serviceAccountName="least")
    kubectl.apply(config, workloads.manifest("claim"), made, namespace=namespace)
    workloads.running(namespace, "inside")

    def type_(*words, **options):
        # kubectl takes -- for itself, once.
        return kubectl.kubectl("exec", "inside", "--", "python", "-c", RAYKUBE, *words, namespace=namespace, **options)

    return type_


def test_pod_without_a_kubeconfig_is_its_service_account_in_its_own_namespace(inside, namespace):
    told = inside("doctor", "--on", "/raykube/house.yaml", check=False)
    assert [line for line in told.splitlines() if line.startswith("FAIL")] == []
    assert f"none; asks as this pod's service account, namespace {namespace}" in told
    on = ("--on", "/raykube/house.yaml")
    assert (
        inside(
            "job", "submit", *on, "--working-dir", ".", "--name", "a", "--no-wait", "--", "python", "-c", "print(6 * 7)"
        )
        == "a\n"
    )
    inside("job", "wait", "a", *on)
    assert "42" in inside("job", "logs", "a", *on).splitlines()
    assert kubectl.get("rayjob", "a", namespace) is not None
    assert inside("job", "delete", "a", *on) == "a deleted\n"
    assert kubectl.get("rayjob", "a", namespace) is None


SERVED = """
import pathlib, urllib.request
import raykube as rk

app = pathlib.Path("/tmp/app/hello.py")
app.parent.mkdir()
app.write_text({hello!r})
apps = (rk.App(name="hello", import_path="hello:app", ray_actor_options={{"num_cpus": 0.5}}),)
endpoint = rk.deploy(rk.Service(name="hello", apps=apps, working_dir=app.parent), "/raykube/house.yaml", timeout_s=180)
# In less than a second, after which a lost connection would be tried again.
print(urllib.request.urlopen(endpoint.url, timeout=0.9).read().decode())
"""


@pytest.mark.usefixtures("inside")
def test_service_answers_the_pod_that_deployed_it_at_once(namespace):
    ask = ("exec", "inside", "--", "python", "-c", SERVED.format(hello=HELLO))
    assert kubectl.kubectl(*ask, namespace=namespace, timeout_s=240).splitlines()[-1] == "hello 1"


def test_submit_without_rights_is_forbidden_and_names_the_rule_to_ask_for(namespace, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", namespaces.nobody(namespace))
    (tmp_path / "house.yaml").write_text(workloads.manifest("house"))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "hello.py").write_text("print('hello')\n")
    job = rk.Job(entrypoint="python hello.py", name="a", working_dir=tmp_path / "code")
    with pytest.raises(Forbidden, match="this user may not create rayjobs") as caught:
        rk.submit(job, rk.Cluster.load(tmp_path / "house.yaml"))
    user = f'User "system:serviceaccount:{namespace}:nobody"'
    assert f'{user} cannot create resource "rayjobs" in API group "ray.io"' in caught.value.why
    rule = '{apiGroups: ["ray.io"], resources: ["rayjobs"], verbs: ["create"]}'
    assert rule in caught.value.next_step
    assert [kubectl.get(*each, namespace) for each in (("rayjob", "a"), ("configmap", "a-code"))] == [None, None]


def signed(name):
    """Return a certificate that the cluster signs for a user, and its key, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    asked = base64.b64encode(request.public_bytes(serialization.Encoding.PEM)).decode()
    spec = {"request": asked, "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"]}
    kind = {"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest"}
    kubectl.apply({**kind, "metadata": {"name": name}, "spec": {**spec, "expirationSeconds": 600}})
    try:
        kubectl.kubectl("certificate", "approve", name)
        given = until(lambda: kubectl.get("csr", name)["status"].get("certificate"), f"{name} has a certificate", 30)
    finally:
        kubectl.kubectl("delete", "csr", name)
    plain = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    return {"clientCertificateData": base64.b64decode(given).decode(), "clientKeyData": private.decode()}


@pytest.fixture
def proxy(namespace, tmp_path, monkeypatch):
    """Give a proxy that alone knows the way to the API server, and a user of least rights who knows just the proxy."""
    config = yaml.safe_load(Path(namespaces.least(namespace)).read_text())
    subject = {"kind": "User", "name": namespace, "apiGroup": "rbac.authorization.k8s.io"}
    change = {"subjects": [subject]}
    kubectl.kubectl("patch", "rolebinding", "least", "--type=merge", "-p", json.dumps(change), namespace=namespace)
    (tmp_path / "answer").write_text(json.dumps({"status": signed(namespace)}))
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": "cat", "args": [str(tmp_path / "answer")]}
    with serving(Proxy) as server:
        cluster = config["clusters"][0]["cluster"]
        there = urlsplit(cluster["server"])
        server.names["api.invalid"] = there.hostname
        cluster |= {"server": f"https://api.invalid:{there.port or 443}", "tls-server-name": there.hostname}
        cluster["proxy-url"] = f"http://127.0.0.1:{server.server_port}"
        config["users"][0]["user"] = {"exec": plugin}
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        yield server


HEAD = {"ray.io/cluster": "a", "ray.io/node-type": "head"}


def test_port_is_carried_by_a_proxy_for_the_user_of_a_plugins_certificate(proxy, namespace):
    head = yaml.safe_load(workloads.manifest("sleeper", NAME="a-head", LIMITS="{memory: 32Mi}"))
    head["metadata"]["labels"] = HEAD
    head["spec"]["containers"][0]["command"] = ["httpd", "-f", "-p", "8265", "-h", "/etc"]
    kubectl.apply(head, namespace=namespace)
    workloads.running(namespace, "a-head")
    kube = Kube()
    assert [pod["metadata"]["name"] for pod in kube.listed("Pod")] == ["a-head"]
    assert not kube.may("list", "nodes")
    with Forward(kube, "a") as there:
        assert "small" in httpx.get(f"{there.address}/passwd", trust_env=False).text
    assert {where.partition(":")[0] for where in proxy.asked} == {"api.invalid"}
