"""The pod that reads and writes a storage."""

import copy
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from urllib.parse import parse_qs

import httpx
import pytest

from raykube import marks
from raykube.backends.kuberay import largecode, storage
from raykube.backends.kuberay.serve import services
from raykube.backends.kubernetes import kubeapi
from raykube.backends.kubernetes.kubeapi import Kube
from raykube.bodies import storage_template
from raykube.errors import BackendError, Forbidden, NotFound
from raykube.inside import storage as inside
from tests.basics import until
from tests.servers import Quiet, kubernetes

UNSCHEDULABLE = "0/1 nodes are available: 1 Insufficient cpu."
CONDITION = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": UNSCHEDULABLE}
CONTAINER = {"name": "head", "image": "ray:1", "ports": []}
HEAD = {"template": {"spec": {"containers": [CONTAINER]}}}
JOB = {"kind": "RayJob", "metadata": {"name": "digits"}, "spec": {"rayClusterSpec": {"headGroupSpec": HEAD}}}
STORED = {**JOB, "metadata": {"name": "digits", "annotations": {"raykube.io/storage": "/shared"}}}


class Api(Quiet):
    """An API server whose pods find no node: what it cannot pass on to them it refuses, as recorded."""

    def do_POST(self):  # noqa: N802 - http.server calls it so
        self.body()
        self.answer(201, {"metadata": {"name": "digits-storage-1"}})

    def do_DELETE(self):  # noqa: N802
        self.do_POST()

    def do_GET(self):  # noqa: N802
        if "/proxy/" in self.path:
            self.answer(400, {"kind": "Status", "code": 400, "message": "address not allowed"})
        else:
            status = {"phase": "Pending", "conditions": [CONDITION]}
            self.answer(200, {"metadata": {}, "status": status, "items": []})


def test_pod_runs_in_the_heads_image_what_needs_nothing_but_python(tmp_path):
    (tmp_path / "driver.log").write_text("hello")
    made = storage._container(CONTAINER, ("cat", str(tmp_path / "driver.log")))
    _, *words = made["command"]
    ran = subprocess.run([sys.executable, "-I", "-S", *words], capture_output=True, text=True, check=True)
    assert ran.stdout == "<aGVsbG8=>\n"
    assert made["image"] == "ray:1"
    assert "ports" not in storage_template(HEAD["template"])["spec"]["containers"][0]


def test_newest_file_of_a_name_is_found_in_whichever_folder(tmp_path):
    assert inside.newest(str(tmp_path / "none"), "rank-1.log") == ""
    for age, folder in enumerate(["train-2", "sweep-1/a", "train-1"]):
        path = tmp_path / folder / "rank-1.log"
        path.parent.mkdir(parents=True)
        path.write_text(folder)
        os.utime(path, (1000 - age, 1000 - age))
    (tmp_path / "train-1" / "rank-10.log").touch()
    assert inside.newest(str(tmp_path), "rank-1.log") == str(tmp_path / "train-2" / "rank-1.log")


class Answering(Quiet):
    """An API server whose pod has ended well, with this log the first time, and with that one from then on."""

    logs = (b"d29ybGQ=>\n", b"a warning\n<aGVsbG/DvwA=>\nanother one\n")
    asked = 0

    def do_POST(self):  # noqa: N802
        self.body()
        self.answer(201, {"metadata": {"name": "digits-storage-1"}})

    def do_DELETE(self):  # noqa: N802
        self.do_POST()

    def do_GET(self):  # noqa: N802
        if "/log" not in self.path:
            self.answer(200, {"metadata": {}, "status": {"phase": "Succeeded"}})
            return
        text = self.logs[min(Answering.asked, 1)]
        Answering.asked += 1
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def test_file_that_came_in_part_is_asked_for_again_and_its_bytes_are_as_they_are():
    with kubernetes(Answering):
        assert storage.read(Kube(), STORED, "driver.log") == b"hello\xc3\xbf\x00"
    assert Answering.asked == 2


class Noting(Answering):
    """One that notes what its pods are told to do."""

    def do_POST(self):  # noqa: N802
        pod = json.loads(self.body())
        self.server.asked.append(pod["spec"]["containers"][0]["command"][3:])
        self.answer(201, {"metadata": {"name": "digits-storage-1"}})

    def do_DELETE(self):  # noqa: N802
        Answering.do_POST(self)


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ({"raykube.io/code-in-storage": "true"}, [["remove", "/shared/digits/.code"]]),
        ({}, []),  # in a ConfigMap
    ],
)
def test_service_that_is_deleted_takes_its_code_and_no_more_out_of_the_storage(annotations, words):
    service = {
        "kind": "RayService",
        "metadata": {"name": "digits", "annotations": {"raykube.io/storage": "/shared/", **annotations}},
        "spec": {"rayClusterConfig": {"headGroupSpec": HEAD}},
    }
    with kubernetes(Noting) as server, largecode.code_removed_with(Kube(), service):
        server.asked.append("deleted")
    assert server.asked == [*words, "deleted"]


class Keeping(Noting):
    """One that lets nobody delete a service."""

    def do_GET(self):  # noqa: N802
        super().do_GET() if "/rayservices/" not in self.path else self.answer(200, self.server.service)

    def do_DELETE(self):  # noqa: N802
        if "/rayservices/" not in self.path:
            return super().do_DELETE()
        self.body()
        return self.answer(403, {"kind": "Status", "code": 403, "message": "no", "details": {}})


def test_service_that_may_not_be_deleted_keeps_its_code():
    annotations = {"raykube.io/storage": "/shared", "raykube.io/code-in-storage": "true"}
    with kubernetes(Keeping) as server:
        metadata = {"name": "digits", "uid": "u", "annotations": annotations, "labels": dict(marks.MANAGED_BY)}
        cluster = {"rayClusterConfig": {"headGroupSpec": HEAD}}
        server.service = {"kind": "RayService", "metadata": metadata, "spec": cluster}
        with pytest.raises(Forbidden):
            services.take_down(Kube(), "digits")
    assert server.asked == []


class Silent(Noting):
    """One whose logs this user may not read; its pods end as the test says."""

    phase = "Failed"

    def do_GET(self):  # noqa: N802
        if "/log" in self.path:
            self.answer(403, {"kind": "Status", "code": 403, "message": "no", "details": {"kind": "pods"}})
        else:
            self.answer(200, {"metadata": {}, "status": {"phase": self.phase}})


def test_files_are_removed_by_who_may_not_read_the_log_of_the_pod_that_does_it():
    well = type("Well", (Silent,), {"phase": "Succeeded"})
    with kubernetes(well) as server, storage.files_removed_with(Kube(), STORED):
        server.asked.append("deleted")
    assert server.asked == [["remove", "/shared/digits"], "deleted"]


def test_removal_that_fails_is_told_also_where_its_log_may_not_be_read():
    with (
        kubernetes(Silent) as server,
        pytest.raises(BackendError, match="digits is deleted, but not what it kept") as caught,
        storage.files_removed_with(Kube(), STORED),
    ):
        server.asked.append("deleted")
    assert server.asked == [["remove", "/shared/digits"], "deleted"]
    assert "remove /shared/digits failed in the storage" in caught.value.why
    assert "its log cannot be read: " in caught.value.why


class Refusing(Answering):
    """One whose policy lets no such pod be made."""

    def do_POST(self):  # noqa: N802
        self.body()
        self.answer(422, {"kind": "Status", "code": 422, "message": "ValidatingAdmissionPolicy 'pods' denied"})


def test_run_is_deleted_although_a_policy_allows_no_pod_to_read_its_storage():
    deleted = []
    with (
        kubernetes(Refusing),
        pytest.raises(BackendError, match="digits is deleted, but not what it kept") as caught,
        storage.files_removed_with(Kube(), STORED),
    ):
        deleted.append(True)
    assert (deleted, "'pods' denied" in caught.value.why) == ([True], True)


def test_run_is_deleted_although_its_storage_fails_and_what_is_left_is_named(monkeypatch):
    monkeypatch.setattr(storage, "_LIMIT_S", 0.5)
    deleted = []
    with (
        kubernetes(Api),
        pytest.raises(BackendError, match="digits is deleted, but not what it kept in /shared/digits") as caught,
        storage.files_removed_with(Kube(), STORED),
    ):
        deleted.append(True)
    assert (deleted, UNSCHEDULABLE in caught.value.why) == ([True], True)


def test_pod_that_finds_no_node_is_given_up_with_the_schedulers_words(monkeypatch):
    monkeypatch.setattr(storage, "_LIMIT_S", 0.5)
    with kubernetes(Api), pytest.raises(BackendError, match="could not be reached") as caught:
        storage.write(Kube(), JOB, "/shared/code.zip", b"zip")
    assert caught.value.why == f"Unschedulable: {UNSCHEDULABLE}"


def test_pod_has_what_the_heads_template_says_to_a_cluster_that_puts_things_into_pods():
    job = copy.deepcopy(JOB)
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["metadata"] = {
        "labels": {"ray.io/group": "x", "azure.workload.identity/use": "true", "raykube.io/run": "other"},
        "annotations": {"gke-gcsfuse/volumes": "true"},
    }
    made = storage._body(None, job, "cat", "/shared")["metadata"]
    assert made["annotations"] == {"gke-gcsfuse/volumes": "true"}
    assert made["labels"] == {
        "azure.workload.identity/use": "true",
        "app.kubernetes.io/managed-by": "raykube",
        "raykube.io/run": "digits",
    }


class Accompanied(Answering):
    """An API server that has put a container beside the pod's own, which goes on; the test says what that does."""

    def do_GET(self):  # noqa: N802
        if "/log" not in self.path:
            others = {"name": "proxy", "state": {"running": {}}}
            own = {"name": "storage", "state": self.server.state}
            status = {"phase": self.server.phase, "containerStatuses": [others, own]}
            self.answer(200, {"metadata": {}, "status": status})
        elif "container=storage" in self.path:
            self.send_response(200)
            self.send_header("content-length", "11")
            self.end_headers()
            self.wfile.write(b"<aGVsbG8=>\n")
        else:
            self.answer(400, {"kind": "Status", "code": 400, "message": "a container name must be specified"})


@pytest.fixture
def accompanied(monkeypatch):
    """Return a function that reads a file by a pod whose own container is in this state."""
    monkeypatch.setattr(storage, "_LIMIT_S", 2)
    with kubernetes(Accompanied) as server:

        def read(state, phase="Running"):
            server.state, server.phase = state, phase
            return storage.read(Kube(), STORED, "driver.log")

        yield read


def test_pod_has_ended_with_its_own_container_whatever_goes_on_beside_it(accompanied):
    assert accompanied({"terminated": {"exitCode": 0}}) == b"hello"
    with pytest.raises(BackendError, match="failed in the storage") as caught:
        accompanied({"terminated": {"exitCode": 1}})
    assert caught.value.why == "<aGVsbG8=>"


def test_pod_whose_own_container_cannot_start_is_given_up_with_its_words(accompanied):
    with pytest.raises(BackendError, match="could not be reached") as caught:
        accompanied({"waiting": {"reason": "ErrImagePull", "message": "no such image"}}, "Pending")
    assert caught.value.why == "ImageNotFound: no such image"


class Slow(Api):
    """An API server whose pod runs, and takes its time to write."""

    def do_GET(self):  # noqa: N802
        if "/proxy/" in self.path:
            self.answer(404, {})
        else:
            self.answer(200, {"metadata": {}, "status": {"phase": "Running"}, "items": []})

    def do_POST(self):  # noqa: N802
        if "/proxy/" in self.path:
            threading.Event().wait(1)
            self.server.asked.append(self.path)
        super().do_POST()


def test_pod_has_time_to_write(monkeypatch):
    monkeypatch.setattr(kubeapi, "_TIMEOUT", httpx.Timeout(0.5))
    with kubernetes(Slow) as server:
        storage.write(Kube(), JOB, "/shared/code.zip", b"zip")
        assert len(server.asked) == 1


class NotingSlow(Slow):
    """One that notes what its pods are told to do."""

    def do_POST(self):  # noqa: N802
        (Api if "/proxy/" in self.path else Noting).do_POST(self)

    def do_DELETE(self):  # noqa: N802
        Api.do_POST(self)


class Passing(Slow):
    """An API server that passes requests on to what the pod would run."""

    def do_POST(self):  # noqa: N802
        if "/proxy/" not in self.path:
            super().do_POST()
            return
        data = self.body()
        try:
            found = httpx.post(self.server.pod, content=data, trust_env=False)
        except httpx.TransportError as error:
            self.answer(502, {"message": str(error)})
            return
        self.send_response(found.status_code)
        self.send_header("content-length", str(len(found.content)))
        self.end_headers()
        self.wfile.write(found.content)


def listens(port):
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def receiver(tmp_path):
    """Run what receives a file in a storage, and give its thread and its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = tmp_path / "shared" / "code.zip"
    digest = hashlib.sha256(b"whole").hexdigest()
    thread = threading.Thread(target=inside.receive, args=(str(path), port, digest), daemon=True)
    thread.start()
    until(lambda: listens(port), "it listens", 10)
    return thread, port


def test_file_of_which_only_a_part_came_is_not_taken_and_all_may_read_the_whole_one(tmp_path, receiver):
    thread, port = receiver
    with socket.create_connection(("127.0.0.1", port)) as sender:
        sender.sendall(b"POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nwho")
        sender.shutdown(socket.SHUT_WR)
        assert sender.recv(1) == b""
    there = f"http://127.0.0.1:{port}"
    assert httpx.get(there, trust_env=False).status_code == 404
    assert httpx.post(there, content=b"whole", trust_env=False).status_code == 201
    thread.join(timeout=10)
    path = tmp_path / "shared" / "code.zip"
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"whole", 0o644)


@pytest.mark.parametrize("before", [None, b"theirs"])
def test_file_that_was_not_announced_is_neither_taken_nor_believed(tmp_path, receiver, before):
    thread, port = receiver
    path, there = tmp_path / "shared" / "code.zip", f"http://127.0.0.1:{port}"
    if before:
        path.parent.mkdir()
        path.write_bytes(before)
    refused = httpx.post(there, content=b"other", trust_env=False)
    assert (refused.status_code, "SHA-256" in refused.text) == (412, True)
    assert httpx.get(there, trust_env=False).status_code == 404
    assert (path.read_bytes() if path.exists() else None) == before
    assert httpx.post(there, content=b"whole", trust_env=False).status_code == 201
    thread.join(timeout=10)
    assert path.read_bytes() == b"whole"


def test_file_that_is_there_as_announced_is_not_asked_for(tmp_path, receiver):
    _, port = receiver
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "code.zip").write_bytes(b"whole")
    assert httpx.get(f"http://127.0.0.1:{port}", trust_env=False).status_code == 200


def test_sender_that_falls_silent_keeps_nobody_else_waiting(monkeypatch, request):
    monkeypatch.setattr(inside, "_SILENCE_S", 0.2)
    _, port = request.getfixturevalue("receiver")
    with socket.create_connection(("127.0.0.1", port)) as silent:
        silent.sendall(b"POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nwho")
        assert httpx.get(f"http://127.0.0.1:{port}", trust_env=False, timeout=10).status_code == 404


def test_pod_is_told_which_file_it_may_take():
    with kubernetes(NotingSlow) as server:
        storage.write(Kube(), JOB, "/shared/code.zip", b"zip")
    assert server.asked[0] == ["receive", "/shared/code.zip", "8080", hashlib.sha256(b"zip").hexdigest()]


def test_storage_that_cannot_take_a_file_says_why_and_takes_it_later(tmp_path, receiver):
    receiver, port = receiver
    (tmp_path / "shared").touch()  # a file where a folder must be
    with kubernetes(Passing) as server:
        server.pod = f"http://127.0.0.1:{port}"
        with pytest.raises(BackendError, match="what the API server passed on was refused") as caught:
            storage.write(Kube(), JOB, "/shared/code.zip", b"whole")
        assert "File exists" in caught.value.why
        (tmp_path / "shared").unlink()
        storage.write(Kube(), JOB, "/shared/code.zip", b"whole")
    receiver.join(timeout=10)
    assert not receiver.is_alive()
    assert (tmp_path / "shared" / "code.zip").read_bytes() == b"whole"


def test_storage_of_a_cluster_that_is_gone_is_read_with_what_was_noted_of_its_head():
    spec = {"clusterSelector": {"ray.io/cluster": "demo"}}
    job = {"kind": "RayJob", "metadata": {"name": "digits", "annotations": {}}, "spec": spec}
    with kubernetes(Gone):
        with pytest.raises(NotFound, match="the cluster is gone that digits ran on") as caught:
            storage._body(Kube(), job, "cat", "x")
        assert "raykube cluster create" in caught.value.next_step
        job["metadata"]["annotations"]["raykube.io/storage-pod"] = json.dumps(storage_template(HEAD["template"]))
        (container,) = storage._body(Kube(), job, "cat", "x")["spec"]["containers"]
    assert (container["image"], container["command"][-2:]) == ("ray:1", ["cat", "x"])


class Gone(Quiet):
    """Has no cluster any more."""

    def do_GET(self):  # noqa: N802
        details = {"kind": "rayclusters", "name": "demo"}
        self.answer(404, {"kind": "Status", "code": 404, "message": "not found", "details": details})


class Deleting(Answering):
    """One that notes which pods are deleted."""

    def do_DELETE(self):  # noqa: N802
        self.server.asked.append(self.path.rpartition("/")[2].partition("?")[0])
        super().do_DELETE()


def test_pod_goes_with_its_work_also_when_that_is_interrupted():
    with kubernetes(Deleting) as server:
        with storage._pod(Kube(), STORED, "cat", "/shared") as name:
            assert server.asked == []
        assert server.asked == [name]
        with pytest.raises(KeyboardInterrupt), storage._pod(Kube(), STORED, "cat", "/shared"):
            raise KeyboardInterrupt
        assert server.asked == [name, name]


class Leftover(Slow):
    """One that has pods which have ended: of a client that was killed while it wrote, and of a run that is there."""

    def do_GET(self):  # noqa: N802
        path, _, query = self.path.partition("?")
        if not path.endswith("/pods"):
            super().do_GET()
            return
        asked = parse_qs(query)
        assert asked["labelSelector"] == ["app.kubernetes.io/managed-by=raykube,raykube.io/run"]
        assert "status.phase!=Running" in asked["fieldSelector"][0]
        owned = {"name": "digits-storage-2", "ownerReferences": [{"kind": "RayJob", "name": "digits", "uid": "u"}]}
        self.answer(200, {"items": [{"metadata": {"name": "digits-storage-0"}}, {"metadata": owned}]})

    def do_DELETE(self):  # noqa: N802
        self.server.asked.append(self.path.rpartition("/")[2])
        super().do_DELETE()


def test_pod_of_a_client_that_was_killed_goes_when_the_next_one_writes():
    with kubernetes(Leftover) as server:
        storage.write(Kube(), JOB, "/shared/code.zip", b"zip")
    assert [each for each in server.asked if "/" not in each] == ["digits-storage-0", "digits-storage-1"]


class Imageless(Api):
    """An API server that cannot pull the image of its pods, and notes how often it was asked for one."""

    def do_GET(self):  # noqa: N802
        if "/proxy/" in self.path or "?" in self.path:  # or all that have ended
            super().do_GET()
            return
        self.server.asked.append(self.path)
        state = {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}
        status = {"phase": "Pending", "containerStatuses": [{"name": "storage", "state": state}]}
        self.answer(200, {"metadata": {}, "status": status})


@pytest.mark.parametrize(
    "ask",
    [
        lambda: storage.read(Kube(), STORED, "driver.log"),
        lambda: storage.write(Kube(), JOB, "/shared/code.zip", b"zip"),
    ],
    ids=["read", "write"],
)
def test_pod_whose_image_cannot_be_pulled_is_not_waited_for(ask, monkeypatch):
    monkeypatch.setattr(storage, "_LIMIT_S", 2)
    with kubernetes(Imageless) as server, pytest.raises(BackendError, match="could not be reached"):
        ask()
    assert len(server.asked) == 1


def test_file_that_is_empty_is_told_from_one_that_there_is_not(tmp_path):
    words = [sys.executable, "-I", "-S", inside.__file__, "newest", str(tmp_path), "rank-0.log"]

    def answer():
        return storage._ANSWER.search(subprocess.run(words, capture_output=True, text=True, check=True).stdout)[1]

    assert answer() == "!"
    (tmp_path / "rank-0.log").touch()
    assert answer() == ""
