"""What is said of a run when the clocks of this machine and of the API server differ."""

import datetime as dt
import gc
import time

import pytest

import raykube as rk
from raykube.backends.kuberay.causes.clustercauses import OPERATOR_S
from raykube.backends.kubernetes import fields
from raykube.backends.kubernetes.kubeapi import Kube
from tests.servers import Quiet, kubernetes


class Api(Quiet):
    """An API server whose clock is behind by the server's `behind`, with a RayJob that was just made."""

    def date_time_string(self, timestamp=None):
        return super().date_time_string((timestamp or time.time()) - self.server.behind)

    def do_GET(self):  # noqa: N802 - http.server calls it so
        made = dt.datetime.fromtimestamp(time.time() - self.server.behind, dt.timezone.utc)
        stamp = made.isoformat(timespec="seconds").replace("+00:00", "Z")
        job = {"kind": "RayJob", "metadata": {"name": "a", "uid": "u", "creationTimestamp": stamp}, "spec": {}}
        of_one = self.path.endswith("/rayjobs/a")
        self.answer(200, job if of_one else {"metadata": {"resourceVersion": "1"}, "items": []})


@pytest.fixture
def api():
    with kubernetes(Api) as server:
        server.behind = 0.0
        yield server


@pytest.mark.parametrize("behind", [3600, -3600])
def test_time_is_the_server_s(api, behind):
    api.behind = behind
    kube = Kube()
    kube.find("RayJob", "a")
    assert kube.now() == pytest.approx(time.time() - behind, abs=2)


def test_time_of_a_pod_that_the_server_passes_requests_on_to_is_not_the_server_s(api):
    kube = Kube()
    kube.find("RayJob", "a")
    api.behind = 3600
    kube.send("GET", f"{kube.proxy('head')}/api/version")
    assert kube.now() == pytest.approx(time.time(), abs=2)


def test_clocks_that_agree_are_this_machine_s(api):  # noqa: ARG001 - it is asked
    kube = Kube()
    kube.find("RayJob", "a")
    before = time.time()
    assert before <= kube.now() <= time.time()


def test_connections_of_a_handle_that_nobody_holds_are_closed(api):  # noqa: ARG001 - it is asked
    kube = Kube()
    kube.find("RayJob", "a")
    http = kube.http
    del kube
    gc.collect()
    assert http.is_closed


def test_run_that_was_just_made_is_not_taken_for_one_that_no_operator_sees(api):
    api.behind = 2 * OPERATOR_S
    assert rk.attach("a", on="kubernetes").status().failure is None


@pytest.mark.parametrize("digits", ["1", "12", "123456", "123456789"])
def test_time_may_have_any_number_of_digits_of_a_second(digits):
    found = fields.seconds(f"2001-09-09T01:46:40.{digits}Z")
    assert found == pytest.approx(1_000_000_000 + float(f"0.{digits}"), abs=2e-6)
