"""A run's log over the loss of heads, nodes and answers: from a server that plays an API server and its Ray."""

import base64
import contextlib
import itertools
import json
import threading
import tracemalloc
from urllib.parse import parse_qs, urlsplit

import pytest

from raykube import wire
from raykube.backends.kuberay.backend import KubeRay
from raykube.backends.kuberay.logs import driverlogs, logfiles
from raykube.backends.kuberay.runs.look import Look
from raykube.backends.kubernetes.kubeapi import Kube, Stop
from raykube.backends.rayapi import RayApi
from raykube.errors import BackendError, Forbidden, NotFound, Unreachable
from raykube.wire import Result
from tests.basics import until
from tests.servers import Quiet, kubernetes

PROXY = "/api/v1/namespaces/default/services/a-c-head-svc:dashboard/proxy"
LOG = "job-driver-a-x.log"
STATE = wire.state_file("a")
RAYS = b"Running entrypoint for job a-x: python -m digits\n"
#: As Ray words it, each with a plain 500.
NO_NODE = "Agent for node id: {} doesn't exist."
NO_FILE = "A file is not found at: /tmp/ray/session/logs/{}"
SILENT = "Failed to query the data source. It is either there's a network issue, or the source is down."


class World:
    """What there is: a RayJob, the log files of live nodes, a storage; and what is answered instead."""

    def __init__(self):
        head = {"template": {"spec": {"containers": [{"name": "head", "image": "ray:1"}]}}}
        metadata = {"name": "a", "uid": "u", "annotations": {"raykube.io/storage": "/shared"}}
        self.job = {
            "kind": "RayJob",
            "metadata": {**metadata, "resourceVersion": "1"},
            "spec": {"submissionMode": "HTTPMode", "rayClusterSpec": {"headGroupSpec": head}},
            "status": {
                "jobDeploymentStatus": "Running",
                "jobStatus": "RUNNING",
                "jobId": "a-x",
                "rayClusterName": "a-c",
                "dashboardURL": "a-c-head-svc.default.svc.cluster.local:8265",
            },
        }
        self.driver, self.status = "node-1", "RUNNING"
        self.nodes = {"node-1": {}}
        self.kept = self.submitted = b""
        self.instead = {}
        self.breaking = 0
        self.asked = []
        self.closed = threading.Event()

    def end(self):
        """Have the run ended."""
        self.job["status"] |= {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}

    def printed(self, node, text):
        """Have a node's driver print."""
        self.nodes[node][LOG] = self.nodes[node].get(LOG, b"") + text

    def tells(self, node, starts_at, replayed):
        """Have the run's own pod tell what its log begins with."""
        told = {"log_starts_at": starts_at, "log_replayed": replayed}
        self.nodes[node][STATE] = json.dumps(told).encode()

    def refuses(self, path, code, words, times=10**6):
        """Have requests for a path refused, so many times."""
        self.instead[path] = [code, words, times]


class Api(Quiet):
    def do_POST(self):  # noqa: N802 - http.server calls it so
        self.body()
        self.answer(201, {"metadata": {"name": "a-storage-1"}})

    def do_DELETE(self):  # noqa: N802
        self.do_POST()

    def do_GET(self):  # noqa: N802
        url = urlsplit(self.path)
        asked = {key: value[0] for key, value in parse_qs(url.query).items()}
        world = self.server.world
        world.asked.append(f"{url.path.rpartition('/')[2]} {asked.get('filename', '')}".strip())
        for path, instead in world.instead.items():
            if instead[2] > 0 and (path in url.path or path == asked.get("filename")):
                instead[2] -= 1
                return self.plain(instead[0], instead[1].encode())
        if url.path.startswith(PROXY):
            return self.ray(url.path.removeprefix(PROXY), asked)
        return self.kubernetes(url.path.rpartition("namespaces/default")[2], asked)

    def kubernetes(self, path, asked):
        world = self.server.world
        if path == "/rayjobs/a":
            self.answer(200, world.job)
        elif path == "/pods/a-storage-1":
            self.answer(200, {"metadata": {"name": "a-storage-1"}, "status": {"phase": "Succeeded"}})
        elif path == "/pods/a-storage-1/log":
            self.plain(200, b"<" + base64.b64encode(world.kept) + b">\n")
        elif path == "/pods/a-x7/log":
            self.plain(200, world.submitted)
        elif "watch" in asked:
            self.watch(path)
        else:
            submitter = [{"metadata": {"name": "a-x7"}}] * (asked.get("labelSelector") == "job-name=a")
            items = [world.job] if path == "/rayjobs" else submitter
            self.answer(200, {"metadata": {"resourceVersion": "1"}, "items": items})

    def watch(self, path):
        """Tell of the RayJob again and again: it may have changed."""
        self.begin()
        while not self.server.world.closed.wait(0.1):
            if path == "/rayjobs":
                self.wfile.write(json.dumps({"type": "MODIFIED", "object": self.server.world.job}).encode() + b"\n")

    def ray(self, path, asked):
        world = self.server.world
        if path == "/api/jobs/a-x":
            return self.answer(200, {"status": world.status, "driver_node_id": world.driver})
        if asked["node_id"] not in world.nodes:
            return self.plain(500, NO_NODE.format(asked["node_id"]).encode())
        file = world.nodes[asked["node_id"]].get(asked["filename"])
        if file is None:
            return self.plain(500, NO_FILE.format(asked["filename"]).encode())
        if path.endswith("/file"):
            return self.break_off(file) if world.breaking and asked["filename"] == LOG else self.plain(200, file)
        return self.grow(asked["node_id"], asked["filename"])

    def break_off(self, file):
        """Hand out the first half of a file, with a head that is lost over it."""
        self.server.world.breaking -= 1
        self.send_response(200)
        self.send_header("content-length", str(len(file)))
        self.end_headers()
        self.wfile.write(file[: len(file) // 2])
        self.close_connection = True

    def grow(self, node, file):
        """Hand out a file as it grows, until its node is gone."""
        self.begin()
        at, world = 0, self.server.world
        while node in world.nodes and not world.closed.wait(0.02):
            data = world.nodes.get(node, {}).get(file, b"")[at:]
            self.wfile.write(data)
            at += len(data)

    def begin(self):
        self.send_response(200)
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.flush()

    def plain(self, code, data):
        self.send_response(code)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def world():
    with kubernetes(Api) as server:
        server.world = World()
        yield server.world
        server.world.closed.set()


@pytest.fixture
def kube(world):  # noqa: ARG001 - it is asked
    return Kube()


@pytest.fixture
def ray(kube):
    return RayApi.behind(kube.http, PROXY, "")


def test_log_of_a_node_that_has_gone_is_not_found(ray):
    with pytest.raises(NotFound, match="doesn't exist"):
        ray.log("node-0", LOG)


def test_log_file_that_is_not_there_is_not_found(ray):
    with pytest.raises(NotFound, match="not found at"):
        ray.log("node-1", LOG)


def test_node_that_its_head_cannot_reach_is_unreachable(ray, world):
    world.refuses("/logs/file", 500, SILENT)
    with pytest.raises(Unreachable, match="Failed to query"):
        ray.log("node-1", LOG)


def test_file_whose_node_has_gone_is_read_once_more_and_no_more(kube, ray, world):
    world.nodes["node-2"] = {"replica": b"one\ntwo\n"}
    file = logfiles.LogFile("a-c", "node-2", "replica", ray)
    following = logfiles.Following(kube, lambda: ([file], False))
    lines = following.lines()
    assert [next(lines), next(lines)] == ["one", "two"]
    del world.nodes["node-2"]
    until(lambda: not following._readers[file].is_alive(), "it is given up", 10)
    assert world.asked.count("file replica") == 1
    lines.close()


REFUSED = Forbidden('secrets "s-x" is forbidden')


def failing(*answers):
    """Return what finds these files, or fails with these errors, one after the other, the last again and again."""
    left = list(answers)

    def find():
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return find


def test_files_that_nobody_may_look_for_are_not_waited_for(kube):
    with pytest.raises(Forbidden, match="secrets"):
        list(logfiles.Following(kube, failing(REFUSED)).lines())


def test_files_are_read_on_where_a_server_that_starts_refuses_what_it_allowed(kube, ray, world, monkeypatch):
    monkeypatch.setattr(logfiles, "_LOOK_S", 0.01)
    world.nodes["node-2"] = {"replica": b"one\n"}
    file = logfiles.LogFile("a-c", "node-2", "replica", ray)
    find = failing(([file], False), REFUSED, Unreachable("away"), ([file], True))
    assert list(logfiles.Following(kube, find).lines()) == ["one"]


def test_files_are_given_up_once_nobody_has_answered_for_long(kube, monkeypatch):
    monkeypatch.setattr(logfiles, "_LOOK_S", 0.01)
    monkeypatch.setattr(logfiles, "GIVE_UP_S", 0.1)
    with pytest.raises(Unreachable, match="away"):
        list(logfiles.Following(kube, failing(Unreachable("away"))).lines())


def test_log_that_is_left_early_leaves_no_threads(kube, ray, world):
    world.nodes["node-1"]["replica"] = b"line\n" * 30_000
    file, before = logfiles.LogFile("a-c", "node-1", "replica", ray), set(threading.enumerate())
    following = logfiles.Following(kube, lambda: ([file], False))
    lines = following.lines()
    assert next(lines) == "line"
    until(following._lines.full, "more is read than there is room for", 10)
    lines.close()

    def left():
        return [each for each in threading.enumerate() if each not in before and each.name.startswith("raykube")]

    until(lambda: not left(), "they end", 10)


def test_file_goes_on_behind_what_was_read_of_it_however_many_parts_that_comes_in(kube, ray, world):
    world.nodes["node-1"]["replica"] = b"x" * 300_000 + b"the rest"
    file = logfiles.LogFile("a-c", "node-1", "replica", ray)
    with contextlib.closing(logfiles.chunks(kube, file, 300_000, Stop())) as chunks:
        fresh = b""
        while len(fresh) < 8:
            fresh += next(chunks)
    assert fresh == b"the rest"


def whole(kube):
    return list(driverlogs.lines(Look(kube, "a"), follow=False))


@pytest.mark.parametrize("path", ["/api/jobs/", "/logs/file"])
def test_log_is_read_from_a_head_that_misses_an_answer(kube, world, path):
    world.printed("node-1", b"one\n")
    world.refuses(path, 503, "no endpoints available", times=2)
    assert whole(kube) == ["one"]


def test_log_that_breaks_off_while_it_is_read_goes_on_behind_what_was_given(kube, world):
    world.printed("node-1", b"".join(b"%d\n" % number for number in range(1000)))
    world.breaking = 1
    assert whole(kube) == [str(number) for number in range(1000)]


def test_storages_copy_goes_on_where_a_log_broke_off_while_it_was_read(kube, world, monkeypatch):
    monkeypatch.setattr(driverlogs, "_PATIENCE_S", 0)
    world.kept = b"".join(b"%d\n" % number for number in range(1000))
    world.printed("node-1", RAYS + world.kept)
    world.tells("node-1", len(RAYS), 0)
    world.breaking = 10
    assert whole(kube)[1:] == [str(number) for number in range(1000)]


def test_last_lines_of_a_failure_are_asked_for_again_where_a_head_misses_an_answer(kube, world):
    world.status = "FAILED"
    world.printed("node-1", b"one\ntwo\n")
    world.refuses(LOG, 503, "no endpoints available", times=1)
    assert Look(kube, "a").status().failure.tail == ("one", "two")


def test_log_of_a_node_that_does_not_answer_is_the_storages(kube, world, monkeypatch):
    monkeypatch.setattr(driverlogs, "_PATIENCE_S", 0)
    world.kept = b"kept\n"
    world.refuses("/logs/file", 500, SILENT)
    assert whole(kube) == ["kept"]


@pytest.mark.parametrize("path", ["/api/jobs/", "/logs/file"])
def test_head_that_does_not_answer_is_told_where_nothing_was_kept(kube, world, monkeypatch, path):
    monkeypatch.setattr(driverlogs, "_PATIENCE_S", 0)
    world.refuses(path, 503, "no endpoints available")
    with pytest.raises(Unreachable, match="no endpoints available"):
        whole(kube)


def test_log_of_a_run_that_was_never_in_ray_is_empty_before_its_head_answers(kube, world):
    del world.job["status"]["jobStatus"]
    world.refuses("/proxy/", 503, "no endpoints available")
    assert whole(kube) == []


def test_log_of_a_driver_whose_node_has_gone_is_the_storages(kube, world):
    world.kept = b"kept\n"
    world.driver = "node-0"
    assert whole(kube) == ["kept"]


def test_log_that_was_not_kept_is_told_to_be_gone_once_the_run_has_ended(kube, world):
    world.driver = "node-0"
    assert whole(kube) == []
    world.end()
    with pytest.raises(BackendError, match="was lost with the node that it was on"):
        whole(kube)


def test_log_of_a_run_on_a_long_lived_cluster_is_told_to_have_gone_with_that(kube, world):
    world.driver = "node-0"
    world.job["spec"]["clusterSelector"] = {"ray.io/cluster": "stays"}
    world.end()
    with pytest.raises(BackendError, match="went with cluster stays, or its node there") as caught:
        whole(kube)
    assert caught.value.next_step == "annotate the cluster's manifest with raykube.io/storage"


def test_log_that_the_submitters_pod_has_is_read_there_once_the_run_has_ended(kube, world):
    world.driver, world.submitted = "node-0", b"submitted\none\n"
    world.job["spec"]["submissionMode"] = "K8sJobMode"
    assert whole(kube) == []
    world.end()
    assert whole(kube) == ["submitted", "one"]
    world.kept = b"kept\n"
    assert whole(kube) == ["kept"]
    world.kept, world.job["spec"]["submissionMode"] = b"", "HTTPMode"  # where there is no such pod
    with pytest.raises(BackendError, match="was lost with the node that it was on"):
        whole(kube)


def test_log_of_which_a_part_was_given_is_not_given_anew_from_the_submitters_pod(kube, world):
    world.printed("node-1", RAYS + b"one\n")
    world.submitted, world.job["spec"]["submissionMode"] = b"submitted\none\n", "K8sJobMode"
    reader = driverlogs._Reader(kube, {})
    assert b"".join(driverlogs._rest(Look(kube, "a"), reader)).endswith(b"one\n")
    del world.nodes["node-1"]
    world.end()
    with pytest.raises(BackendError, match="is gone"):
        list(driverlogs._rest(Look(kube, "a"), reader))


FORBIDDEN = 'services "a-c-head-svc:dashboard" is forbidden: User "least" cannot get resource "services/proxy" in …'


def test_log_that_a_user_may_not_ask_the_head_for_is_the_storages(kube, world):
    world.kept = b"kept\n"
    world.refuses("/proxy/", 403, FORBIDDEN)
    assert whole(kube) == ["kept"]


def test_right_that_is_missing_is_told_where_nothing_was_kept(kube, world):
    world.refuses("/proxy/", 403, FORBIDDEN)
    with pytest.raises(Forbidden, match="is forbidden"):
        whole(kube)
    with pytest.raises(Forbidden, match="is forbidden"):
        KubeRay().result("a")


@pytest.mark.parametrize("source", ["driver", "rank-0"])
def test_follower_who_may_not_ask_the_head_is_told_so_while_the_run_goes_on(world, source):
    world.refuses("/proxy/", 403, FORBIDDEN)
    with pytest.raises(Forbidden, match="is forbidden"):
        list(KubeRay().logs("a", "job", follow=True, source=source))


def test_result_that_a_user_may_not_ask_the_head_for_is_the_storages(world):
    result = Result("train", "a", "/shared/a", {"loss": 0.5})
    world.kept = result.to_json().encode()
    world.refuses("/proxy/", 403, FORBIDDEN)
    assert KubeRay().result("a") == result


def test_result_of_a_rayjob_whose_pod_tells_nothing_is_its_storages(world):
    world.printed("node-1", RAYS)
    result = Result("train", "a", "/shared/a", {"loss": 0.5})
    world.kept = result.to_json().encode()
    assert KubeRay().result("a") == result


def without_storage(world):
    del world.job["metadata"]["annotations"]


def test_result_that_no_storage_has_kept_is_told_to_be_gone_with_its_cluster(kube, world):
    without_storage(world)
    world.end()
    world.refuses("/proxy/", 404, 'services "a-c-head-svc" not found')
    with pytest.raises(BackendError, match="the result of a, if it had one, is gone") as caught:
        KubeRay().result("a")
    with pytest.raises(BackendError, match="the log of a is gone") as logs:
        whole(kube)
    assert (caught.value.why, caught.value.next_step) == (logs.value.why, logs.value.next_step)
    assert caught.value.why == "the cluster names no storage that would have kept it"


def test_result_is_told_to_be_gone_with_the_node_that_the_driver_was_on(world):
    without_storage(world)
    world.end()
    world.driver = "node-0"
    with pytest.raises(BackendError, match="if it had one, is gone"):
        KubeRay().result("a")


def test_head_that_does_not_answer_is_told_where_only_it_can_have_the_result(world):
    without_storage(world)
    world.end()
    world.refuses("/proxy/", 503, "no endpoints available")
    with pytest.raises(Unreachable, match="the Ray head does not answer"):
        KubeRay().result("a")


def test_run_has_no_result_where_its_script_returned_none(world):
    world.end()
    world.driver = "node-0"
    assert KubeRay().result("a") is None  # its storage would have it
    without_storage(world)
    world.driver = "node-1"
    world.printed("node-1", RAYS)
    assert KubeRay().result("a") is None  # a RayJob of one's own, whose pod tells nothing
    world.nodes["node-1"][STATE] = json.dumps({"attempt": 1, "result": ""}).encode()
    assert KubeRay().result("a") is None
    world.refuses("/proxy/", 404, 'services "a-c-head-svc" not found')
    world.job["status"] = {"jobDeploymentStatus": "Failed", "reason": "PreRunningDeadlineExceeded"}
    assert KubeRay().result("a") is None  # Ray never had it


class Reader(threading.Thread):
    """Follows the log of a run to its end."""

    def __init__(self, kube):
        super().__init__(daemon=True)
        self.kube = kube
        self.lines = []

    def run(self):
        for line in driverlogs.lines(Look(self.kube, "a"), follow=True):
            self.lines.append(line)

    def all(self):
        """Return what it has read when it is through."""
        self.join(20)
        assert not self.is_alive()
        return self.lines


@pytest.fixture
def runs(monkeypatch):
    """What readers know of the runs that they follow."""
    made = []

    class Noted(driverlogs.Followed):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(driverlogs, "Followed", Noted)
    return made


@pytest.fixture
def reader(kube, world, runs):
    """A reader that has been given two lines of the first head's log, and one of Ray's."""
    world.printed("node-1", RAYS + b"one\ntwo\n")
    world.tells("node-1", len(RAYS), 0)
    reader = Reader(kube)
    reader.start()
    until(lambda: reader.lines == [RAYS.decode().strip(), "one", "two"], "it is read", 10)
    until(lambda: runs[0].told, "it is known where it begins", 10)
    return reader


def test_run_is_followed_to_its_end_where_its_next_cluster_never_has_a_head(kube, world):
    world.printed("node-1", RAYS + b"one\n")
    followed = driverlogs.Followed(Look(kube, "a"))
    until(lambda: followed.details, "its head is asked", 10)
    del world.job["status"]["dashboardURL"]
    world.job["status"]["rayClusterName"] = "a-d"
    until(lambda: followed.job["status"]["rayClusterName"] == "a-d", "it is seen", 10)
    world.end()
    assert followed.ended.wait(10)


def lose_head(world, copied):
    """Have another head in the place of the first, where the log goes on with a copy."""
    world.nodes = {"node-2": {LOG: RAYS + b"Ray again\n" + copied}}
    world.driver = "node-2"


def ask_in_vain(world):
    """Wait until the run's pod was asked for what it does not tell yet."""
    before = world.asked.count(f"file {STATE}")
    until(lambda: world.asked.count(f"file {STATE}") > before + 3, "it is asked", 10)


def test_log_of_another_head_goes_on_once_its_copy_is_told(reader, world):
    lose_head(world, b"one\ntwo\n")
    ask_in_vain(world)  # Ray tells of its driver a second before the run's pod tells anything
    world.tells("node-2", len(RAYS) + 10, 8)
    world.printed("node-2", b"three\n")
    until(lambda: len(reader.lines) > 3, "it goes on", 10)
    world.end()
    assert reader.all()[1:] == ["one", "two", "three"]


def test_copy_in_another_heads_log_gives_what_the_reader_never_got(reader, world):
    lose_head(world, b"one\ntwo\nlate\n")
    world.tells("node-2", len(RAYS) + 10, 13)
    world.printed("node-2", b"three\n")
    until(lambda: len(reader.lines) > 3, "it goes on", 10)
    world.end()
    assert reader.all()[1:] == ["one", "two", "late", "three"]


def test_log_of_another_head_whose_pod_tells_nothing_is_given_whole(reader, world, monkeypatch):
    monkeypatch.setattr(driverlogs, "_TOLD_S", 0.5)
    lose_head(world, b"it cannot write\n")
    until(lambda: "it cannot write" in reader.lines, "it is read all the same", 10)
    world.end()
    assert reader.all()[1:] == ["one", "two", RAYS.decode().strip(), "Ray again", "it cannot write"]


def test_storages_copy_goes_on_where_a_heads_log_broke_off(reader, world):
    world.refuses("/proxy/", 404, "services a-c-head-svc not found")
    world.nodes.clear()
    world.kept = b"one\ntwo\nthree\nfour\n"
    world.end()
    assert reader.all()[1:] == ["one", "two", "three", "four"]


def test_storages_copy_goes_on_behind_a_second_heads_log(reader, world):
    lose_head(world, b"one\ntwo\n")
    world.tells("node-2", len(RAYS) + 10, 8)
    world.printed("node-2", b"three\n")
    until(lambda: reader.lines[-1] == "three", "it goes on", 10)
    world.refuses("/proxy/", 404, "services a-c-head-svc not found")
    world.nodes.clear()
    world.kept = b"one\ntwo\nthree\nfour\n"
    world.end()
    assert reader.all()[1:] == ["one", "two", "three", "four"]


def test_end_of_a_run_in_another_heads_log_is_read_behind_its_copy(reader, world):
    lose_head(world, b"one\ntwo\n")
    ask_in_vain(world)
    world.printed("node-2", b"three\n")
    world.end()
    world.tells("node-2", len(RAYS) + 10, 8)
    assert reader.all()[1:] == ["one", "two", "three"]


def test_end_of_a_log_that_was_followed_is_read_without_holding_the_log(kube, world):
    world.printed("node-1", (b"x" * 65535 + b"\n") * 512)
    with contextlib.closing(driverlogs.lines(Look(kube, "a"), follow=True)) as lines:
        assert sum(1 for _ in itertools.islice(lines, 512)) == 512
        world.printed("node-1", b"last\n")
        world.end()
        tracemalloc.start()
        assert list(lines) == ["last"]
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert held < 8 * 2**20
