import base64
import copy
import dataclasses
import io
import json
import os
import re
import shlex
import zipfile
from pathlib import Path

import pytest
import yaml

import raykube as rk
from raykube import App, Cluster, ConfigError, Job, Service, bodies, differences, marks, plans
from raykube.autoscaling import Autoscaling
from raykube.backends.kuberay.runs import jobs
from raykube.backends.kuberay.serve import servestates, services
from raykube.doctor import named
from raykube.package import PackedFile, collect
from raykube.yamltext import as_yaml

GOLDEN = Path(__file__).parent / "golden"
PRESETS = ("cpu-small", "cpu-autoscale", "gpu-t4", "gpu-8xh100")
JOB = Job.module("jobs.digits", "--epochs", "20", name="digits-a1", env_vars={"A": "b"}, max_retries=2, timeout_s=3600)
SERVICE = Service(
    name="digits",
    apps=(
        App(
            import_path="jobs.digits_app:app",
            model="run:digits-a1",
            args={"max_batch_size": 8},
            autoscaling_config=Autoscaling(min_replicas=1, max_replicas=4),
        ),
    ),
)


def test_plan_is_shown_without_its_variables(code):
    job = Job(entrypoint="python a.py", working_dir=code.root, env_vars={"TOKEN": "hunter2"})
    for planned in (rk.plan(job), rk.plan(job, "cpu-small")):
        assert "hunter2" in planned.yaml()
        assert "hunter2" not in repr(planned)


@pytest.fixture
def code(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("print(1)\n")
    return collect(tmp_path / "code")


@pytest.fixture
def large(tmp_path):
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "a.bin").write_bytes(os.urandom(1200 * 1024))
    return collect(tmp_path / "large")


def stored(cluster, storage="s3://bucket/runs"):
    manifest = copy.deepcopy(dict(cluster.manifest))
    manifest["metadata"]["annotations"] = {marks.STORAGE: storage}
    return Cluster(manifest, cluster.source, cluster.name)


def mounted(cluster, *paths):
    """Mount something in as many groups as there are paths, the head's first."""
    manifest = copy.deepcopy(dict(cluster.manifest))
    groups = (manifest["spec"]["headGroupSpec"], *manifest["spec"]["workerGroupSpecs"])
    for group, path in zip(groups, paths, strict=False):
        group["template"]["spec"]["containers"][0]["volumeMounts"] = [{"name": "v", "mountPath": path}]
    return Cluster(manifest, cluster.source, cluster.name)


@pytest.mark.parametrize(
    ("storage", "mounts", "told"),
    [
        ("/data/runs", (), "the head, group workers"),
        ("/data/runs", ("/data",), "in group workers"),
        ("file:///data/runs", ("/dat", "/data/runs"), "in the head:"),
        ("/data/runs", ("/data/", "/data/runs"), ""),
        ("s3://bucket/runs", (), ""),
    ],
)
def test_storage_that_a_group_does_not_mount_is_noted_and_seen_by_doctor(code, storage, mounts, told):
    cluster = stored(mounted(Cluster.load("gpu-t4"), *mounts), storage)
    for plan in (plans.rayjob(JOB, cluster, code), plans.rayservice(SERVICE, cluster, code)):
        (note,) = plan.notes or ("",)
        assert told in note
        assert bool(note) == bool(told)
    assert named.storage(cluster).ok is (None if told else True)


def test_missing_storage_is_noted_of_a_job_and_not_of_a_service_which_keeps_nothing(code):
    cluster = Cluster.load("gpu-t4")
    assert "checkpoints and results are lost" in " ".join(plans.rayjob(JOB, cluster, code).notes)
    assert plans.rayservice(SERVICE, cluster, code).notes == ()


def only(plan, kind):
    (found,) = (part for part in plan.body if part["kind"] == kind)
    return found


def normal(text, package):
    text = re.sub(rf"(?m)^(  {package.hash}\.zip: ).*$", r"\1BYTES", text)
    text = re.sub(r"(raykube(?:\.io/|\.)(plan|work): ).*", lambda found: f"{found[1]}{found[2].upper()}", text)
    return text.replace(package.hash, "HASH")


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("kind", ["job", "service"])
def test_plan_of_each_preset_is_the_golden_one(name, kind, code):
    cluster = Cluster.load(name)
    plan = plans.rayjob(JOB, cluster, code) if kind == "job" else plans.rayservice(SERVICE, cluster, code)
    golden = GOLDEN / f"{name}-{kind}.yaml"
    text = normal(plan.yaml(), code)
    if os.environ.get("RAYKUBE_WRITE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("name", PRESETS)
def test_plan_yaml_is_the_body_again(name, code):
    plan = plans.rayjob(JOB, Cluster.load(name), code)
    assert list(yaml.safe_load_all(plan.yaml())) == list(plan.body)
    assert "&id" not in plan.yaml()


@pytest.mark.parametrize("date", ["2025-01-31", "2025-01-31T10:00:00Z", "!!timestamp 2025-01-31"])
def test_date_in_a_manifest_is_sent_as_the_text_that_it_is(date, code, tmp_path):
    text = Path(Cluster.load("cpu-small").source).read_text()
    (tmp_path / "dated.yaml").write_text(text.replace("metadata:\n", f"metadata:\n  labels: {{since: {date}}}\n", 1))
    plan = plans.rayjob(JOB, Cluster.load(tmp_path / "dated.yaml"), code)
    since = date.removeprefix("!!timestamp ")
    assert only(plan, "RayJob")["metadata"]["labels"]["since"] == since
    assert [*yaml.safe_load_all(plan.yaml())][-1]["metadata"]["labels"]["since"] == since


def test_plan_is_equal_for_equal_input_and_differs_by_each_part(code, large):
    cluster = Cluster.load("gpu-t4")
    base = plans.rayjob(JOB, cluster, code)
    assert plans.rayjob(JOB, cluster, code).hash == base.hash
    others = [
        plans.rayjob(JOB.model_copy(update={"max_retries": 3}), cluster, code),
        plans.rayjob(JOB, cluster.sized(3), code),
        plans.rayjob(JOB, stored(cluster), large),
        plans.rayjob(JOB, stored(cluster), code),
    ]
    assert len({plan.hash for plan in [base, *others]}) == 5


def test_plan_label_is_its_hash_and_not_part_of_it(code):
    plan = plans.rayjob(JOB, Cluster.load("gpu-t4"), code)
    assert {part["metadata"]["labels"]["raykube.io/plan"] for part in plan.body} == {plan.hash}


def test_plan_of_the_same_code_at_another_commit_is_the_same(code, tmp_path):
    other = collect(tmp_path / "code")
    object.__setattr__(other, "git_commit", "f" * 40)
    cluster = Cluster.load("gpu-t4")
    first, second = plans.rayjob(JOB, cluster, code), plans.rayjob(JOB, cluster, other)
    assert "f" * 40 in second.yaml()
    assert first.hash == second.hash
    assert differences.of_texts(first.yaml(), second.yaml()) == ""


@pytest.mark.parametrize("word", ["$RAYKUBE_ATTEMPT", "$RAYKUBE_GIT_COMMIT", "raykube.plan", "raykube.io/plan: x"])
def test_command_that_names_what_makes_no_plan_another_one_is_part_of_its_plan(code, word):
    def job(rate):
        return JOB.model_copy(update={"entrypoint": f"bash -c 'echo {word}; python t.py --lr {rate}'"})

    cluster = Cluster.load("gpu-t4")
    first, second = (plans.rayjob(job(rate), cluster, code) for rate in (1, 2))
    assert first.hash != second.hash
    found = [bodies.localjob(job(rate), Cluster.local(), "file:///x.zip", code) for rate in (1, 2)]
    assert found[0]["metadata"]["raykube.plan"] != found[1]["metadata"]["raykube.plan"]
    assert "--lr 1" in differences.of_texts(as_yaml(found[0]), as_yaml(found[1]))


def test_variable_whose_value_names_the_attempt_is_part_of_the_plan(code):
    cluster = Cluster.load("gpu-t4")
    first, second = (
        plans.rayjob(JOB.model_copy(update={"env_vars": {"OUT": f"{folder}/RAYKUBE_ATTEMPT: 1"}}), cluster, code)
        for folder in "ab"
    )
    assert first.hash != second.hash


def test_order_in_which_variables_and_arguments_are_given_makes_no_other_plan(code):
    cluster = stored(Cluster.load("gpu-t4"))

    def planned(**order):
        variables = {key: str(value) for key, value in order.items()}
        app = SERVICE.apps[0].model_copy(update={"args": order, "env_vars": variables})
        service = SERVICE.model_copy(update={"apps": (app,)})
        job = JOB.model_copy(update={"env_vars": variables})
        return plans.rayjob(job, cluster, code).hash, plans.rayservice(service, cluster, code).hash

    assert planned(a=1, b=2) == planned(b=2, a=1)


def test_later_attempt_of_a_job_or_service_has_the_same_plan(code):
    cluster = stored(Cluster.load("gpu-t4"))
    job, service = plans.rayjob(JOB, cluster, code), plans.rayservice(SERVICE, cluster, code)
    deployed = only(service, "RayService")
    later = [
        (job, {"runtimeEnvYAML": jobs.again(only(job, "RayJob"), 2)["spec"]["runtimeEnvYAML"]}),
        (service, services.retried(deployed, deployed, [SERVICE.apps[0].name])["spec"]),
    ]
    for plan, change in later:
        *before, work = plan.body
        again = work | {"spec": work["spec"] | change}
        assert again != work
        assert plans.Plan(plan.name, "kuberay", (*before, again)).hash == plan.hash


def test_small_code_travels_in_a_config_map_on_every_pod(code):
    plan = plans.rayjob(JOB, Cluster.load("gpu-t4"), code)
    (content,) = only(plan, "ConfigMap")["binaryData"].values()
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(content))) as archive:
        assert "raykube-code/a.py" in archive.namelist()
    job = only(plan, "RayJob")["spec"]
    assert job["submissionMode"] == "HTTPMode"
    env = yaml.safe_load(job["runtimeEnvYAML"])
    spec = job["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        mount = pod["containers"][0]["volumeMounts"][-1]
        assert env["working_dir"] == f"file://{mount['mountPath']}/{code.hash}.zip"
        assert pod["volumes"][-1] == {"name": mount["name"], "configMap": {"name": "digits-a1-code"}}


@pytest.mark.parametrize(
    ("storage", "uri"),
    [
        ("s3://bucket/runs/", "s3://bucket/runs/digits-a1/.code/"),
        ("/mnt/runs", "file:///mnt/runs/digits-a1/.code/"),
    ],
)
def test_large_code_goes_to_the_storage(large, storage, uri):
    plan = plans.rayjob(JOB, stored(Cluster.load("gpu-t4"), storage), large)
    env = yaml.safe_load(only(plan, "RayJob")["spec"]["runtimeEnvYAML"])
    assert env["working_dir"] == f"{uri}{large.hash}.zip"
    assert env["env_vars"]["RAYKUBE_STORAGE"] == storage
    assert [part["kind"] for part in plan.body] == ["RayJob"]


def notes_of_code(*planned):
    return [note for plan in planned for note in plan.notes if "the code" in note]


def test_plan_says_where_code_goes_that_no_config_map_holds(large, code):
    cluster = stored(Cluster.load("gpu-t4"), "/shared/")
    told = "the code is too large for a ConfigMap: it goes to the storage, to /shared/{}/.code"
    planned = plans.rayjob(JOB, cluster, large), plans.rayservice(SERVICE, cluster, large)
    assert notes_of_code(*planned) == [told.format("digits-a1"), told.format("digits")]
    assert notes_of_code(plans.rayjob(JOB, cluster, code), plans.rayservice(SERVICE, cluster, code)) == []
    assert notes_of_code(plans.rayjob(JOB, dataclasses.replace(cluster, selected=True), large)) == []


def test_large_code_without_storage_is_uploaded_and_not_retried(large):
    cluster = Cluster.load("gpu-t4")
    with pytest.raises(ConfigError, match="max_retries: must be 0"):
        plans.rayjob(JOB, cluster, large)
    plan = plans.rayjob(JOB.model_copy(update={"max_retries": 0}), cluster, large)
    spec = only(plan, "RayJob")["spec"]
    assert (spec["submissionMode"], spec["jobId"], spec["backoffLimit"]) == ("InteractiveMode", "digits-a1-1", 0)
    assert spec["metadata"]["raykube.code"] == large.hash
    assert any("cannot be retried" in note for note in plan.notes)


@pytest.fixture
def medium(tmp_path):
    """Return code whose zip has less than a ConfigMap's 1 MiB, and whose base64 has more."""
    (tmp_path / "medium").mkdir()
    (tmp_path / "medium" / "a.bin").write_bytes(os.urandom(850 * 1024))
    return collect(tmp_path / "medium")


def test_code_travels_in_a_config_map_as_far_as_kubernetes_counts_its_bytes(medium):
    cluster = Cluster.load("gpu-t4")
    for plan in (plans.rayjob(JOB, cluster, medium), plans.rayservice(SERVICE, cluster, medium)):
        (text,) = only(plan, "ConfigMap")["binaryData"].values()
        assert len(base64.b64decode(text)) < 1000 * 1024 < 2**20 < len(text)


def test_large_code_of_a_service_without_storage_is_refused(large):
    with pytest.raises(ConfigError, match="too large for a ConfigMap"):
        plans.rayservice(SERVICE, Cluster.load("gpu-t4"), large)


def test_rayjob_says_what_it_cannot_do_all_at_once(code):
    job = Job(entrypoint="true", entrypoint_memory=1, entrypoint_label_selector={"a": "b"})
    with pytest.raises(ConfigError) as caught:
        plans.rayjob(job, Cluster.load("gpu-t4"), code)
    assert {problem.path for problem in caught.value.problems} == {"entrypoint_memory", "entrypoint_label_selector"}


def standing(**changes):
    """Return a cluster that is there, and not as raykube would have made it."""
    manifest = copy.deepcopy(dict(Cluster.load("cpu-small").manifest))
    manifest["spec"].update(changes)
    return Cluster(manifest, "RayCluster demo", "demo", selected=True)


@pytest.mark.parametrize(
    "changes", [{"upgradeStrategy": {"type": "Recreate"}}, {"rayVersion": "2.46.0"}, {"rayVersion": ""}]
)
def test_cluster_that_is_there_is_not_judged_by_the_rules_for_one_of_a_jobs_own(code, changes):
    (job,) = plans.rayjob(JOB, standing(**changes), code).body
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": "demo"}


def test_cluster_that_is_there_with_amounts_that_only_its_pods_know_is_refused_with_their_place(code):
    cluster = standing()
    cluster.manifest["spec"]["workerGroupSpecs"][0]["rayStartParams"] = {"num-cpus": "$CPUS"}
    with pytest.raises(ConfigError) as caught:
        plans.rayjob(JOB, cluster, code)
    assert [problem.path for problem in caught.value.problems] == [
        "spec.workerGroupSpecs[0].template.spec.containers[0].resources"
    ]


def test_code_that_is_too_large_for_an_upload_is_refused_on_a_cluster_that_is_there(code):
    huge = dataclasses.replace(
        code, files=(*code.files, PackedFile("a.bin", code.root, 101 * 2**20, "", executable=False))
    )
    assert plans.rayjob(JOB, standing(), code).body
    for cluster in (standing(), dataclasses.replace(stored(standing()), selected=True)):
        with pytest.raises(ConfigError, match="an upload takes 104,857,600") as caught:
            plans.rayjob(JOB, cluster, huge)
        (problem,) = caught.value.problems
        assert (problem.path, problem.next_step) == ("working_dir", "exclude files from the code")


def test_code_that_is_too_large_for_an_upload_is_refused_on_a_cluster_of_its_own_without_storage(code):
    huge = dataclasses.replace(
        code, files=(*code.files, PackedFile("a.bin", code.root, 101 * 2**20, "", executable=False))
    )
    with pytest.raises(ConfigError, match="an upload takes 104,857,600") as caught:
        plans.rayjob(JOB.model_copy(update={"max_retries": 0}), Cluster.load("cpu-small"), huge)
    assert "raykube.io/storage" in str(caught.value)


def test_rayjob_carries_every_field_of_the_job(code):
    job = Job(
        entrypoint="python a.py && echo '$X'",
        name="a",
        pip=("tqdm",),
        runtime_env={"config": {"setup_timeout_seconds": 60}},
        metadata={"team": "x"},
        timeout_s=0.5,
        pending_timeout_s=60,
        keep_cluster_s=0,
        queue="gpus",
        entrypoint_num_cpus=1,
        entrypoint_num_gpus=0.5,
        entrypoint_resources={"a": 1},
    )
    found = only(plans.rayjob(job, Cluster.load("gpu-t4"), code), "RayJob")
    spec = found["spec"]
    env = yaml.safe_load(spec["runtimeEnvYAML"])
    assert found["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert shlex.split(spec["entrypoint"])[-2:] == ["0", "python a.py && echo '$X'"]
    assert (env["pip"], env["config"]) == (["tqdm"], {"setup_timeout_seconds": 60})
    assert spec["metadata"]["team"] == "x"
    assert (spec["activeDeadlineSeconds"], spec["preRunningDeadlineSeconds"]) == (1, 60)
    assert (spec["shutdownAfterJobFinishes"], spec["ttlSecondsAfterFinished"]) == (True, 0)
    assert (spec["entrypointNumCpus"], spec["entrypointNumGpus"], spec["entrypointResources"]) == (1, 0.5, '{"a": 1.0}')


def test_rayjob_tells_the_script_its_scale_and_keeps_the_users_word(code):
    cluster = Cluster.load("gpu-8xh100").sized((8, 24))
    job = JOB.model_copy(update={"env_vars": {"RAYKUBE_CPUS_PER_WORKER": "2"}})
    env = yaml.safe_load(only(plans.rayjob(job, cluster, code), "RayJob")["spec"]["runtimeEnvYAML"])["env_vars"]
    assert env["RAYKUBE_WORKERS"] == "8..24"
    assert (env["RAYKUBE_GPUS_PER_WORKER"], env["RAYKUBE_CPUS_PER_WORKER"]) == ("1", "2")
    assert (env["RAYKUBE_RUN_NAME"], env["RAYKUBE_ATTEMPT"]) == ("digits-a1", "1")


@pytest.mark.parametrize("text", ["y", "N", "1e3", "12e45", "0o17", "007", "1_000", "-5", ".5", ".5e1", "0x1f"])
def test_text_that_looks_like_a_number_is_quoted_for_every_reader(text):
    assert as_yaml({"a": text}) == f'a: "{text}"\n'


def bare():
    """A manifest with nothing but what KubeRay requires, and a field that raykube does not know."""

    def group(name):
        return {"template": {"spec": {"containers": [{"name": name, "image": "r"}], "priorityClassName": "high"}}}

    worker = {"groupName": "w", "replicas": 1, **group("ray-worker")}
    spec = {
        "rayVersion": "2.60.0",
        "headGroupSpec": group("ray-head"),
        "workerGroupSpecs": [worker],
        "newField": {"a": 1},
    }
    metadata = {"name": "bare", "namespace": "team", "labels": {"cost": "me"}, "annotations": {"a": "b"}}
    return Cluster(
        {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata, "spec": spec}, "bare.yaml", "bare"
    )


def test_rayjob_adds_what_kuberay_leaves_out(code):
    spec = only(plans.rayjob(JOB, bare(), code), "RayJob")["spec"]["rayClusterSpec"]
    head = spec["headGroupSpec"]
    container = head["template"]["spec"]["containers"][0]
    assert {port["containerPort"] for port in container["ports"]} == {6379, 8265, 10001, 8000, 8080}
    assert head["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in container["env"]
    assert spec["autoscalerOptions"] == {"version": "v2"}
    assert spec["authOptions"] == {"mode": "token"}


def test_pods_are_asked_whether_they_are_well_where_their_agent_listens(code):
    cluster, name = bare(), "dashboard-agent-listen-port"
    (worker,) = cluster.manifest["spec"]["workerGroupSpecs"]
    groups = [worker, *({**copy.deepcopy(worker), "groupName": each} for each in ("moved", "said-by-the-shell"))]
    groups[1]["rayStartParams"], groups[2]["rayStartParams"] = {name: "52400"}, {name: "$PORT"}
    cluster.manifest["spec"]["workerGroupSpecs"] = groups
    spec = only(plans.rayjob(JOB, cluster, code), "RayJob")["spec"]["rayClusterSpec"]
    usual, moved, unknown = (group["template"]["spec"]["containers"][0] for group in spec["workerGroupSpecs"])
    for probe in ("readinessProbe", "livenessProbe"):
        assert usual[probe]["httpGet"] == {"path": "/api/healthz", "port": 52365}
        assert moved[probe]["httpGet"] == {"path": "/api/healthz", "port": 52400}
        assert probe not in unknown


def test_rayjob_keeps_what_the_manifest_says(code):
    cluster = bare()
    head = cluster.manifest["spec"]["headGroupSpec"]
    head["resources"] = {"CPU": "4"}
    head["template"]["spec"]["containers"][0] |= {
        "ports": [{"name": "own", "containerPort": 9999}, {"containerPort": 8265}],
        "resources": {"limits": {"nvidia.com/gpu": "1"}},
    }
    cluster.manifest["spec"]["authOptions"] = {"mode": "disabled"}
    before = copy.deepcopy(cluster.manifest)
    found = only(plans.rayjob(JOB, cluster, code), "RayJob")
    spec = found["spec"]["rayClusterSpec"]
    container = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert spec["headGroupSpec"]["resources"] == {"CPU": "4"}
    assert "rayStartParams" not in spec["headGroupSpec"]
    assert [port["name"] for port in container["ports"]] == [
        *("own", "dashboard", "gcs-server", "client", "serve", "metrics")
    ]
    assert "env" not in container
    assert spec["newField"] == {"a": 1}
    assert spec["authOptions"] == {"mode": "disabled"}
    assert spec["workerGroupSpecs"][0]["template"]["spec"]["priorityClassName"] == "high"
    assert (found["metadata"]["namespace"], found["metadata"]["labels"]["cost"]) == ("team", "me")
    assert found["metadata"]["annotations"] == {"a": "b"}
    assert cluster.manifest == before


def test_autoscaling_asked_for_on_a_manifest_that_forbids_it_is_refused(code):
    cluster = bare()
    cluster.manifest["spec"]["workerGroupSpecs"][0]["template"]["spec"]["restartPolicy"] = "Always"
    plans.rayjob(JOB, cluster, code)
    with pytest.raises(ConfigError, match="restartPolicy"):
        plans.rayjob(JOB, cluster.sized((1, 2)), code)


def test_head_without_workers_runs_the_work(code):
    cluster = bare()
    cluster.manifest["spec"]["workerGroupSpecs"] = []
    head = only(plans.rayjob(JOB, cluster, code), "RayJob")["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert "num-cpus" not in head["rayStartParams"]


def test_environment_is_guarded_from_ray_unless_it_stands_in_a_runtime_env(code):
    own, rays = {"A": "$HOME costs ${B}"}, {"PATH": "/opt/bin:${PATH}"}
    job = JOB.model_copy(update={"env_vars": own, "runtime_env": {"env_vars": rays}})
    cluster = stored(Cluster.load("cpu-small"), "/data/$team")
    env = yaml.safe_load(only(plans.rayjob(job, cluster, code), "RayJob")["spec"]["runtimeEnvYAML"])["env_vars"]
    assert as_ray_sets(env["A"], HOME="/root", B="5") == own["A"]
    assert as_ray_sets(env["PATH"], PATH="/bin") == "/opt/bin:/bin"
    assert as_ray_sets(env["RAYKUBE_STORAGE"], team="x") == "/data/$team"
    service = SERVICE.model_copy(update={"apps": (SERVICE.apps[0].model_copy(update={"env_vars": own}),)})
    (app,) = bodies.localservice(service, Cluster.local(), "file:///x.zip")
    assert as_ray_sets(app["runtime_env"]["env_vars"]["A"], HOME="/root", B="5") == own["A"]


def as_ray_sets(value, **environ):
    """Do what Ray 2.60 does to a value: ``ray/_private/utils.py``, ``update_envs``."""
    known = re.sub(r"\$(\w+|\{[^}]*\})", lambda name: environ.get(name[1].strip("{}"), name[0]), value)
    return re.sub(r"\$\{[A-Z0-9_]+\}", "", known)


def test_environment_of_an_image_of_its_own_is_not_guarded():
    job = JOB.model_copy(update={"env_vars": {"A": "$B"}, "runtime_env": {"image_uri": "i"}})
    assert bodies.localjob(job, Cluster.local(), "file:///x.zip")["runtime_env"]["env_vars"]["A"] == "$B"


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"entrypoint": "python a.py && python b.py"}, ["K8sJobMode", "'&&'"]),
        ({"entrypoint": "python a.py > log", "submissionMode": "SidecarMode"}, ["SidecarMode", "'>'"]),
        ({"entrypoint": "a", "runtimeEnvYAML": "env_vars: {A: $B, C: '`id`'}"}, ["runtimeEnvYAML", "$ and `"]),
        ({"entrypoint": 'python -c "\nprint(1); 2 > 1 and 3\n"\n', "runtimeEnvYAML": "env_vars: {A: b}"}, []),
        ({"entrypoint": "a && b", "runtimeEnvYAML": "env_vars: {A: $B}", "submissionMode": "HTTPMode"}, []),
        ({"entrypoint": "a; b", "submitterPodTemplate": {"spec": {"containers": [{"command": ["/go"]}]}}}, []),
        ({"entrypoint": "echo 'open"}, []),
    ],
)
def test_manifest_whose_words_a_shell_takes_before_ray_is_noted(spec, told):
    document = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "a"}, "spec": spec}
    notes = " ".join(plans.written_rayjob([document], Cluster.load("kubernetes")).notes)
    assert all(word in notes for word in told)
    assert bool(notes) == bool(told)


@pytest.mark.parametrize(
    ("spec", "is_noted"),
    [
        ({"rayClusterSpec": {"rayVersion": "2.60.0"}}, True),
        ({"rayClusterSpec": {"authOptions": {"mode": "disabled"}}}, True),
        ({"rayClusterSpec": {"authOptions": {"mode": "token"}}}, False),
        ({"clusterSelector": {"ray.io/cluster": "demo"}}, False),
    ],
)
def test_manifest_whose_own_cluster_asks_for_no_token_is_noted(spec, is_noted):
    spec = {"entrypoint": "a", "submissionMode": "HTTPMode", **spec}
    document = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "a"}, "spec": spec}
    notes = " ".join(plans.written_rayjob([document], Cluster.load("kubernetes")).notes)
    assert ("write authOptions: {mode: token}" in notes) == is_noted
    assert bool(notes) == is_noted


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"metadata": "x"}, "metadata"),
        ({"metadata": {"name": "a", "labels": "y"}}, "metadata.labels"),
        ({"metadata": {"name": 5}}, "metadata.name"),
        ({"spec": ["x"]}, "spec"),
        ({"spec": {"submitterPodTemplate": {"spec": {"containers": {"a": 1}}}}}, "spec.submitterPodTemplate.spec."),
    ],
)
def test_manifest_with_a_value_of_another_kind_is_refused(change, path):
    document = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "a"}, "spec": {"entrypoint": "a"}}
    with pytest.raises(ConfigError) as told:
        plans.written_rayjob([{"kind": "Secret", "metadata": "x"}, document | change], Cluster.load("kubernetes"))
    beside, found = told.value.problems
    assert beside.path == "document 1.metadata"
    assert found.path.startswith(path)


def test_object_of_another_namespace_than_its_rayjob_is_named_with_both():
    job = {"kind": "RayJob", "metadata": {"name": "a", "namespace": "lab"}, "spec": {"entrypoint": "a"}}
    beside = [{"kind": "ConfigMap", "metadata": {"name": name, "namespace": name}} for name in ("lab", "other")]
    on = Cluster.load("kubernetes")
    with pytest.raises(ConfigError) as told:
        plans.written_rayjob([{"kind": "Secret", "metadata": {"name": "b"}}, *beside, job], on)
    (found,) = told.value.problems
    assert (found.path, found.what) == ("ConfigMap other", "is of namespace other, and the RayJob of lab")
    given = plans.written_rayjob([*beside, job], on.placed("given"))
    assert {part["metadata"]["namespace"] for part in given.body} == {"given"}


def test_manifest_beside_whose_job_stands_an_object_without_metadata_is_planned():
    document = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "a"}, "spec": {"entrypoint": "a"}}
    plan = plans.written_rayjob([{"kind": "Secret"}, document], Cluster.load("kubernetes"))
    assert [part["kind"] for part in plan.body] == ["Secret", "RayJob"]


def test_localjob_is_the_body_of_rays_job_api(code):
    job = JOB.model_copy(update={"pip": ("tqdm",), "metadata": {"team": "x"}, "entrypoint_memory": 5})
    body = bodies.localjob(job, Cluster.local(2), "file:///x.zip", code)
    assert (body["entrypoint"], body["submission_id"]) == ("python -m jobs.digits --epochs 20", "digits-a1-1")
    env = body["runtime_env"]
    assert (env["working_dir"], env["pip"]) == ("file:///x.zip", ["tqdm"])
    assert (env["env_vars"]["RAYKUBE_WORKERS"], env["env_vars"]["A"]) == ("2", "b")
    assert env["env_vars"]["RAYKUBE_STORAGE"] == Cluster.local().storage
    assert body["entrypoint_memory"] == 5
    assert (body["metadata"]["team"], body["metadata"]["raykube.run"]) == ("x", "digits-a1")
    assert all(isinstance(value, str) for value in body["metadata"].values())


def test_local_plan_has_the_limits_and_the_hash_in_its_body():
    plan = plans.Plan("digits-a1", "local", (bodies.localjob(JOB, Cluster.local(), "file:///x.zip"),))
    assert plan.limits == bodies.Limits(2, 3600, 900)
    assert plan.body[0]["metadata"]["raykube.plan"] == plan.hash
    assert not plan.is_service


def test_local_tracking_setting_reaches_the_run(monkeypatch):
    monkeypatch.setenv("RAYKUBE_TRACKING", "off")
    body = bodies.localjob(JOB, Cluster.local(), "file:///x.zip")
    assert body["runtime_env"]["env_vars"]["RAYKUBE_TRACKING"] == "off"


def test_localservice_is_the_list_of_serve_applications():
    (app,) = bodies.localservice(SERVICE, Cluster.local(), "file:///x.zip")
    assert app["args"] == {"max_batch_size": 8, "model": "run:digits-a1"}
    assert app["deployments"] == [{"name": "Model", "autoscaling_config": {"min_replicas": 1, "max_replicas": 4}}]
    assert app["runtime_env"]["working_dir"] == "file:///x.zip"
    assert app["runtime_env"]["env_vars"] == {"RAYKUBE_STORAGE": Cluster.local().storage}
    assert plans.Plan("s", "local", (app,)).is_service


def test_serve_app_carries_its_bounds_of_requests():
    service = Service(name="s", apps=(App(import_path="a:b", max_ongoing_requests=5, max_queued_requests=7),))
    (app,) = bodies.localservice(service, Cluster.local(), "file:///x.zip")
    assert app["deployments"] == [{"name": "Model", "max_ongoing_requests": 5, "max_queued_requests": 7}]


@pytest.mark.parametrize(("own", "found"), [({}, "30m"), ({"ray.io/initializing-timeout": "2h"}, "2h")])
def test_service_is_given_up_after_the_manifests_own_time_if_it_says_one(code, own, found):
    cluster = bare()
    cluster.manifest["metadata"]["annotations"] = own
    metadata = only(plans.rayservice(SERVICE, cluster, code), "RayService")["metadata"]
    assert metadata["annotations"]["ray.io/initializing-timeout"] == found


def test_serve_app_without_numbers_names_no_deployment():
    service = Service(name="s", apps=(App(import_path="a:b"),))
    assert "deployments" not in bodies.localservice(service, Cluster.local(), "file:///x.zip")[0]


def test_plan_is_the_same_wherever_its_namespace_is_said(code):
    cluster = bare()
    said = plans.rayjob(JOB, cluster, code)
    del cluster.manifest["metadata"]["namespace"]
    unsaid = plans.rayjob(JOB, cluster, code)
    labels = [only(plan, "RayJob")["metadata"]["labels"] for plan in (said, unsaid)]
    assert labels[0] == labels[1]
    assert said.hash == unsaid.hash


def test_manifest_read_from_a_server_is_sent_without_what_that_has_added(code):
    cluster = bare()
    cluster.manifest["metadata"] |= {
        "uid": "u",
        "resourceVersion": "7",
        "generation": 2,
        "creationTimestamp": "2026-11-24T12:00:00Z",
        "finalizers": ["x"],
        "ownerReferences": [{"name": "a"}],
        "managedFields": [{}],
        "annotations": {"a": "b", "kubectl.kubernetes.io/last-applied-configuration": "{}"},
    }
    for part in plans.rayjob(JOB, cluster, code).body:
        assert part["metadata"].keys() <= {"name", "namespace", "labels", "annotations"}
    assert only(plans.rayjob(JOB, cluster, code), "RayJob")["metadata"]["annotations"] == {"a": "b"}


@pytest.mark.parametrize("text", [{"pip": ["x"]}, "a: [", "just text", "- a"])
def test_rayjob_whose_environment_is_no_mapping_in_a_text_is_refused(text):
    job = {"kind": "RayJob", "metadata": {"name": "a"}, "spec": {"entrypoint": "a", "runtimeEnvYAML": text}}
    with pytest.raises(ConfigError, match="runtimeEnvYAML: is no text that holds a mapping"):
        plans.written_rayjob([job], Cluster.local())


def test_dashboard_by_another_name_is_refused_for_kuberay_would_wait_for_it(code):
    cluster = bare()
    cluster.manifest["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"] = [
        {"name": "ui", "containerPort": 8265}
    ]
    with pytest.raises(ConfigError, match="the port 8265 is called 'ui', and KubeRay looks for dashboard"):
        plans.rayjob(JOB, cluster, code)


def test_annotations_of_a_manifest_may_be_empty(code):
    cluster = bare()
    cluster.manifest["metadata"]["annotations"] = None
    service = Service(name="s", apps=[App(import_path="a:b")])
    annotations = only(plans.rayservice(service, cluster, code), "RayService")["metadata"]["annotations"]
    assert annotations == {"ray.io/initializing-timeout": "30m"}


def test_run_tells_its_storage_what_work_it_is_whatever_it_runs_on(code):
    def work(job):
        return only(plans.rayjob(job, bare(), code), "RayJob")["spec"]["metadata"]["raykube.work"]

    longer, other = (JOB.model_copy(update=each) for each in ({"timeout_s": 7200}, {"entrypoint": "python b.py"}))
    assert work(JOB) == work(longer) != work(other)
    larger = bare()
    larger.manifest["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"] = "newer"
    assert only(plans.rayjob(JOB, larger, code), "RayJob")["spec"]["metadata"]["raykube.work"] == work(JOB)


def test_run_on_a_cluster_that_stays_notes_what_its_storage_is_read_with(code):
    cluster = dataclasses.replace(stored(mounted(bare(), "/shared"), "/shared"), selected=True)
    job = only(plans.rayjob(JOB, cluster, code), "RayJob")
    noted = json.loads(job["metadata"]["annotations"]["raykube.io/storage-pod"])
    (container,) = noted["spec"]["containers"]
    assert (container["image"], container["volumeMounts"][0]["mountPath"]) == ("r", "/shared")
    cluster.manifest["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"] = "newer"
    again = only(plans.rayjob(JOB, cluster, code), "RayJob")
    assert again["metadata"]["labels"] == job["metadata"]["labels"]


def test_rayjob_of_an_unknown_mode_is_refused_with_the_nearest():
    job = {"kind": "RayJob", "metadata": {"name": "a"}, "spec": {"entrypoint": "a", "submissionMode": "HttpMode"}}
    with pytest.raises(ConfigError, match="KubeRay would wait for ever") as caught:
        plans.written_rayjob([job], Cluster.local())
    assert caught.value.next_step == "did you mean HTTPMode?"


def test_port_of_a_known_number_gets_no_name_that_another_has(code):
    cluster = bare()
    cluster.manifest["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"] = [
        {"containerPort": 8080},
        {"name": "metrics", "containerPort": 9090},
    ]
    spec = only(plans.rayjob(JOB, cluster, code), "RayJob")["spec"]["rayClusterSpec"]
    names = [each.get("name") for each in spec["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]]
    assert names[:2] == [None, "metrics"]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("text", ["env_vars: {DAY: 2026-02-30}", "", None])
def test_rayjob_with_any_sound_environment_is_planned(text):
    job = {"kind": "RayJob", "metadata": {"name": "a"}, "spec": {"entrypoint": "a", "runtimeEnvYAML": text}}
    assert plans.written_rayjob([job], Cluster.local()).name == "a"


def test_serve_is_told_the_port_that_the_head_names(code):
    manifest = copy.deepcopy(dict(Cluster.load("cpu-small").manifest))
    manifest["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"] = [
        {"name": "serve", "containerPort": 9000}
    ]
    body = only(plans.rayservice(SERVICE, Cluster(manifest, "here", "here"), code), "RayService")
    assert yaml.safe_load(body["spec"]["serveConfigV2"])["http_options"]["port"] == 9000
    body["metadata"]["namespace"] = "lab"
    assert servestates.url_of(body).startswith("http://digits-serve-svc.lab:9000/")
