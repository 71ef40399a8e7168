"""Who follows a run sees all of it: over cut connections, restarts of the API server, and after the cluster is gone."""

import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

import raykube as rk
from raykube.errors import NotFound
from tests.cluster import faults, kubectl, workloads
from tests.cluster.shell import until

pytestmark = pytest.mark.cluster
CUTS, LINES = 50, 100_000


@pytest.fixture
def place(namespace, tmp_path, least):  # noqa: ARG001
    """Give a cluster that is a head alone, with a volume."""
    kubectl.apply(workloads.manifest("claim"), namespace=namespace)
    path = tmp_path / "house.yaml"
    path.write_text(yaml.safe_dump(workloads.head_alone()))
    return rk.Cluster.load(path)


@pytest.fixture
def code(tmp_path):
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "many.py").write_text(
        f"import time\nfor n in range({LINES}):\n    print('line', n, flush=True)\n"
        "    if n % 1000 == 999: time.sleep(0.25)\n"
    )
    (folder / "result.py").write_text(
        "import json, os, pathlib\nfrom raykube import wire\n"
        "folder = pathlib.Path(os.environ['RAYKUBE_STORAGE'], os.environ['RAYKUBE_RUN_NAME'])\n"
        "result = wire.Result('train', folder.name, str(folder), {'loss': 0.5})\n"
        "(folder / 'result.json').write_text(result.to_json())\nprint('kept', 'é')\n"
    )
    (folder / "sleeps.py").write_text("import time\nprint('started', flush=True)\ntime.sleep(600)\n")
    return folder


class Cutting:
    """A TCP proxy before the API server whose connections can be cut."""

    def __init__(self, host, port):
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._open |= {client, server}
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            self._end(end)

    def _end(self, end):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        self._open.discard(end)
        end.close()

    def cut(self):
        """Cut all connections that are open."""
        for end in list(self._open):
            self._end(end)

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()


@pytest.fixture
def cutting(least, monkeypatch, tmp_path):
    """Put a proxy that can be cut before the API server, for who is asked after this."""
    config = yaml.safe_load(Path(least).read_text())
    cluster = config["clusters"][0]["cluster"]
    server = urlsplit(cluster["server"])
    proxy = Cutting(server.hostname, server.port or 443)
    cluster |= {"server": f"https://127.0.0.1:{proxy.port}", "tls-server-name": server.hostname}
    path = tmp_path / "cut.kubeconfig"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(path))
    yield proxy
    proxy.close()


def test_log_loses_and_doubles_no_line_over_fifty_cuts(place, code, cutting):
    run = rk.submit(rk.Job(entrypoint="python many.py", name="many", working_dir=code), place)
    seen, cuts = [], 0
    for line in run.logs(follow=True):
        if line.startswith("line "):
            seen.append(int(line.split()[1]))
            if len(seen) % (LINES // CUTS) == 1000:
                cutting.cut()
                cuts += 1
    assert cuts == CUTS
    assert seen == list(range(LINES))
    assert run.wait(timeout_s=30).status().state == "SUCCEEDED"


def test_wait_goes_on_over_a_restart_of_the_api_server(own_cluster, place, code):  # noqa: ARG001
    run = rk.submit(rk.Job(entrypoint="python sleeps.py", name="restart", working_dir=code), place)
    seen, ended = [], threading.Event()

    def wait():
        with pytest.raises(rk.RaykubeError, match="stopped"):
            run.wait(on_event=lambda event: seen.append(event.status))
        ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: seen and seen[-1].state == "RUNNING", "it runs", 120)
    with faults.api_server_down():
        until(lambda: seen[-1].failure is not None, "the wait says that nobody answers", 10)
        assert seen[-1].failure.reason == "ApiServerUnreachable"
    until(lambda: seen[-1].failure is None and seen[-1].state == "RUNNING", "it is seen to run again", 30)
    run.stop()
    thread.join(timeout=30)
    assert ended.is_set()


TRAINS = """
import time
import raykube as rk

def loop():
    for n in range(20):
        print("tick", n, flush=True)
        time.sleep(0.25)

rk.train(loop)
"""


@pytest.fixture
def scaling(namespace, tmp_path, least):  # noqa: ARG001
    """Give a cluster with an autoscaler and one worker."""
    kubectl.apply(workloads.manifest("claim"), namespace=namespace)
    manifest = yaml.safe_load(workloads.manifest("house"))
    size = {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}
    manifest["spec"] |= {"enableInTreeAutoscaling": True, "autoscalerOptions": {"resources": size}}
    path = tmp_path / "house.yaml"
    path.write_text(yaml.safe_dump(manifest))
    return rk.Cluster.load(path).sized(workers=1)


def told_of(line):
    """Return an event's line without what changes when it comes again."""
    return re.fullmatch(r"\S+ (.*?)( \(x\d+\))?", line).group(1)


def test_rank_autoscaler_and_events_are_followed_over_cuts_and_read_after_the_end(scaling, code, cutting, namespace):
    (code / "trains.py").write_text(TRAINS)
    environ = {"RAYKUBE_TRACKING": "off"}
    run = rk.submit(rk.Job(entrypoint="python trains.py", name="trains", working_dir=code, env_vars=environ), scaling)
    seen = []
    with ThreadPoolExecutor() as pool:
        others = ("autoscaler", "events")
        autoscaler, events = (pool.submit(lambda of=of: [*run.logs(source=of, follow=True)]) for of in others)
        for line in run.logs(source="rank-0", follow=True):
            seen.append(line)
            if len(seen) % 4 == 1:
                cutting.cut()
    assert seen == [f"tick {n}" for n in range(20)] == list(run.logs(source="rank-0"))
    assert any("Starting the autoscaler" in line for line in autoscaler.result())
    assert autoscaler.result() == [*run.logs(source="autoscaler")][: len(autoscaler.result())]
    told, later = (Counter(map(told_of, lines)) for lines in (events.result(), run.logs(source="events")))
    assert told <= later  # none twice
    for what in ("CreatedRayCluster rayjob/", "CreatedWorkerPod raycluster/", "Started pod/"):
        assert any(what in line for line in told)
    for pod in workloads.pods(namespace, "worker"):
        faults.delete_pod(namespace, pod["metadata"]["name"])
    copy, away = "/shared/trains/train-1/rank-0.log", "/shared/away.log"
    words = ("exec", workloads.ready_head(namespace), "--", "mv")
    kubectl.kubectl(*words, copy, away, namespace=namespace)
    until(
        lambda: refusal(run) == "the output of rank 0 of trains is gone: it was lost with its node",
        "its node is gone",
        60,
    )
    kubectl.kubectl(*words, away, copy, namespace=namespace)
    assert list(run.logs(source="rank-0")) == seen


def refusal(run):
    """Return why the output of the first rank is not to be had; "" where it is."""
    try:
        list(run.logs(source="rank-0"))
    except rk.BackendError as error:
        return error.what
    return ""


SUBMIT = """
import os, signal, sys
import raykube as rk
from raykube.backends.kuberay.runs import jobs
real = jobs.Kube.create
def create(self, thing, **options):
    made = real(self, thing, **options)
    os.kill(os.getpid(), signal.SIGKILL)  # the answer to the first request is never read
jobs.Kube.create = create
job = rk.Job(entrypoint="python result.py", name="lost", working_dir=sys.argv[1], keep_cluster_s=0)
rk.submit(job, rk.Cluster.load(sys.argv[2]))
"""


def test_submit_whose_client_was_killed_is_finished_by_the_next_and_its_log_and_result_outlive_the_cluster(
    place, code, namespace
):
    killed = subprocess.run([sys.executable, "-c", SUBMIT, str(code), place.source], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert kubectl.get("configmap", "lost-code", namespace) is None
    run = rk.submit(rk.Job(entrypoint="python result.py", name="lost", working_dir=code, keep_cluster_s=0), place)
    run.wait(timeout_s=120)
    assert len(kubectl.listed("rayjobs", namespace)) == 1
    until(lambda: not workloads.pods(namespace, "head"), "the cluster is gone", 120)
    assert "kept é" in list(run.logs())
    assert run.result().metrics == {"loss": 0.5}
    assert run.status().state == "SUCCEEDED"
    run.delete()
    with pytest.raises(NotFound):
        run.status()
    until(lambda: kubectl.get("configmap", "lost-code", namespace) is None, "nothing is left", 30)
