"""The pod that reads and writes a storage."""

import inspect
import os

import pytest

from raykube.backends.kuberay import storage
from raykube.backends.kubernetes.kubeapi import Kube
from raykube.errors import BackendError
from raykube.inside import storage as inside
from tests.servers import Quiet, serving, write_kubeconfig

UNSCHEDULABLE = "0/1 nodes are available: 1 Insufficient cpu."
CONDITION = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": UNSCHEDULABLE}
CONTAINER = {"name": "head", "image": "ray:1", "ports": []}
HEAD = {"template": {"spec": {"containers": [CONTAINER]}}}
JOB = {"kind": "RayJob", "metadata": {"name": "digits"}, "spec": {"rayClusterSpec": {"headGroupSpec": HEAD}}}


class Api(Quiet):
    """An API server whose pods find no node: what it cannot pass on to them it refuses, as recorded."""

    def do_POST(self):  # noqa: N802 - http.server calls it so
        self.rfile.read(int(self.headers["content-length"]))
        self.answer(201, {"metadata": {"name": "digits-storage-1"}})

    def do_DELETE(self):  # noqa: N802
        self.do_POST()

    def do_GET(self):  # noqa: N802
        if "/proxy/" in self.path:
            self.answer(400, {"kind": "Status", "code": 400, "message": "address not allowed"})
        else:
            self.answer(200, {"metadata": {}, "status": {"phase": "Pending", "conditions": [CONDITION]}})


def test_pod_runs_the_inside_planes_module_in_the_heads_image():
    made = storage._container(CONTAINER, ("receive", "/shared"))
    assert made["command"] == ["python", "-c", inspect.getsource(inside), "receive", "/shared"]
    assert made["image"] == "ray:1"
    assert "ports" not in made


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
        self.rfile.read(int(self.headers["content-length"]))
        self.answer(201, {"metadata": {"name": "digits-storage-1"}})

    def do_DELETE(self):  # noqa: N802
        self.do_POST()

    def do_GET(self):  # noqa: N802
        if not self.path.endswith("/log"):
            self.answer(200, {"metadata": {}, "status": {"phase": "Succeeded"}})
            return
        text = self.logs[min(Answering.asked, 1)]
        Answering.asked += 1
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def test_file_that_came_in_part_is_asked_for_again_and_its_bytes_are_as_they_are(tmp_path, monkeypatch):
    job = {**JOB, "metadata": {"name": "digits", "annotations": {"raykube.io/storage": "/shared"}}}
    with serving(Answering) as server:
        monkeypatch.setenv("KUBECONFIG", write_kubeconfig(server, tmp_path / "kubeconfig"))
        assert storage.read(Kube(), job, "driver.log") == b"hello\xc3\xbf\x00"
    assert Answering.asked == 2


def test_pod_that_finds_no_node_is_given_up_with_the_schedulers_words(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_LIMIT_S", 0.5)
    with serving(Api) as server:
        monkeypatch.setenv("KUBECONFIG", write_kubeconfig(server, tmp_path / "kubeconfig"))
        with pytest.raises(BackendError, match="could not be reached") as caught:
            storage.write(Kube(), JOB, "/shared/code.zip", b"zip")
    assert caught.value.why == f"Unschedulable: {UNSCHEDULABLE}"
