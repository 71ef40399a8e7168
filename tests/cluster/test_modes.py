"""A RayJob in the mode that is KubeRay's default: a pod of its own hands the job to Ray, through a shell."""

import json
import shlex

import pytest
import yaml

import raykube as rk
from tests.cluster import kubectl, layout, workloads
from tests.cluster.shell import until
from tests.support import run

pytestmark = pytest.mark.cluster
WORDS = "a $HOME ${HOME} `id` \"q\" 'p' \\ é\n\ttail"
PRINTS = "import json, os, sys; print(json.dumps([sys.argv[1], os.environ['ODD'], os.environ['SUM']])); sys.exit(3)"
WITHIN_S = 5.0


def submitter(image):
    """Return the template of a submitter that asks for little."""
    resources = {"requests": {"cpu": "50m", "memory": "200Mi"}, "limits": {"memory": "1Gi"}}
    return {"spec": {"restartPolicy": "Never", "containers": [{"name": "s", "image": image, "resources": resources}]}}


@pytest.fixture
def submit(least, tmp_path, monkeypatch):  # noqa: ARG001
    """Return what submits a RayJob of these fields by the command line, as a user of the least rights."""
    monkeypatch.setenv("RAYKUBE_ON", "kubernetes")

    def submit(name, *options, **spec):
        job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": name}, "spec": spec}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(job, allow_unicode=True))
        return run("raykube", "job", "submit", "-f", str(tmp_path / f"{name}.yaml"), *options)

    return submit


def test_k8sjobmode_hands_on_words_and_tells_exit_codes_and_what_keeps_its_submitter(submit, namespace):
    plain = WORDS.replace("$", "").replace("`", "")
    done = submit(
        "fails",
        entrypoint=shlex.join(["python", "-c", PRINTS, WORDS]),
        runtimeEnvYAML=yaml.safe_dump({"env_vars": {"ODD": plain, "SUM": "$((6 * 7))"}}),
        rayClusterSpec=workloads.head_alone(storage=False)["spec"],
        submitterPodTemplate=submitter(layout.RAY_IMAGE),
    )
    assert "note: runtimeEnvYAML: K8sJobMode passes it through a shell" in done.stderr
    assert [WORDS, plain, "42"] in [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert done.returncode == 1, done.stderr
    assert run("raykube", "job", "wait", "fails").returncode == 1
    failure = json.loads(run("raykube", "job", "why", "fails", "--json").stdout)
    assert (failure["reason"], failure["exit_code"]) == ("EntrypointFailed", 3)

    there = kubectl.get("rayjob", "fails", namespace)["status"]["rayClusterName"]
    selector = {"ray.io/cluster": there}
    submit("waits", "--no-wait", entrypoint="true", clusterSelector=selector, submitterPodTemplate=submitter("nope:1"))
    waiting = rk.attach("waits", on="kubernetes")
    until(lambda: waits(namespace), "its submitter waits for something", 60)
    until(lambda: waiting.why().reason.startswith("Image"), "that is named", WITHIN_S)
    assert "[s].state.waiting" in waiting.why().where

    broken = yaml.safe_dump({"working_dir": "file:///nope.zip"})
    spec = {"entrypoint": "true", "clusterSelector": selector, "submissionMode": "HTTPMode", "runtimeEnvYAML": broken}
    done = submit("broken", **spec)
    assert (done.returncode, "RuntimeEnvSetupFailed" in done.stderr) == (1, True), done.stderr


def waits(namespace):
    """Return whether a container of the submitter says what it waits for."""
    pods = kubectl.listed("pods", namespace, "job-name=waits")
    containers = [each for pod in pods for each in pod["status"].get("containerStatuses") or ()]
    return any("message" in each["state"].get("waiting", {}) for each in containers)
