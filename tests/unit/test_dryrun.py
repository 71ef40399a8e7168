"""What a dry run finds although the server takes each object and each pod by itself."""

import json

import pytest

import raykube as rk
from raykube.backends.kuberay import dryrun
from raykube.backends.kubernetes.kubeapi import Kube
from raykube.cluster import Cluster
from raykube.errors import ManifestError
from tests.servers import Quiet, kubernetes


class Taking(Quiet):
    """An API server that has the quota of a test, and takes whatever it is sent."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        if self.path.endswith("/resourcequotas"):
            return self.answer(*self.server.quotas)
        return self.answer(404, {"message": "not found", "details": {"kind": "things", "name": "a"}})

    def do_POST(self):  # noqa: N802
        self.answer(201, json.loads(self.body()))


def group(**fields):
    container = {"name": "ray", "image": "ray:1", "resources": {"requests": {"cpu": "250m"}}}
    return {"rayStartParams": {}, "template": {"spec": {"containers": [container]}}, **fields}


@pytest.fixture
def plan(tmp_path):
    """Give a plan for a head and a worker of 250m each."""
    (tmp_path / "hello.py").touch()
    worker = group(groupName="w", replicas=1, minReplicas=1, maxReplicas=1)
    spec = {"rayVersion": "2.60.0", "headGroupSpec": group(), "workerGroupSpecs": [worker]}
    named = {"metadata": {"name": "c"}, "spec": spec}
    job = rk.Job(entrypoint="python hello.py", name="a", working_dir=tmp_path)
    return rk.plan(job, Cluster({"apiVersion": "ray.io/v1", "kind": "RayCluster", **named}, "a file", "c"))


def quotas(cpu):
    status = {"hard": {"requests.cpu": cpu}, "used": {}}
    return 200, {"items": [{"metadata": {"name": "few"}, "spec": {}, "status": status}]}


def test_quota_that_takes_each_pod_and_not_all_of_them_is_refused(plan):
    with kubernetes(Taking) as api:
        api.quotas = quotas("400m")
        with pytest.raises(ManifestError, match="would refuse pods of a") as caught:
            dryrun.check(Kube(), plan)
    (problem,) = caught.value.problems
    assert problem.path == "spec.rayClusterSpec"
    assert problem.what == "quota few has no room for all pods together: requests.cpu: 0.5 asked, 0.4 left"
    assert caught.value.next_step.endswith("a quota may have room later")


@pytest.mark.parametrize("told", [quotas("500m"), (403, {"kind": "Status", "code": 403, "message": "no"})])
def test_quota_with_room_and_one_that_may_not_be_seen_refuse_nothing(plan, told):
    with kubernetes(Taking) as api:
        api.quotas = told
        dryrun.check(Kube(), plan)
