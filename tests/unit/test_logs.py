"""The sources of a run's logs, as far as they are pure: names, events, and what a broken stream is joined by."""

import pytest

from raykube.backends import sources
from raykube.backends.kuberay.logs import autoscalerlogs, eventlogs
from raykube.backends.local import following
from raykube.errors import ConfigError, NotFound

RANKS = [("node-a", "worker-a"), ("node-b", "worker-b")]


@pytest.mark.parametrize(("source", "rank"), [("driver", None), ("events", None), ("rank-0", 0), ("rank-12", 12)])
def test_source_names_a_rank_or_none(source, rank):
    assert sources.rank_of(source) == rank


@pytest.mark.parametrize(
    ("source", "meant"),
    [("rank-", 0), ("rank-x", 0), ("rank-01", 1), ("rank--1", 0), ("rank0", 0), ("rank1", 1), ("rank_12", 12)],
)
def test_source_that_is_none_names_the_nearest(source, meant):
    with pytest.raises(ConfigError, match=rf"did you mean rank-{meant}\?"):
        sources.rank_of(source)


def test_rank_that_is_not_there_is_told_from_ranks_that_are_not_known():
    assert sources.place_of(RANKS, 1, "a") == ("node-b", "worker-b")
    with pytest.raises(ConfigError, match=r"it trains on 2 workers\n.*rank-1 is the last one"):
        sources.place_of(RANKS, 2, "a")
    with pytest.raises(NotFound, match="no training workers"):
        sources.place_of([], 0, "a")


def test_lines_of_a_whole_log_are_those_of_a_followed_one():
    lines = sources.Lines()
    log = "1 %\r2 %\n{'a': '\u2028'}\n\x0cend".encode()
    assert sources.lines_of(log) == [*lines.take(log[:9]), *lines.take(log[9:]), *lines.end()]
    assert sources.lines_of(log)[0] == "1 %\r2 %"
    assert sources.lines_of(b"") == []


def test_marks_of_ray_in_a_workers_files_are_left_out():
    lines = [":job_id:01000000", ":actor_name:RayTrainWorker", "loss: 1", ":task_name:f", "", ": mine"]
    assert list(sources.printed(lines)) == ["loss: 1", "", ": mine"]


def event(kind, name, message="", reason="Why", at=1, **more):
    uid = more.pop("uid", f"{kind}-{name}")
    return {
        "metadata": {"name": f"{name}.{at:016x}", "uid": f"{reason}-{name}-{at}"},
        "involvedObject": {"kind": kind, "name": name, "uid": uid},
        "lastTimestamp": f"2026-08-01T12:00:{at:02}Z",
        "type": "Normal",
        "reason": reason,
        "message": message,
        **more,
    }


def job(name="a", cluster="", **spec):
    metadata = {"name": name, "namespace": "team", "uid": f"RayJob-{name}"}
    return {"metadata": metadata, "spec": spec, "status": {"rayClusterName": cluster}}


def with_groups(*names, claims=()):
    """Return the spec of a cluster with worker groups of these names."""
    volumes = [{"name": each, "persistentVolumeClaim": {"claimName": each}} for each in claims]
    template = {"spec": {"containers": [], "volumes": volumes}}
    groups = [{"groupName": name, "template": template} for name in names]
    return {"headGroupSpec": {"template": template}, "workerGroupSpecs": groups}


def test_events_of_all_clusters_that_a_run_has_had_are_its():
    own = [
        event("RayJob", "a", "Created RayCluster team/a-old01"),
        event("RayJob", "a", 'Failed to delete cluster team/a-old02: "x"'),
        event("RayCluster", "a-old01"),
        event("RayCluster", "a-old02"),
        event("RayCluster", "a-new01"),
        event("Pod", "a-old01-head-x"),
        event("Pod", "a-new01-workers-worker-x"),
        event("PersistentVolumeClaim", "shared"),
    ]
    others = [
        event("RayJob", "a", "Created RayCluster team/a-dead1", uid="of an earlier run of that name"),
        event("RayCluster", "a-dead1"),
        event("RayCluster", "a"),
        event("Pod", "a-old011-head-x"),
        event("Pod", "a-old01"),
        event("PersistentVolumeClaim", "other"),
        event("RayJob", "b", "Created RayCluster team/b-1"),
    ]
    spec = with_groups("workers", claims=["shared"])
    assert eventlogs.ours(job(cluster="a-new01"), spec, [*others, *own]) == own


def test_pods_of_a_cluster_whose_long_name_kuberay_has_cut_are_its():
    cluster = f"{'long' * 12}-x1234"
    pod = event("Pod", f"{cluster[:50]}-head-x")
    assert eventlogs.ours(job(cluster=cluster), with_groups(), [pod, event("Pod", f"{cluster[:49]}-head-x")]) == [pod]


def test_run_without_a_cluster_has_only_its_own_events():
    found = [event("RayJob", "a", "no cluster yet"), event("Pod", "b-head")]
    assert eventlogs.ours(job(), with_groups(), found) == found[:1]


def test_event_is_one_line_with_its_count():
    shown = eventlogs.line_of(event("Pod", "a-x", "not\n ready", "Unhealthy", type="Warning", count=3))
    assert shown == "2026-08-01T12:00:01Z Warning Unhealthy pod/a-x: not ready (x3)"


def test_event_of_the_newer_api_is_one_line_too():
    newer = {"lastTimestamp": None, "eventTime": "2026-08-01T12:00:07.123456Z"}
    assert eventlogs.line_of(event("RayJob", "a", "made", **newer)) == "2026-08-01T12:00:07Z Normal  Why rayjob/a: made"


def test_events_come_in_order_and_once():
    later = {"lastTimestamp": "2026-08-01T12:00:09Z"}
    same = [event("Pod", "b", "first", at=1, **later), event("Pod", "a", "second", at=2, **later)]
    shown: set[str] = set()
    lines = list(eventlogs._fresh([same[1], same[0], event("Pod", "c", "before", at=3)], shown))
    assert [line.rpartition(": ")[2] for line in lines] == ["before", "first", "second"]
    again = {**same[0], "count": 2, "lastTimestamp": "2026-08-01T12:00:11Z"}
    assert list(eventlogs._fresh([again], shown)) == []


def given(log, *lines):
    return [text for line in lines for text in log.fresh(line)]


def test_pod_log_goes_on_within_a_second_without_losing_or_doubling_a_line():
    log = autoscalerlogs.PodLog(None, "autoscaler")
    first = ["2026-08-01T12:00:00.9Z a", "2026-08-01T12:00:01.1Z b", "2026-08-01T12:00:01.2Z same"]
    assert log.asked("pod") == {"container": "autoscaler", "timestamps": "true"}
    assert given(log, *first) == ["a", "b", "same"]
    assert log.asked("pod")["sinceTime"] == "2026-08-01T12:00:01Z"
    assert given(log, *first[1:], "2026-08-01T12:00:01.3Z same", "2026-08-01T12:00:02.0Z ") == ["same", ""]


def test_pod_log_of_another_pod_begins_anew():
    log = autoscalerlogs.PodLog(None, "autoscaler")
    log.asked("one")
    assert given(log, "2026-08-01T12:00:00.9+01:00 a") == ["a"]
    assert log.asked("one")["sinceTime"] == "2026-08-01T12:00:00+01:00"
    assert "sinceTime" not in log.asked("two")
    assert given(log, "2026-08-01T12:00:00.9+01:00 a") == ["a"]


def test_line_without_a_stamp_is_not_of_the_pod():
    assert given(autoscalerlogs.PodLog(None, "autoscaler"), "unable to retrieve container logs", "") == []


def test_growing_files_are_read_together_also_those_that_come_later(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("one\nbegun")
    texts = iter([(two, "two\n"), (one, " and ended\nrest")])

    def is_open():
        for path, text in texts:
            with path.open("a") as file:
                file.write(text)
            yield True
        yield False

    found = list(following.lines(lambda: [path for path in (one, two) if path.exists()], is_open=is_open()))
    assert found == ["one", "two", "begun and ended", "rest"]


def test_file_is_read_to_its_end_also_what_was_written_just_before_its_writer_ended(tmp_path):
    path = tmp_path / "one"
    path.write_text("one\n")

    def is_open():
        with path.open("a") as file:
            file.write("two\n")
        yield False

    assert list(following.lines(lambda: [path], is_open=is_open())) == ["one", "two"]


def test_pods_of_another_run_whose_name_begins_with_this_ones_are_not_its():
    own = [
        event("RayJob", "mine", "Created RayCluster team/mine-x1234"),
        event("RayJob", "mine", "Created Kubernetes Job team/mine"),
        event("Pod", "mine-x1234-head-b2c4d"),
        event("Pod", "mine-b2c4d"),
    ]
    others = [
        event("Pod", "mine-2-x1234-head-b2c4d"),
        event("Pod", "mine-2-b2c4d"),
        event("Pod", "mine-hello"),
        event("RayCluster", "mine"),
    ]
    assert eventlogs.ours(job("mine"), with_groups(), [*others, *own]) == own


def test_pods_of_a_cluster_that_is_there_are_those_of_a_run_of_its_name():
    own = [event("RayJob", "demo", "Using RayCluster team/demo"), event("Pod", "demo-head-b2c4d")]
    assert (
        eventlogs.ours(job("demo", cluster="demo", clusterSelector={"ray.io/cluster": "demo"}), with_groups(), own)
        == own
    )


def on_demo(*pods, cluster="demo", spec=None):
    """Return which of these pods a run on a cluster that stays takes for that cluster's."""
    own = [event("RayJob", "train", f"Using RayCluster team/{cluster}"), *(event("Pod", pod) for pod in pods)]
    run = job("train", cluster=cluster, clusterSelector={"ray.io/cluster": cluster})
    found = eventlogs.ours(run, with_groups("workers", "Big") if spec is None else spec, own)
    return [each["involvedObject"]["name"] for each in found[1:]]


def test_pods_of_a_cluster_that_stays_are_those_of_its_head_and_groups():
    own = ["demo-head-b2c4d", "demo-head", "demo-workers-worker-x2c4d", "demo-big-worker-x2c4d"]
    others = ["demo-gpu-head-b2c4d", "demo-gpu-workers-worker-b2c4d", "demo-train-x1234-head-b2c4d"]
    others += ["demo-train-storage-a1b2c3", "demo-cpu-worker-x2c4d", "demo-workers-worker-1"]
    assert on_demo(*others, *own) == own


def test_pods_of_a_cluster_that_stays_are_known_by_what_kuberay_leaves_of_long_names():
    cluster = "long" * 11
    own = [f"{cluster}-head-b2c4d", f"{cluster}-worke-worker-b2c4d"]
    assert on_demo(*own, f"{cluster}-workers-worker-b2c4d", cluster=cluster) == own


def test_pods_of_a_cluster_that_stayed_and_is_gone_are_known_by_its_name():
    assert on_demo("demo-workers-worker-x2c4d", "other-head-b2c4d", spec={}) == ["demo-workers-worker-x2c4d"]
