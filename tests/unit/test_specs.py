import re
from pathlib import Path

import pytest

import raykube as rk
from raykube import App, Cluster, ConfigError, Job, Service
from raykube.autoscaling import Autoscaling
from raykube.backends.local.backend import Local


def problems(kind, **fields):
    with pytest.raises(ConfigError) as caught:
        kind(**fields)
    return {problem.path: problem for problem in caught.value.problems}


def test_job_module_quotes_each_argument():
    job = Job.module("jobs.digits", "--note", "two words; rm", "--lr", 1e-3, name="a")
    assert job.entrypoint == "python -m jobs.digits --note 'two words; rm' --lr 0.001"


@pytest.mark.parametrize(
    ("entrypoint", "stem"),
    [
        ("python -m jobs.digits --lr 1", "digits"),
        ("A=1 python3.11 -u ./x/Train_2.py", "train-2"),
        ("./run.sh", "run"),
        ("python -c 'print(1)'", "python"),
        ("_", "job"),
    ],
)
def test_job_name_is_made_from_the_entrypoint(entrypoint, stem):
    first, second = Job(entrypoint=entrypoint).name, Job(entrypoint=entrypoint).name
    assert re.fullmatch(rf"{stem}-[a-z]{{5}}", first)
    assert first != second


@pytest.mark.parametrize("name", ["A", "9a", "a_b", "a-", "ü", "a" * 48, "a.b"])
def test_job_name_that_kubernetes_would_refuse_is_refused(name):
    assert "name" in problems(Job, entrypoint="true", name=name)


def test_job_name_of_47_characters_is_taken():
    assert Job(entrypoint="true", name="a" * 47).name == "a" * 47


def test_job_error_lists_every_problem_at_once():
    found = problems(Job, entrypoint=" ", name="X", env_vars={"A": 1}, max_retries=-1, timeout_s=0, metdata={})
    assert set(found) == {"entrypoint", "name", "env_vars.A", "max_retries", "timeout_s", "metdata"}
    assert found["metdata"].next_step == "did you mean metadata?"


def test_job_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Job(entrypoint="true").name = "other"  # type: ignore[misc]


def test_job_says_what_cannot_be_set():
    with pytest.raises(ConfigError, match="timeout_s cannot be set: a Job is frozen"):
        Job(entrypoint="true").timeout_s = "hunter2"  # type: ignore[misc,assignment]


@pytest.mark.parametrize(
    ("made", "path"),
    [
        (lambda: Job.model_validate({"entrypoint": "true", "env_vars": {"TOKEN": [2, "hunter2"]}}), "env_vars.TOKEN"),
        (lambda: Job.model_validate_json('{"entrypoint": "true", "env_vars": ["hunter2"]}'), "env_vars"),
        (lambda: Job.model_validate("env_vars=hunter2"), ""),
        (lambda: Service.model_validate({"name": "a", "apps": [{"import_path": "a:b", "nme": 1}]}), "apps[0].nme"),
    ],
)
def test_spec_of_a_mapping_or_json_has_the_errors_of_any_other(made, path):
    with pytest.raises(ConfigError, match=r"invalid (Job|Service)") as caught:
        made()
    assert [problem.path for problem in caught.value.problems] == [path]
    assert "hunter2" not in str(caught.value)


def test_app_is_shown_without_the_variables_of_its_replicas():
    options = {"runtime_env": {"env_vars": {"TOKEN": "hunter2"}}}
    assert "hunter2" not in repr(App(import_path="a:b", ray_actor_options=options))


def test_runtime_env_keys_are_all_kept():
    env = {"config": {"setup_timeout_seconds": 9}, "uv": ["x"], "py_modules": ["s3://b/x.zip"], "image_uri": "i"}
    assert Job(entrypoint="true", runtime_env=env).runtime_env == env


def test_runtime_env_keys_with_a_field_move_into_it():
    env = {"pip": ["x"], "working_dir": "src", "excludes": ["data/"]}
    job = Job(entrypoint="true", runtime_env=env)
    assert (job.pip, str(job.working_dir), job.excludes) == (("x",), "src", ("data/",))
    assert job.runtime_env == {}


@pytest.mark.parametrize(
    ("env", "word"),
    [
        ({"pipp": []}, "did you mean pip"),
        ({"container": {}}, "image_uri"),
        ({"py_modules": ["./lib"]}, "working_dir"),
        ({"pip": "requirements.txt"}, "as a list"),
        ({"conda": "env.yml"}, "content"),
        ({"conda": "env.yaml"}, "content"),
        ({"worker_process_setup_hook": print}, "JSON"),
        ({"uv": ["a"], "pip": ["b"]}, "one of pip, uv and conda"),
        ({"working_dir": "s3://bucket/x.zip"}, "local folder"),
        ({"env_vars": {"A": 1}}, "env_vars.A: is no text"),
        ({"env_vars": {"A B": "x"}}, "cannot be the name"),
        ({"env_vars": {"RAYKUBE_ATTEMPT": "2"}}, "set by raykube"),
        ({"env_vars": ["A=1"]}, "no mapping"),
        ({"env_vars": {"A": "a\0"}}, "env_vars.A: has a NUL"),
        ({"env_vars": {"A": "caf\udce9"}}, "env_vars.A: cannot be sent as UTF-8"),
        ({"config": {"a": ["caf\udce9"]}}, "surrogates"),
    ],
)
def test_runtime_env_that_cannot_be_sent_is_refused_with_the_reason(env, word):
    with pytest.raises(ConfigError, match=word):
        Job(entrypoint="true", runtime_env=env)


@pytest.mark.parametrize("option", ["", "-r", "-r ", "-c", "--requirement=", "--constraint "])
def test_file_of_packages_that_is_none_of_the_clusters_is_refused_in_a_list_too(option):
    words = ["torch", f"{option}requirements.txt"]
    for fields in ({"pip": words}, {"runtime_env": {"pip": words}}):
        found = problems(Job, entrypoint="true", **fields)
        assert [*found] == ["pip[1]"]
        assert "the file 'requirements.txt' is not on the cluster" in str(found["pip[1]"])
    assert [*problems(Job, entrypoint="true", runtime_env={"uv": words})] == ["runtime_env.uv[1]"]


def test_packages_and_what_the_cluster_has_a_file_of_are_taken():
    words = ("a[b]>=1,<2; python_version<'4'", "c @ https://x.io/c.whl", "--extra-index-url https://x.io", "./d.whl")
    there = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/r.txt"
    files = ("-r /app/requirements.txt", "-r/app/r.txt", f"-r {there}", f"--requirement={there}", "--constraint=/c.txt")
    files += ("-chttps://x.io/c.txt",)
    assert Job(entrypoint="true", pip=words + files).pip == words + files


@pytest.mark.parametrize("text", ["x\0", b"x\0", "caf\udce9"])
def test_text_that_no_process_could_be_given_is_refused_and_not_shown(text):
    fields = {"entrypoint": text, "env_vars": {"A": text}, "metadata": {"a": text}, "pip": [text]}
    found = problems(Job, **fields)
    assert set(found) == {"entrypoint", "env_vars.A", "metadata.a", "pip[0]"}
    assert "caf" not in str(found["env_vars.A"])
    assert set(problems(App, import_path="a:b", route_prefix="/a\0", env_vars={"A": text})) == {
        "route_prefix",
        "env_vars.A",
    }


def test_runtime_env_value_given_twice_is_refused():
    env = {"env_vars": {"A": "1", "B": "2"}}
    assert set(problems(Job, entrypoint="x", env_vars={"A": "1"}, runtime_env=env)) == {"runtime_env.env_vars.A"}
    assert set(problems(Job, entrypoint="x", pip=["a"], runtime_env={"pip": ["a"]})) == {"runtime_env.pip"}


@pytest.mark.parametrize(
    "fields",
    [
        {"env_vars": {"PW": 123456}},
        {"env_vars": "PW=123456"},
        {"runtime_env": "PW=123456"},
        {"runtime_env": {"env_vars": {"PW": 123456}}},
        {"runtime_env": {"env_vars": ["PW=123456"]}},
    ],
)
def test_error_tells_no_value_of_a_variable(fields):
    with pytest.raises(ConfigError, match="env") as caught:
        Job(entrypoint="true", **fields)
    assert "123456" not in str(caught.value)


@pytest.mark.parametrize(
    "made",
    [
        Job(entrypoint="true", env_vars={"PW": "hunter2"}),
        Job(entrypoint="true", runtime_env={"env_vars": {"PW": "hunter2"}}),
        Service(name="a", apps=(App(import_path="a:b", env_vars={"PW": "hunter2"}),)),
    ],
)
def test_spec_shows_no_value_of_a_variable(made):
    assert "hunter2" not in f"{made!r} {made}"


@pytest.mark.parametrize("key", ["RAYKUBE_RUN_NAME", "RAYKUBE_ATTEMPT"])
def test_environment_that_raykube_sets_is_refused(key):
    assert "env_vars" in problems(Job, entrypoint="true", env_vars={key: "x"})


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"import_path": "jobs/app.py"}, "import_path"),
        ({"route_prefix": "api"}, "route_prefix"),
        ({"route_prefix": "/api/"}, "route_prefix"),
        ({"route_prefix": "/{model}"}, "route_prefix"),
        ({"ray_actor_options": {"num_cpu": 1}}, "ray_actor_options.num_cpu"),
        ({"num_replicas": 0}, "num_replicas"),
        ({"num_replicas": 1, "autoscaling_config": {}}, "num_replicas"),
        ({"model": "run:a", "args": {"model": "b"}}, "args.model"),
        ({"model": "models:/digits"}, "model"),
        ({"autoscaling_config": {"min_replicas": 3}}, "autoscaling_config"),
        ({"autoscaling_config": {"max_replica": 3}}, "autoscaling_config.max_replica"),
        ({"args": {"x": object()}}, "args"),
    ],
)
def test_app_that_serve_would_take_in_silence_is_refused(fields, path):
    assert path in problems(App, **{"import_path": "jobs.app:app", **fields})


@pytest.mark.parametrize("model", ["run:digits", "models:/digits/3", "models:/digits@champion", "/a/b", "s3://b/c"])
def test_app_takes_each_kind_of_model_reference(model):
    assert App(import_path="a:b", model=model).model == model


def test_autoscaling_order_holds_with_serve_defaults():
    Autoscaling(min_replicas=0, max_replicas=4)
    with pytest.raises(ConfigError, match="max_replicas 1"):
        Autoscaling(initial_replicas=2)


def test_service_refuses_names_and_routes_taken_twice():
    found = problems(Service, name="s", apps=[{"import_path": "a:b"}, {"import_path": "a:c"}])
    assert set(found) == {"apps[1].name", "apps[1].route_prefix"}


def test_one_application_has_the_name_of_its_service_unless_it_says_another():
    service = Service(name="s", apps=[{"import_path": "a:b"}])
    assert service == Service(name="s", apps=[App(import_path="a:b", name="s")])
    assert Service(name="s", apps=[{"import_path": "a:b", "name": "app"}]).apps[0].name == "app"


def test_service_error_has_the_path_of_each_app():
    found = problems(Service, name="s", apps=[{"import_path": "a:b"}, {"import_pth": "a:c"}])
    assert set(found) == {"apps[1].import_path", "apps[1].import_pth"}


def test_service_without_apps_is_refused():
    assert "apps" in problems(Service, name="s", apps=[])


@pytest.mark.parametrize(
    ("verb", "work", "other"),
    [
        (rk.submit, rk.Service(name="a", apps=[rk.App(import_path="app:application")]), "rk.deploy"),
        (rk.deploy, rk.Job(entrypoint="python x.py"), "rk.submit"),
    ],
)
def test_work_of_the_other_kind_names_the_verb_for_it_and_is_not_told_whole(verb, work, other):
    with pytest.raises(rk.ConfigError, match=other) as told:
        verb(work)
    assert "working_dir" not in str(told.value)


@pytest.mark.parametrize(
    ("verb", "text", "step"),
    [
        (rk.submit, "python x.py", "write rk.Job(entrypoint='python x.py')"),
        (rk.plan, "python x.py", "write rk.Job(entrypoint='python x.py')"),
        (rk.deploy, "x:app", "write rk.Service(name='a-name', apps=[rk.App(import_path='x:app')])"),
    ],
)
def test_text_in_place_of_work_is_told_as_the_spec_that_it_may_mean(verb, text, step):
    with pytest.raises(rk.ConfigError, match=f"the text '{text}' is no") as told:
        verb(text)
    assert told.value.next_step == step


@pytest.mark.parametrize(
    ("verb", "step"),
    [
        (rk.submit, "write rk.Job(entrypoint='python a.py'), where a.py calls it"),
        (rk.plan, "write rk.Job(entrypoint='python a.py'), where a.py calls it"),
        (rk.deploy, "write rk.Service(name='a-name', apps=[rk.App(import_path='a:app')])"),
    ],
)
def test_function_in_place_of_work_is_told_as_the_spec_that_may_lead_to_it(verb, step):
    with pytest.raises(rk.ConfigError, match="a value of type function is no") as told:
        verb(problems)
    assert told.value.next_step == step


@pytest.mark.parametrize(
    ("made", "step"),
    [
        (lambda: Job("python a.py"), "write Job(entrypoint=...)"),  # type: ignore[call-arg]
        (lambda: Service("a", [App(import_path="a:b")]), "write Service(name=..., apps=...)"),  # type: ignore[call-arg]
        (lambda: Job.module(Path("a.py")), "write rk.Job.module('jobs.digits'), or rk.Job(entrypoint='python a.py')"),
    ],
)
def test_value_that_says_no_field_or_module_is_told_how_it_is_written(made, step):
    with pytest.raises(ConfigError) as told:
        made()
    assert told.value.next_step == step


@pytest.mark.parametrize("apps", [App(import_path="a:b"), {"import_path": "a:b"}, "a:b"])
def test_application_in_place_of_a_list_is_refused_once(apps):
    found = problems(Service, name="s", apps=apps)
    assert [(each.path, each.next_step) for each in found.values()] == [
        ("apps", "write apps=[rk.App(import_path=...)]")
    ]


@pytest.mark.parametrize(
    "call",
    [
        lambda name: rk.attach(name, "local"),
        lambda name: rk.submit(Job(entrypoint="true"), "kubernetes", cluster=name),
        Cluster.load,
        lambda name: rk.Run("a", Local()).logs(source=name),
    ],
)
@pytest.mark.parametrize("name", [7, ["a"]])
def test_name_that_is_no_text_is_refused_in_words(call, name):
    with pytest.raises(ConfigError):
        call(name)


@pytest.mark.parametrize(
    ("update", "path"),
    [
        ({"name": "../../x"}, "name"),
        ({"max_retry": 3}, "max_retry"),
        ({"max_retries": "many"}, "max_retries"),
        ({"timeout_s": -3}, "timeout_s"),
    ],
)
def test_copy_is_checked_as_a_new_job_is(update, path):
    job = Job(entrypoint="true", name="a", runtime_env={"pip": ["x"]})
    assert set(problems(lambda: job.model_copy(update=update))) == {path}


def test_copy_differs_only_in_what_it_is_told():
    job = Job(entrypoint="true", runtime_env={"pip": ["x"], "config": {"setup_timeout_seconds": 9}})
    other = job.model_copy(update={"max_retries": 3})
    assert other.max_retries == 3
    assert other.model_copy(update={"max_retries": 0}) == job == job.model_copy()
    assert job.model_copy().model_fields_set == job.model_fields_set


def test_job_that_is_given_no_name_has_one():
    made = [Job(entrypoint=b"python -m jobs.x"), Job(entrypoint="python -m jobs.x", name=None)]  # type: ignore[arg-type]
    made.append(made[0].model_copy(update={"name": ""}))
    assert [job.name.rpartition("-")[0] for job in made] == ["x"] * 3


def test_copy_of_a_service_under_another_name_names_its_application_anew():
    blue = Service(name="blue", apps=(App(import_path="a:b"),))
    assert blue.model_copy(update={"name": "green"}).apps[0].name == "green"
    own = Service(name="blue", apps=(App(import_path="a:b", name="own"),))
    assert own.model_copy(update={"name": "green"}).apps[0].name == "own"


def test_spec_shares_nothing_with_what_it_was_made_of():
    args, config = {"optimizer": {"lr": 0.1}}, {"eager_install": True}
    app = App(import_path="a:b", args=args, autoscaling_config=Autoscaling(policy=args))
    service, job = Service(name="a", apps=(app,)), Job(entrypoint="true", runtime_env={"config": config})
    app.args["optimizer"]["lr"] = args["optimizer"]["lr"] = 0.2
    config["eager_install"] = False
    assert service.apps[0].args == app.autoscaling_config.policy == {"optimizer": {"lr": 0.1}}
    assert job.runtime_env == {"config": {"eager_install": True}}


def test_plan_stays_what_it_is_when_its_job_or_service_is_changed(tmp_path):
    (tmp_path / "m.py").touch()
    job = Job(entrypoint="true", name="a", working_dir=tmp_path, runtime_env={"config": {"eager_install": True}})
    app = App(import_path="m:app", args={"x": {"y": 1}})
    service = Service(name="b", apps=(app,), working_dir=tmp_path)
    plans = [rk.plan(job, "local"), rk.plan(service, "local")]
    hashes = [plan.hash for plan in plans]
    job.runtime_env["config"]["eager_install"] = service.apps[0].args["x"]["y"] = 2
    assert [plan.hash for plan in plans] == hashes


def test_job_that_was_changed_into_an_invalid_one_is_not_planned(tmp_path):
    job = Job(entrypoint="true", name="a", working_dir=tmp_path)
    job.env_vars["RAYKUBE_RUN_NAME"] = "x"
    assert set(problems(lambda: rk.plan(job, "local"))) == {"env_vars"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: App(import_path="a:b", autoscaling_config={1: 2}), "a key must be text"),
        (lambda: Service(name="s", apps=(App(import_path="a:b"),), runtime_env={"\ud800": "x"}), "half a character"),
    ],
)
def test_key_that_no_json_has_is_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_misspelt_key_of_a_service_is_refused():
    with pytest.raises(ConfigError, match="num_replicas"):
        App(name="digits", import_path="jobs.digits_app:app", model="run:trained", num_replica=3)
