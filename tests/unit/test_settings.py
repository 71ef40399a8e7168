import os
import shutil

import pytest

import raykube as rk
from raykube import ConfigError, wire
from raykube.backends.kubernetes import kubeconfig
from raykube.here import from_here
from raykube.inside import storage
from raykube.settings import KNOWN, setting
from tests.support import BIN, run_without_root_rights


@pytest.fixture
def project(tmp_path, monkeypatch):
    for name in KNOWN:
        monkeypatch.delenv(f"RAYKUBE_{name.upper()}", raising=False)
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    return tmp_path / "pyproject.toml"


def test_setting_precedence_is_argument_environment_project_default(project, monkeypatch):
    assert (setting("on").value, setting("on").source) == ("local", "default")
    project.write_text('[tool.raykube]\non = "a"\n')
    assert setting("on").value == "a"
    assert "[tool.raykube] in ../../pyproject.toml" in setting("on").source
    monkeypatch.setenv("RAYKUBE_ON", "b")
    assert (setting("on").value, setting("on").source) == ("b", "from RAYKUBE_ON")
    assert (setting("on", "c").value, setting("on", "c").source) == ("c", "from the argument")


def test_folder_that_was_removed_has_no_settings_and_no_code(project, monkeypatch):
    folder = project.parent / "a" / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert setting("on").value == "local"
    assert rk.Cluster.load("cpu-small").manifest
    with pytest.raises(ConfigError, match="no cluster 'digits'"):
        rk.Cluster.load("digits")
    for work in (rk.Job(entrypoint="true"), rk.Job(entrypoint="true", working_dir="src")):
        with pytest.raises(ConfigError, match="folder that this runs in was removed"):
            rk.plan(work)
    assert rk.plan(rk.Job(entrypoint="true", working_dir=folder.parent)).package.root == folder.parent


def test_folder_below_one_that_may_not_be_entered_has_no_settings_and_no_presets(project):
    closed, code = project.parent / "a", project.parent / "code"
    code.mkdir()
    words = f"raykube job submit --dry-run=client --on cpu-small --working-dir {code} -- true"
    done = run_without_root_rights("sh", "-c", f"chmod 0 {closed}; {BIN}/{words}", cwd=closed / "b")
    closed.chmod(0o700)
    assert done.returncode == 0, done.stderr
    assert "kind: RayJob" in done.stdout


def test_setting_passes_over_projects_that_say_nothing(project):
    project.write_text('[tool.raykube]\non = "far"\n')
    (project.parent / "a" / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert setting("on").value == "far"


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ('on = "own/gpu.yaml"', "../../own/gpu.yaml"),
        ('on = "gpu"', "gpu"),
        ('on = "/etc/gpu.yaml"', "/etc/gpu.yaml"),
        ('storage = "runs"', "../../runs"),
        ('storage = "~/runs"', "~/runs"),
        ('storage = "s3://lake/runs"', "s3://lake/runs"),
    ],
)
def test_setting_path_of_a_project_is_one_from_its_file(project, line, value):
    project.write_text(f"[tool.raykube]\n{line}\n")
    assert setting(line.split()[0]).value == value


def test_cluster_that_a_project_names_may_lie_in_the_home_folder(project, monkeypatch):
    shutil.copy(rk.Cluster.load("cpu-small").source, project.parent / "c.yaml")
    monkeypatch.setenv("HOME", str(project.parent))
    project.write_text('[tool.raykube]\non = "~/c.yaml"\n')
    assert rk.Cluster.load(setting("on").value).source == str(project.parent / "c.yaml")


def test_setting_unknown_key_of_a_project_names_the_nearest(project):
    project.write_text('[tool.raykube]\nstorge = "x"\n')
    with pytest.raises(ConfigError, match="did you mean storage"):
        setting("on")


def test_setting_project_that_is_no_toml_is_named(project):
    project.write_text("[tool.raykube\n")
    with pytest.raises(ConfigError, match=r"pyproject\.toml cannot be read"):
        setting("on")


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("serve_port", "80.5"),
        ("serve_port", "99999"),
        ("idle_timeout_s", "x"),
        ("cpus_per_worker", "0"),
        ("gpus_per_worker", "1.5"),
        ("gpus_per_worker", "nan"),
        ("gpus_per_worker", "-1"),
    ],
)
def test_setting_that_is_no_number_says_where_it_came_from(monkeypatch, name, value):
    monkeypatch.setenv(f"RAYKUBE_{name.upper()}", value)
    with pytest.raises(ConfigError, match=f"RAYKUBE_{name.upper()}"):
        setting(name)


@pytest.mark.usefixtures("project")
def test_setting_unknown_name_is_refused():
    with pytest.raises(ConfigError, match="did you mean storage"):
        setting("storag")


def test_size_of_a_run_is_not_that_of_what_it_submits(monkeypatch):
    monkeypatch.setenv("RAYKUBE_GPUS_PER_WORKER", "0.5")
    assert setting("gpus_per_worker").value == "0.5"
    monkeypatch.setenv("RAYKUBE_RUN_NAME", "outer")
    assert setting("gpus_per_worker").value == "0"


@pytest.mark.parametrize(
    "read",
    [
        from_here,
        storage.plain,
        rk.Cluster.load,
        lambda path: wire.home({"RAYKUBE_HOME": path}),
        lambda path: os.environ.update(KUBECONFIG=path) or kubeconfig.load(),
    ],
)
def test_home_folder_of_nobody_is_said(read, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", "")  # what was set before comes back, whatever is read here
    with pytest.raises(ConfigError, match="'~no-such-user' at the beginning of"):
        read("~no-such-user/x.yaml")
