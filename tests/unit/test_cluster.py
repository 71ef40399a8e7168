import copy
from pathlib import Path

import numpy as np
import pytest
import yaml

from raykube import Cluster, ConfigError, bodies, marks, yamltext
from raykube.api import cluster_of
from raykube.wire import Scale
from tests.support import run_without_root_rights

PRESETS = ("cpu-small", "cpu-autoscale", "gpu-t4", "gpu-8xh100")


@pytest.fixture
def manifest():
    return copy.deepcopy(Cluster.load("gpu-t4").manifest)


@pytest.fixture
def loaded(tmp_path):
    def load(manifest):
        path = tmp_path / "it.yaml"
        path.write_text(manifest if isinstance(manifest, str) else yaml.safe_dump(manifest))
        return Cluster.load(path)

    return load


def paths(loaded, manifest):
    with pytest.raises(ConfigError) as caught:
        loaded(manifest)
    return {problem.path for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("cpu-small", Scale(2, 2)),
        ("cpu-autoscale", Scale((1, 10), 4)),
        ("gpu-t4", Scale(2, 4, 1)),
        ("gpu-8xh100", Scale(16, 11, 1)),
    ],
)
def test_preset_scale_is_read_from_its_workers(name, scale):
    assert Cluster.load(name).scale == scale


@pytest.mark.parametrize("name", PRESETS)
def test_preset_heads_run_no_work_and_pods_have_no_privilege(name):
    spec = Cluster.load(name).manifest["spec"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["autoscalerOptions"]["version"] == "v2"
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        container = pod["containers"][0]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("workers", [8, 16, (8, 24)])
def test_sized_scale_is_what_was_asked_for(name, workers):
    before = copy.deepcopy(Cluster.load(name).manifest)
    cluster = Cluster.load(name)
    assert cluster.sized(workers).scale.workers == workers
    assert cluster.manifest == before


def test_sized_range_turns_the_autoscaler_on():
    spec = Cluster.load("gpu-8xh100").sized((8, 24)).manifest["spec"]
    group = spec["workerGroupSpecs"][0]
    assert (spec["enableInTreeAutoscaling"], spec["autoscalerOptions"]["version"]) == (True, "v2")
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (1, 1, 3)


def test_sized_count_that_pods_cannot_make_is_refused():
    with pytest.raises(ConfigError, match="multiple of 8"):
        Cluster.load("gpu-8xh100").sized(12)


@pytest.mark.parametrize("workers", [0, -1, (3, 2), (0, 2), (1, 2, 3), "8"])
def test_sized_to_what_is_no_count_is_refused(workers):
    with pytest.raises(ConfigError, match="workers"):
        Cluster.load("cpu-small").sized(workers)


def test_sized_edits_the_group_with_gpus_only(manifest, loaded):
    cpu = copy.deepcopy(Cluster.load("cpu-small").manifest["spec"]["workerGroupSpecs"][0]) | {"groupName": "cpu"}
    manifest["spec"]["workerGroupSpecs"].insert(0, cpu)
    groups = loaded(manifest).sized(5).manifest["spec"]["workerGroupSpecs"]
    assert [group["replicas"] for group in groups] == [2, 5]


def test_with_image_reaches_the_head_and_all_workers():
    spec = Cluster.load("gpu-t4").with_image("me/ray:1").manifest["spec"]
    groups = (spec["headGroupSpec"], *spec["workerGroupSpecs"])
    assert {group["template"]["spec"]["containers"][0]["image"] for group in groups} == {"me/ray:1"}


def test_local_cluster_has_the_scale_asked_for_and_no_image():
    cluster = Cluster.local(workers=2, cpus=0.5, gpus=1)
    assert cluster.is_local
    assert cluster.scale == Scale(2, 0.5, 1)
    assert cluster.sized(3).scale == Scale(3, 0.5, 1)
    with pytest.raises(ConfigError, match="no image"):
        cluster.with_image("x")


@pytest.mark.parametrize(
    "wrong", [{"workers": True}, {"workers": (1, True)}, {"cpus": "2"}, {"gpus": "1"}, {"cpus": True}]
)
def test_local_cluster_of_what_is_no_number_is_refused(wrong):
    with pytest.raises(ConfigError, match="no such local cluster") as told:
        Cluster.local(**wrong)
    assert [problem.path for problem in told.value.problems] == [*wrong]


def test_numbers_of_numpy_are_taken_as_python_s_own():
    cluster = Cluster.local((np.int64(1), np.int64(2)), cpus=np.float32(0.5), gpus=np.int64(1))
    assert yamltext.as_yaml(cluster.manifest) == yamltext.as_yaml(Cluster.local((1, 2), 0.5, 1).manifest)
    for named in (cluster, Cluster.load("gpu-8xh100")):
        sized = named.sized(np.int64(8)).manifest
        assert yamltext.as_yaml(sized) == yamltext.as_yaml(named.sized(8).manifest)


@pytest.mark.parametrize("image", [None, ""])
def test_image_without_a_name_is_refused(image):
    with pytest.raises(ConfigError, match="names no image"):
        Cluster.load("cpu-small").with_image(image)


def test_path_is_a_manifest_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = yamltext.as_yaml(dict(Cluster.load("gpu-t4").manifest))
    Path("cpu-small").write_text(text)
    assert cluster_of(Path("cpu-small")).source == "cpu-small"
    assert cluster_of("cpu-small").source != "cpu-small"


def test_workers_of_this_machine_have_what_the_settings_say(monkeypatch):
    monkeypatch.setenv("RAYKUBE_GPUS_PER_WORKER", "1")
    monkeypatch.setenv("RAYKUBE_CPUS_PER_WORKER", "2")
    assert Cluster.load("local").scale == Scale(1, 2, 1)
    assert Cluster.local(gpus=0).scale == Scale(1, 2, 0)
    monkeypatch.setenv("RAYKUBE_CPUS_PER_WORKER", "many")
    with pytest.raises(ConfigError, match="cpus_per_worker is 'many'"):
        Cluster.local()


def test_kubernetes_alone_has_no_scale_and_nothing_to_edit():
    cluster = Cluster.load("kubernetes")
    for edited in (lambda: cluster.scale, lambda: cluster.sized(2), lambda: cluster.with_image("x")):
        with pytest.raises(ConfigError, match="nothing says what cluster") as told:
            edited()
        assert "--on NAME|PATH" in told.value.next_step


def test_local_storage_is_the_setting_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYKUBE_STORAGE", "kept")
    assert Cluster.load("local").storage == str(tmp_path / "kept")
    monkeypatch.setenv("RAYKUBE_STORAGE", "s3://bucket/runs")
    assert Cluster.load("local").storage == "s3://bucket/runs"


def test_storage_is_the_annotation(manifest, loaded):
    assert loaded(manifest).storage == ""
    manifest["metadata"]["annotations"] = {"raykube.io/storage": "s3://b/runs"}
    assert loaded(manifest).storage == "s3://b/runs"
    blank = {"raykube.io/storage": None, "raykube.io/tracking": None}
    manifest["metadata"]["annotations"] = blank
    assert (loaded(manifest).storage, loaded(manifest).tracking) == ("", "")


@pytest.mark.parametrize("storage", ["runs", "./runs", "~/runs", "s3:/bucket", "s3://", "://x", 5, "s3://b/x?y=z"])
def test_storage_that_is_no_place_is_refused(manifest, loaded, storage):
    manifest["metadata"]["annotations"] = {"raykube.io/storage": storage}
    assert paths(loaded, manifest) == {"metadata.annotations[raykube.io/storage]"}


@pytest.mark.parametrize(
    "storage",
    ["s3://KEY:hunter2@bucket/runs", "s3://KEY:hun/ter2@bucket", "abfs://:hunter2@a.net/x", "s3://K:1@b?x=hun"],
)
def test_storage_with_a_password_is_refused_and_not_shown(manifest, loaded, storage):
    manifest["metadata"]["annotations"] = {"raykube.io/storage": storage}
    with pytest.raises(ConfigError, match=r"has a password before its @(.|\n)*secretKeyRef") as caught:
        loaded(manifest)
    assert "hun" not in str(caught.value)


@pytest.mark.parametrize(
    "storage",
    ["abfs://box@a.dfs.core.windows.net/x", "hdfs://me@host:8020/a:b@c", "hdfs://[::1]:80", "/a:b@c", "s3://b/a:b@c"],
)
def test_storage_with_a_user_or_a_port_is_a_storage(manifest, loaded, storage):
    manifest["metadata"]["annotations"] = {"raykube.io/storage": storage}
    assert loaded(manifest).storage == storage


@pytest.mark.parametrize(
    ("key", "step"),
    [("workerGroupSpecs", "it belongs below spec"), ("metdata", "did you mean metadata?"), (5, "known: apiVersion, ")],
)
def test_key_that_no_cluster_has_is_refused_with_its_place_or_the_nearest(manifest, loaded, key, step):
    with pytest.raises(ConfigError) as told:
        loaded(manifest | {"status": {}, key: []})
    assert [problem.path for problem in told.value.problems] == [str(key)]
    assert told.value.problems[0].next_step.startswith(step)


@pytest.mark.parametrize(("word", "step"), [("storag", "did you mean storage?"), ("x", "known: storage, tracking")])
def test_annotation_that_raykube_does_not_know_is_refused_with_the_nearest(manifest, loaded, word, step):
    manifest["metadata"]["annotations"] = {f"raykube.io/{word}": "/shared", "team": "a"}
    with pytest.raises(ConfigError) as told:
        loaded(manifest)
    assert [str(problem) for problem in told.value.problems] == [
        f"metadata.annotations[raykube.io/{word}]: is no annotation of raykube's ({step})"
    ]


def test_annotations_that_raykube_sets_itself_are_taken(manifest, loaded):
    own = {value for key, value in vars(marks).items() if key.isupper() and str(value).startswith("raykube.io/")}
    labels = {marks.PREFIX, marks.PLAN, marks.WORK, marks.RUN}
    assert {*marks.ANNOTATIONS} == own - labels
    manifest["metadata"]["annotations"] = dict.fromkeys(marks.ANNOTATIONS, "/shared")
    assert loaded(manifest).storage == "/shared"


def test_unknown_preset_names_the_nearest_and_where_it_looked():
    with pytest.raises(ConfigError, match=r"(?s)looked in .*cluster-configs.*did you mean gpu-t4"):
        Cluster.load("gpu-t5")


def test_preset_is_found_upward(tmp_path, monkeypatch):
    (tmp_path / "cluster-configs").mkdir()
    (tmp_path / "cluster-configs" / "mine.yaml").write_text(yaml.safe_dump(dict(Cluster.load("cpu-small").manifest)))
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert Cluster.load("mine").name == "mine"


def test_folder_of_presets_that_may_not_be_entered_has_none(tmp_path):
    (tmp_path / "cluster-configs").mkdir(mode=0)
    code = "from raykube import Cluster; print(Cluster.load('cpu-small').source)"
    done = run_without_root_rights("python", "-c", code, cwd=tmp_path)
    assert done.stdout.endswith("cluster-configs/cpu-small.yaml\n"), done.stderr


@pytest.mark.parametrize("name", ["n" * 300, "a\0/x.yaml", "/" + "n" * 300])
def test_name_that_no_file_can_have_is_that_of_no_cluster(name):
    with pytest.raises(ConfigError):
        Cluster.load(name)


def test_broken_yaml_is_named_by_file_and_line(loaded):
    with pytest.raises(ConfigError, match=r"it\.yaml:2"):
        loaded("a: [\nb: }")


def test_missing_file_is_said(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        Cluster.load(tmp_path / "none.yaml")


def test_two_documents_are_refused(loaded):
    with pytest.raises(ConfigError, match="2 YAML documents"):
        loaded("a: 1\n---\nb: 1\n")


def edit(*keys, value):
    def change(manifest):
        *way, last = keys
        for key in way:
            manifest = manifest[key]
        manifest[last] = value

    return change


HEAD = ("spec", "headGroupSpec")
GROUP = ("spec", "workerGroupSpecs", 0)
RULES = {
    "kind": edit("kind", value="RayJob"),
    "apiVersion": edit("apiVersion", value="ray.io/v1alpha1"),
    "metadata.name": edit("metadata", "name", value="a" * 54),
    "spec.rayVersion": edit("spec", "rayVersion", value="2.51.0"),
    "spec.authOptions.enableK8sTokenAuth": edit("spec", "authOptions", value={"enableK8sTokenAuth": True}),
    "spec.autoscalerOptions.version": edit("spec", "autoscalerOptions", value={"version": "v1"}),
    "spec.upgradeStrategy": edit("spec", "upgradeStrategy", value={"type": "Recreate"}),
    "spec.headGroupSpec": edit("spec", "headGroupSpec", value=None),
    "spec.headGroupSpec.rayStartParams.num-cpus": edit(*HEAD, "rayStartParams", "num-cpus", value=0),
    "spec.headGroupSpec.resources": edit(*HEAD, "resources", value={"CPU": "0"}),
    "spec.workerGroupSpecs[0].groupName": edit(*GROUP, "groupName", value="A_b"),
    "spec.workerGroupSpecs[0]": edit(*GROUP, "replicas", value=9),
    "spec.workerGroupSpecs[0].minReplicas": edit(*GROUP, "minReplicas", value=-1),
    "spec.workerGroupSpecs[0].rayStartParams.labels": edit(*GROUP, "rayStartParams", value={"labels": "a=b"}),
    "spec.workerGroupSpecs[0].template.spec.containers": edit(*GROUP, "template", "spec", "containers", value=[]),
    "spec.workerGroupSpecs[0].template.spec.containers[0].resources": edit(
        *GROUP, "template", "spec", "containers", 0, "resources", value={"limits": {"cpu": "two"}}
    ),
}


REFERENCE = {"secretKeyRef": {"name": "mine", "key": "auth_token"}}


@pytest.mark.parametrize("group", [HEAD, GROUP])
@pytest.mark.parametrize(
    ("variable", "auth", "words"),
    [
        ({"name": "RAY_AUTH_TOKEN", "valueFrom": REFERENCE}, None, "secretName: mine}"),
        ({"name": "RAY_AUTH_TOKEN", "value": "x"}, None, "secretName: SECRET}, of a Secret that has the token under"),
        (
            {"name": "RAY_AUTH_TOKEN_PATH", "value": "/x"},
            {"mode": "token", "secretName": "mine"},
            "secretName: SECRET}",
        ),
        ({"name": "RAY_AUTH_TOKEN", "valueFrom": REFERENCE}, {"secretName": "mine"}, None),
        ({"name": "RAY_AUTH_TOKEN", "value": "x"}, {"mode": "disabled"}, None),
        ({"name": "RAY_AUTH_MODE", "value": "token"}, None, None),
        ({"name": "RAY_AUTH_MODE", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}}, None, None),
        ({"name": "RAY_AUTH_MODE", "value": "disabled"}, None, "mode: token"),
        ({"name": "RAY_AUTH_MODE", "value": "token"}, {"mode": "disabled"}, "mode: disabled"),
    ],
)
def test_token_that_kuberay_would_not_know_is_refused(manifest, loaded, group, variable, auth, words):
    edit(*group, "template", "spec", "containers", 0, "env", value=[variable])(manifest)
    if auth:
        manifest["spec"]["authOptions"] = auth
    if not words:
        loaded(manifest)
        return
    with pytest.raises(ConfigError) as caught:
        loaded(manifest)
    (problem,) = caught.value.problems
    assert problem.path.endswith("containers[0].env")
    assert words in str(problem)
    assert "'x'" not in str(problem)


@pytest.mark.parametrize("path", RULES)
def test_manifest_that_would_hang_is_refused(path, manifest, loaded):
    RULES[path](manifest)
    assert paths(loaded, manifest) == {path}


CONTAINER = ("template", "spec", "containers", 0)
SHAPES = {
    "metadata.annotations": edit("metadata", "annotations", value=["x"]),
    "metadata.labels": edit("metadata", "labels", value="x"),
    "metadata.name": edit("metadata", "name", value=5),
    "spec.workerGroupSpecs": edit("spec", "workerGroupSpecs", value={"groupName": "a"}),
    "spec.headGroupSpec": edit(*HEAD, value="x"),
    "spec.headGroupSpec.rayStartParams": edit(*HEAD, "rayStartParams", value=["num-cpus"]),
    "spec.headGroupSpec.template.spec.containers": edit(*HEAD, "template", "spec", "containers", value={"a": 1}),
    "spec.headGroupSpec.template.spec.containers[0]": edit(*HEAD, "template", "spec", "containers", 0, value="x"),
    "spec.headGroupSpec.template.spec.containers[0].env": edit(*HEAD, *CONTAINER, "env", value={"A": "b"}),
    "spec.headGroupSpec.template.spec.containers[0].env[0]": edit(*HEAD, *CONTAINER, "env", value=["A=b"]),
    "spec.headGroupSpec.template.spec.containers[0].env[1]": edit(*HEAD, *CONTAINER, "env", value=[{}, None]),
    "spec.headGroupSpec.template.spec.containers[0].ports": edit(*HEAD, *CONTAINER, "ports", value={"a": 1}),
    "spec.headGroupSpec.template.spec.containers[0].ports[0].name": edit(
        *HEAD, *CONTAINER, "ports", value=[{"name": ["a"], "containerPort": 1}]
    ),
    "spec.headGroupSpec.template.spec.containers[0].ports[0].containerPort": edit(
        *HEAD, *CONTAINER, "ports", value=[{"name": "serve", "containerPort": "x"}]
    ),
    "spec.headGroupSpec.template.spec.volumes": edit(*HEAD, "template", "spec", "volumes", value={"v": "x"}),
    "spec.workerGroupSpecs[0].numOfHosts": edit(*GROUP, "numOfHosts", value="two"),
    "spec.workerGroupSpecs[0].template.spec.containers[0].volumeMounts": edit(
        *GROUP, *CONTAINER, "volumeMounts", value={"v": "/x"}
    ),
}


@pytest.mark.parametrize("port", [{"name": "serve"}, {"name": "serve", "containerPort": None}])
def test_port_without_a_number_is_refused(port, manifest, loaded):
    edit(*HEAD, *CONTAINER, "ports", value=[port])(manifest)
    assert paths(loaded, manifest) == {"spec.headGroupSpec.template.spec.containers[0].ports[0].containerPort"}


@pytest.mark.parametrize("path", SHAPES)
def test_manifest_with_a_value_of_another_kind_is_refused(path, manifest, loaded):
    SHAPES[path](manifest)
    assert paths(loaded, manifest) == {path}


def test_manifest_with_nothing_where_something_may_be_is_taken(manifest, loaded):
    for key in ("labels", "annotations"):
        manifest["metadata"][key] = None
    edit(*GROUP, "maxReplicas", value=None)(manifest)
    for key in ("env", "ports", "volumeMounts"):
        edit(*HEAD, *CONTAINER, key, value=None)(manifest)
    assert loaded(manifest).scale.workers == 2


@pytest.mark.parametrize(
    "image",
    [
        "rayproject/ray:2.60.0-py311",
        "docker.io/rayproject/ray-ml:2.60.0",
        "registry.test:5000/mirror/ray:2.60.0-py311-gpu",
        "ray-llm:2.60.0",
    ],
)
def test_ray_version_is_read_from_the_tag_of_an_image_of_ray(image, manifest, loaded):
    del manifest["spec"]["rayVersion"]
    edit(*HEAD, *CONTAINER, "image", value=image)(manifest)
    assert loaded(manifest).manifest["spec"]["rayVersion"] == "2.60.0"


def test_ray_version_that_is_not_that_of_an_image_of_ray_is_refused(manifest, loaded):
    edit(*HEAD, *CONTAINER, "image", value="rayproject/ray:2.60.0-py311")(manifest)
    edit(*GROUP, *CONTAINER, "image", value="rayproject/ray:2.60.0-py311-gpu")(manifest)
    loaded(manifest)
    edit(*GROUP, *CONTAINER, "image", value="rayproject/ray:2.55.1-py311-gpu")(manifest)
    with pytest.raises(ConfigError) as told:
        loaded(manifest)
    (problem,) = told.value.problems
    assert problem.path == "spec.rayVersion"
    assert problem.what == "is 2.60.0, and rayproject/ray:2.55.1-py311-gpu has 2.55.1"


def test_with_image_of_ray_takes_its_version():
    spec = Cluster.load("cpu-small").with_image("rayproject/ray:2.55.1").manifest["spec"]
    assert spec["rayVersion"] == "2.55.1"
    assert Cluster.load("cpu-small").with_image("me/image:9.9.9").manifest["spec"]["rayVersion"] == "2.60.0"


@pytest.mark.parametrize("image", ["team/train:1.4.2", "team/x-ray:1.4.2", "ray/train:1.4.2", "team/ray-train:1.4.2"])
def test_tag_of_another_image_is_not_taken_for_a_version_of_ray(image, manifest, loaded):
    edit(*HEAD, *CONTAINER, "image", value=image)(manifest)
    assert loaded(manifest).manifest["spec"]["rayVersion"] == "2.60.0"
    del manifest["spec"]["rayVersion"]
    with pytest.raises(ConfigError) as told:
        loaded(manifest)
    assert [problem.what[:11] for problem in told.value.problems] == ["is required"]


def test_manifest_problems_are_all_listed(manifest, loaded):
    wrong = ("kind", "spec.rayVersion", "spec.upgradeStrategy", "spec.workerGroupSpecs[0].groupName")
    for path in wrong:
        RULES[path](manifest)
    assert paths(loaded, manifest) == set(wrong)


def test_manifest_without_a_head_has_its_other_problems_listed_too(manifest, loaded):
    wrong = ("spec.headGroupSpec", "spec.rayVersion", "spec.workerGroupSpecs[0]")
    for path in wrong:
        RULES[path](manifest)
    assert paths(loaded, manifest) == set(wrong)


def test_rayjob_where_a_cluster_is_asked_for_is_told_the_option_that_takes_it(manifest, loaded):
    RULES["kind"](manifest)
    with pytest.raises(ConfigError, match=r"raykube job submit -f FILE"):
        loaded(manifest)


def test_duplicate_group_names_are_refused(manifest, loaded):
    manifest["spec"]["workerGroupSpecs"] *= 2
    assert paths(loaded, manifest) == {"spec.workerGroupSpecs[1].groupName"}


def test_ray_container_must_be_the_first(manifest, loaded):
    containers = manifest["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    containers.insert(0, {"name": "logs", "image": "x"})
    assert paths(loaded, manifest) == {"spec.headGroupSpec.template.spec.containers[1]"}


def test_fields_that_only_v2_knows_need_nothing_said_of_it(manifest, loaded):
    manifest["spec"]["workerGroupSpecs"][0] |= {"idleTimeoutSeconds": 30, "priority": 1}
    del manifest["spec"]["autoscalerOptions"]
    assert bodies.ray_cluster(loaded(manifest), "")["autoscalerOptions"]["version"] == "v2"


@pytest.mark.parametrize(
    ("amount", "cpus"),
    [("1500m", 2), ("1500000u", 2), ("3000000000n", 3), ("9007m", 10), ("7000m", 7), ("2k", 2000), ("1e1", 10)],
)
def test_cpus_are_rounded_up_as_kuberay_does(manifest, loaded, amount, cpus):
    container = manifest["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    container["resources"] = {"requests": {"cpu": amount}}
    assert loaded(manifest).scale == Scale(2, cpus, 0)


def test_accelerator_is_what_the_group_declares_to_ray(manifest, loaded):
    group = manifest["spec"]["workerGroupSpecs"][0]
    group["rayStartParams"]["resources"] = '"{\\"accelerator_type:T4\\": 1}"'
    assert loaded(manifest).scale.accelerator == "T4"


def test_group_at_zero_has_no_scale_until_it_is_sized(manifest, loaded):
    manifest["spec"]["workerGroupSpecs"][0].update(replicas=0, minReplicas=0)
    with pytest.raises(ConfigError, match="0 replicas"):
        _ = loaded(manifest).scale
    assert loaded(manifest).sized(2).scale.workers == 2


def test_presets_of_raykube_are_found_from_everywhere_and_yield_to_a_project_s_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = Cluster.load("cpu-small")
    (tmp_path / "cluster-configs").mkdir()
    (tmp_path / "cluster-configs" / "cpu-small.yaml").write_text(Path(shipped.source).read_text())
    assert Path(Cluster.load("cpu-small").source).parent.parent == tmp_path


def test_workers_whose_manifest_shares_a_part_with_the_head_get_nothing_that_is_the_heads(loaded):
    spec = copy.deepcopy(Cluster.load("cpu-small").manifest["spec"])
    spec["headGroupSpec"]["template"] = spec["workerGroupSpecs"][0]["template"]  # one object: an anchor and its use
    text = yaml.safe_dump({**Cluster.load("cpu-small").manifest, "spec": spec})
    assert "&id001" in text
    made = bodies.ray_cluster(loaded(text), "")
    head, worker = (
        group["template"]["spec"]["containers"][0] for group in (made["headGroupSpec"], *made["workerGroupSpecs"])
    )
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in head["env"]
    assert head["ports"]
    assert {"env", "ports"} & worker.keys() == set()


def test_group_whose_replicas_are_several_pods_has_a_worker_in_each(manifest, loaded):
    manifest["spec"]["workerGroupSpecs"][0]["numOfHosts"] = 4
    cluster = loaded(manifest)
    assert (cluster.scale.workers, cluster.sized(12).scale.workers) == (8, 12)
    with pytest.raises(ConfigError, match="multiple of 4"):
        cluster.sized(6)


def test_slices_of_a_gpu_are_gpus(manifest, loaded):
    container = manifest["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    container["resources"] = {"limits": {"cpu": 4, "nvidia.com/mig-1g.5gb": 2}}
    assert loaded(manifest).scale == Scale(4, 2, 1)


@pytest.fixture
def of_version(manifest, loaded):
    """Return a function that loads a manifest with a version of Ray, whose images tell none."""

    def load(version):
        manifest["spec"]["rayVersion"] = version
        for path in (HEAD, GROUP):
            edit(*path, *CONTAINER, "image", value="me/image")(manifest)
        return loaded(manifest)

    return load


def test_ray_has_tokens_from_2_52_on(of_version):
    with pytest.raises(ConfigError, match=r"2\.51\.2 knows no tokens"):
        of_version("2.51.2")
    assert of_version("2.52.0").manifest["spec"]["rayVersion"] == "2.52.0"


@pytest.mark.parametrize(("version", "is_asked"), [("2.52.1", False), ("2.53.0", True)])
def test_agent_of_ray_is_asked_whether_it_is_well_from_2_53_on(of_version, version, is_asked):
    head = bodies.ray_cluster(of_version(version), "", probed=True)["headGroupSpec"]
    assert ("readinessProbe" in head["template"]["spec"]["containers"][0]) is is_asked
