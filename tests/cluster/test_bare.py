"""A Kubernetes that lacks KubeRay, has the definitions of an older one, or only its definitions: one, in this order."""

import pytest

import raykube as rk
from raykube.backends.kuberay.causes import clustercauses
from raykube.backends.kuberay.runs import rayjobs
from raykube.errors import ManifestError
from tests.cluster import bare
from tests.support import run

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def server(own_cluster):  # noqa: ARG001 - its etcd, certificates and programs are used
    """Give the kubeconfig of a Kubernetes, at first without KubeRay, which is the current one.

    Each test installs the next definitions over those of the test before.
    """
    with bare.api_server() as kubeconfig, pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(kubeconfig))
        yield kubeconfig


@pytest.fixture
def job(tmp_path):
    (tmp_path / "train.py").write_text("print('trained')\n")
    return rk.Job(entrypoint="python train.py", working_dir=tmp_path, name="hello", pending_timeout_s=5)


@pytest.mark.usefixtures("server")
def test_kubernetes_without_kuberay_is_told_as_that(job):
    submitted = run("raykube", "job", "submit", "--on", "cpu-small", "--", "true", cwd=job.working_dir)
    assert submitted.returncode == 2
    for words in ("KubeRay's definitions are not installed", "next: have an administrator install KubeRay: helm"):
        assert words in submitted.stderr
    doctor = run("raykube", "doctor", "--on", "cpu-small")
    assert doctor.returncode == 1
    assert "FAIL  kuberay kinds" in doctor.stdout


def test_kuberay_that_is_too_old_is_told_with_what_it_does_not_know(server, job):
    bare.define(server, "kuberay-older")
    with pytest.raises(ManifestError) as caught:
        rk.submit(job, on="cpu-small")
    assert "spec.preRunningDeadlineSeconds: is unknown to this cluster's KubeRay" in str(caught.value)
    doctor = run("raykube", "doctor", "--on", "cpu-small")
    assert doctor.returncode == 1
    assert "it is older than 1.6" in doctor.stdout


def test_run_that_no_operator_sees_is_explained_at_once_and_not_waited_for_without_an_end(server, job, monkeypatch):
    bare.define(server, "kuberay")
    monkeypatch.setattr(rayjobs, "OVERDUE_S", 5.0)
    told = []
    submitted = rk.submit(job, on="cpu-small")
    with pytest.raises(rk.BackendError, match="run hello has not begun in its 5 s, and nobody ends it") as caught:
        submitted.wait(timeout_s=60, on_event=told.append)
    assert "start the operator" in caught.value.next_step
    explained = [event for event in told if event.status.failure]
    assert {event.status.failure.reason for event in explained} == {"OperatorNotRunning"}
    # The server tells whole seconds, and the waiter looks at its clock twice a second.
    assert explained[0].time - explained[0].status.submitted < clustercauses.OPERATOR_S + 3
    assert len(told) <= 3, "each change is told once"
    submitted.delete()
    assert rk.runs(on="cpu-small") == []
