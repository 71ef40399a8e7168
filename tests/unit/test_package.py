import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import raykube as rk
from raykube import ConfigError
from raykube.cli.jobs import submit
from raykube.entrypoints import check_code, check_entrypoint, check_import_path
from raykube.package import collect, zipped
from tests.support import run_without_root_rights


@pytest.fixture
def tree(tmp_path):
    """Make files below a folder; a value that is an int is a sparse file of that size."""
    root = tmp_path / "work"
    root.mkdir()

    def make(files):
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, int):
                with path.open("wb") as file:
                    file.truncate(content)
            else:
                path.write_text(content)
        return root

    return make


def own(package):
    return [file.path for file in package.files if not file.path.startswith("raykube/")]


def problems(root, **fields):
    with pytest.raises(ConfigError) as caught:
        collect(root, **fields)
    return {problem.path: problem for problem in caught.value.problems}


def in_child(code, *setup):
    command = [*setup, sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_package_bytes_are_the_same_from_another_place_and_time(tree, tmp_path):
    root = tree({"b.py": "b", "a/c.py": "c"})
    other = tmp_path / "other"
    shutil.copytree(root, other)
    os.utime(other / "b.py", (1, 1))
    assert collect(root).hash == collect(other).hash
    assert zipped(collect(root)) == zipped(collect(other))


def test_home_folder_is_sent_by_a_script_only_where_it_names_it(tree, monkeypatch):
    root = tree({"a.py": ""})
    monkeypatch.chdir(root)
    monkeypatch.setenv("HOME", str(root))
    job = rk.Job(entrypoint="python a.py")
    with pytest.raises(ConfigError, match="with your home folder") as told:
        rk.plan(job, "local")
    assert "Job(working_dir=...)" in told.value.next_step
    assert own(rk.plan(job.model_copy(update={"working_dir": Path()}), "local").package) == ["a.py"]


@pytest.mark.parametrize("change", ["content", "name", "mode"])
def test_package_hash_changes_with(tree, change):
    root = tree({"a.py": "a"})
    before = collect(root).hash
    if change == "content":
        (root / "a.py").write_text("b")
    elif change == "name":
        (root / "a.py").rename(root / "b.py")
    else:
        (root / "a.py").chmod(0o755)
    assert collect(root).hash != before


def test_package_lies_in_one_top_folder_and_keeps_what_may_be_run(tree):
    root = tree({"run.sh": "x", "a.py": "a"})
    (root / "run.sh").chmod(0o750)
    (root / "a.py").chmod(0o600)
    with zipfile.ZipFile(io.BytesIO(zipped(collect(root)))) as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == {"raykube-code"}
        modes = {info.filename: info.external_attr >> 16 & 0o777 for info in archive.infolist()}
        assert archive.read("raykube-code/a.py") == b"a"
    assert (modes["raykube-code/run.sh"], modes["raykube-code/a.py"]) == (0o755, 0o644)


def test_package_carries_the_inside_plane_and_no_more(tree):
    paths = {file.path for file in collect(tree({"a.py": ""})).files}
    assert {"raykube/__init__.py", "raykube/errors.py", "raykube/wire.py", "raykube/py.typed"} < paths
    assert "raykube/inside/__init__.py" in paths
    assert "raykube/specs.py" not in paths


def test_package_of_raykube_itself_carries_its_own_files_only(tree):
    root = tree({"raykube/__init__.py": "mine"})
    assert [file.path for file in collect(root).files] == ["raykube/__init__.py"]


def unpacked(root, there):
    with zipfile.ZipFile(io.BytesIO(zipped(collect(root)))) as archive:
        archive.extractall(there)
    return there / "raykube-code"


def test_code_of_a_job_has_all_of_raykube_where_it_is_installed_and_its_own_half_first(tree, tmp_path):
    script = "import raykube, raykube.wire, raykube.cli; print(raykube.runs, raykube.__file__, raykube.wire.__file__)"
    code = unpacked(tree({"a.py": script}), tmp_path / "there")
    installed = {"PYTHONPATH": str(Path(rk.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "a.py"], cwd=code, capture_output=True, text=True, check=True, env=os.environ | installed
    )
    assert done.stdout.startswith("<function runs at ")
    assert done.stdout.split()[-2:] == [f"{code}/raykube/__init__.py", f"{code}/raykube/wire.py"]


def test_code_of_a_job_says_what_of_raykube_it_lacks(tree, tmp_path):
    code = unpacked(tree({"a.py": "import raykube; raykube.runs()"}), tmp_path / "there")
    alone = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-S", "a.py"], cwd=code, capture_output=True, text=True, check=False, env=alone
    )
    assert "ConfigError: raykube.api is not here" in done.stderr
    assert "next: install raykube in the job's image" in done.stderr


def test_package_runs_with_nothing_but_the_standard_library(tree, tmp_path):
    root = tree({"a.py": "import raykube.inside, raykube.wire; print('in', raykube.__file__)"})
    code = unpacked(root, tmp_path / "there")
    done = subprocess.run([sys.executable, "-S", "a.py"], cwd=code, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"in {code}/raykube/__init__.py"


def test_ignore_files_hold_at_every_level(tree):
    root = tree(
        {
            ".gitignore": "*.log\n/data/\n!keep.log\n",
            "a.log": "",
            "keep.log": "",
            "data/x": "",
            "sub/data/x": "",
            "sub/.gitignore": "*.bin\n!/b.log\n",
            "sub/a.bin": "",
            "sub/b.log": "",
            "sub/deep/b.log": "",
            "a.bin": "",
            ".rayignore": "big/\n",
            "big/x": "",
        }
    )
    kept = [".gitignore", ".rayignore", "a.bin", "keep.log", "sub/.gitignore", "sub/b.log", "sub/data/x"]
    assert own(collect(root)) == kept


@pytest.mark.parametrize("name", [".gitignore", ".rayignore"])
def test_ignore_file_that_begins_with_a_byte_order_mark_loses_no_pattern(tree, name):
    assert own(collect(tree({name: "\ufeffsecret\n*.log\n", "secret": "", "a.log": "", "a": ""}))) == [name, "a"]


BRANCHES = {"a.py": "", "a.log": "", "pkg/x.py": "", "pkg/x.log": "", "pkg/deep/y.py": "", "pkg/deep/y.log": ""}


@pytest.mark.parametrize(
    "patterns",
    [
        ("*", "!*/", "!*.py"),
        ("*", "!pkg/", "!*.py"),
        ("/*", "!/pkg/", "*.log"),
        ("*.log", "!/pkg/"),
        ("*.log", "!.*"),
        ("pkg/*", "!pkg/deep/", "*.log"),
        ("pkg/**", "!pkg/*.py"),
        ("pkg/**/", "*.log"),
        ("deep", "!deep/y.py"),
        ("**/deep/*.log", "!y.log"),
    ],
)
def test_patterns_of_a_gitignore_leave_out_what_git_leaves_out(tree, patterns):
    root = tree({".gitignore": "\n".join(patterns), **BRANCHES})
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    asked = ["git", "-C", str(root), "ls-files", "-o", "--exclude-standard"]
    listed = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    assert own(collect(root)) == sorted(listed)


def test_folder_that_is_brought_back_brings_no_secret_and_no_clutter(tree):
    kept_out = (".git/config", "src/.aws/credentials", "src/node_modules/i.js", "src/a.pyc")
    root = tree({".gitignore": "/*\n!/src/\n!.*\n", "src/x.py": "", "b.py": "", **dict.fromkeys(kept_out, "")})
    assert own(collect(root)) == [".gitignore", "src/x.py"]
    assert own(collect(root, excludes=("!.aws/",))) == [".gitignore", "src/.aws/credentials", "src/x.py"]


def test_rayignore_has_the_last_word_over_the_gitignore_beside_it(tree):
    root = tree(
        {
            ".gitignore": "*.bin\n!model.bin\n",
            ".rayignore": "model.bin\n!few.bin\n",
            "model.bin": "",
            "few.bin": "",
            "many.bin": "",
        }
    )
    assert own(collect(root)) == [".gitignore", ".rayignore", "few.bin"]


def test_ignore_rules_of_the_repository_hold_in_a_folder_of_it(tree):
    root = tree(
        {".git/HEAD": "", ".gitignore": "secret\n/sub/data/\n", "sub/secret": "", "sub/data/x": "", "sub/a": ""}
    )
    assert own(collect(root / "sub")) == ["a"]


def test_ignore_rules_above_hold_in_a_repository_only(tree):
    root = tree({".gitignore": "secret\n", "sub/secret": ""})
    assert own(collect(root / "sub")) == ["secret"]


def test_excludes_win_over_ignore_files_and_defaults(tree):
    root = tree({".gitignore": "data/\n", "data/x": "", "a.bin": "", "node_modules/m": "", "sub/a.bin": ""})
    assert own(collect(root, excludes=("!data/", "/a.bin", "!node_modules/", ".gitignore"))) == [
        "data/x",
        "node_modules/m",
        "sub/a.bin",
    ]


def test_folder_is_brought_back_with_all_that_is_in_it_by_one_exclude(tree):
    root = tree({".gitignore": "data/\n*.csv\n", "data/a.csv": "", "data/deep/b": "", "c.csv": "", "x/data/d": ""})
    assert own(collect(root, excludes=("!data/",))) == [".gitignore", "data/deep/b", "x/data/d"]
    assert own(collect(root, excludes=("!data/**",))) == [".gitignore", "data/a.csv", "data/deep/b"]
    assert own(collect(root, excludes=("!/data/**",))) == [".gitignore", "data/a.csv", "data/deep/b"]


def test_credentials_and_raykube_s_own_state_are_left_out(tree, monkeypatch):
    doors = (".ssh/id", ".aws/credentials", ".kube/config", ".gnupg/key", ".netrc", ".raykube/token", "state/token")
    root = tree({"a.py": "", **dict.fromkeys(doors, ""), "sub/.aws/credentials": ""})
    monkeypatch.setenv("RAYKUBE_HOME", str(root / "state"))
    package = collect(root)
    assert own(package) == ["a.py"]
    assert "ignored: .aws/" in package.report()[-1]
    assert own(collect(root, excludes=("!.kube/",))) == [".kube/config", "a.py"]


def test_manifests_of_places_are_no_part_of_the_code_unless_they_are_asked_for(tree):
    root = tree({"a.py": "", ".gitignore": "/*\n!*.py\n!/cluster-configs/\n", "cluster-configs/house.yaml": "a: 1\n"})
    before = collect(root)
    assert own(before) == ["a.py"]
    assert before.report()[-1] == "  ignored: .gitignore, cluster-configs/"
    (root / "cluster-configs" / "house.yaml").write_text("a: 2\n")
    assert collect(root).own_hash == before.own_hash
    assert own(collect(root, excludes=("!cluster-configs/**",))) == ["a.py", "cluster-configs/house.yaml"]


def test_folder_of_manifests_is_sent_where_it_is_not_at_the_root_or_is_the_root(tree):
    root = tree({"x/cluster-configs/a.yaml": "", "cluster-configs/b.yaml": ""})
    assert own(collect(root)) == ["x/cluster-configs/a.yaml"]
    assert own(collect(root / "cluster-configs")) == ["b.yaml"]


def test_virtual_environment_of_any_name_is_left_out(tree):
    assert own(collect(tree({"myenv/pyvenv.cfg": "", "myenv/lib/x.py": "", "a.py": ""}))) == ["a.py"]


def test_link_inside_the_tree_is_sent_as_what_it_points_to(tree):
    root = tree({"real/a.txt": "content"})
    (root / "file").symlink_to("real/a.txt")
    (root / "folder").symlink_to(root / "real")
    package = collect(root)
    assert own(package) == ["file", "folder/a.txt", "real/a.txt"]
    assert len({file.sha256 for file in package.files if not file.path.startswith("raykube/")}) == 1


def test_what_cannot_be_sent_is_listed_with_its_reason(tree, tmp_path):
    root = tree({"a.py": ""})
    outside = tmp_path / "outside"
    outside.write_text("")
    (root / "out").symlink_to(outside)
    (root / "broken").symlink_to("nowhere")
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "pipe")
    found = problems(root)
    assert set(found) == {"out", "broken", "loop", "pipe"}
    assert own(collect(root, excludes=("out", "broken", "loop", "pipe"))) == ["a.py"]


def test_file_whose_name_is_not_utf8_is_named_with_a_pattern_that_leaves_it_out(tree):
    root = tree({"a.py": "", "sub/b.py": "", "Ä.txt": ""})
    Path(os.fsdecode(os.fsencode(root) + b"/sub/caf\xe9.txt")).write_text("")
    ((path, problem),) = problems(root).items()
    assert path == "sub/caf\\xe9.txt"
    assert "not UTF-8" in problem.what
    (pattern,) = re.findall(r"exclude '(.*)'", problem.next_step)
    assert own(collect(root, excludes=(pattern,))) == ["a.py", "sub/b.py", "Ä.txt"]


ODD = ["!fifo", "#fifo", "[ab]fifo", "bs\\fifo", "dang[1]", "tr fifo ", "it's", "a*", "a?", "new\nline", "plain"]


@pytest.mark.parametrize("name", ODD)
def test_pattern_that_is_told_leaves_out_what_it_was_told_for_and_no_more(tree, name):
    root = tree({"a.py": "", "ab": "", "sub/a.py": "", f"other/{name}": ""})
    for folder in (root, root / "sub"):
        os.mkfifo(folder / name)
    patterns = [shlex.split(problem.next_step.partition("exclude ")[2])[0] for problem in problems(root).values()]
    assert len(patterns) == 2
    assert own(collect(root, excludes=tuple(patterns))) == ["a.py", "ab", f"other/{name}", "sub/a.py"]


def test_file_that_cannot_be_read_is_named(tree):
    root = tree({"a.py": "", "b.py": "", "shut/x": ""})
    (root / "a.py").chmod(0)
    (root / "shut").chmod(0)
    try:
        no_root = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
        inner = f"from raykube.package import collect\ncollect({str(root)!r})"
        listed = in_child(inner, *no_root).stderr
        (root / "shut").chmod(0o755)
        hashed = in_child(inner, *no_root).stderr
    finally:
        (root / "shut").chmod(0o755)
    assert "shut/: cannot be listed: Permission denied" in listed
    assert "a.py: cannot be read: Permission denied" in hashed


def test_large_file_is_refused_by_name_without_reading_it(tree):
    root = tree({"data/big.bin": 200 * 2**30, "a.py": ""})  # reading it would take minutes
    with pytest.raises(ConfigError, match=r"200\.0 GiB.*--excludes 'data/big\.bin'"):
        collect(root)


def test_many_files_are_refused_by_the_folder_that_has_them(tree, monkeypatch):
    monkeypatch.setattr("raykube.package.MAX_FILES", 999)
    root = tree({"a.py": "", **{f"images/{index}": "" for index in range(999)}})
    with pytest.raises(ConfigError, match=r"1,000 files.*--excludes 'images/'"):
        collect(root)


def test_exclude_that_is_told_is_an_option_and_leaves_the_files_out(tree, monkeypatch):
    monkeypatch.setattr("raykube.package.MAX_FILES", 9)
    root = tree({"main.py": "", **{f"{index}.json": "" for index in range(10)}})
    with pytest.raises(ConfigError, match="11 files") as caught:
        collect(root)
    option, pattern = re.search(r"(--\S+) '(\S+)'", str(caught.value)).groups()
    assert option in {name for each in submit.params for name in each.opts}
    assert own(collect(root, excludes=(pattern,))) == ["main.py"]


def test_working_dir_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        collect(tmp_path / "it")
    (tmp_path / "it").write_text("")
    with pytest.raises(ConfigError, match="is not a folder"):
        collect(tmp_path / "it")
    with pytest.raises(ConfigError, match="does not exist"):
        collect(tmp_path / "it" / "x")
    with pytest.raises(ConfigError, match=r"cannot be read\n.*File name too long"):
        collect(tmp_path / ("n" * 300))


def test_working_dir_in_a_folder_that_may_not_be_entered_is_refused(tmp_path):
    (tmp_path / "closed" / "sub").mkdir(parents=True)
    (tmp_path / "closed").chmod(0)
    words = ("--dry-run=client", "--on", "cpu-small", "--working-dir", "closed/sub", "--", "true")
    done = run_without_root_rights("raykube", "job", "submit", *words, cwd=tmp_path)
    (tmp_path / "closed").chmod(0o700)
    assert done.returncode == 2
    assert f"{tmp_path}/closed/sub cannot be read\n  why:  Permission denied" in done.stderr


def test_report_names_the_largest_files_and_what_was_ignored(tree):
    root = tree({"big.bin": 3 * 2**20, "a.py": "", ".gitignore": "data/\n", "data/x": "", "__pycache__/x": ""})
    report = collect(root).report()
    assert report[1].split() == ["3.0", "MiB", "big.bin"]
    assert report[-1] == "  ignored: data/"


def test_file_changed_while_it_is_packed_is_an_error(tree):
    root = tree({"a.py": "one"})
    package = collect(root)
    (root / "a.py").write_text("two")
    with pytest.raises(ConfigError, match="changed while it was packed"):
        zipped(package)


def test_file_removed_before_it_is_packed_is_an_error(tree):
    root = tree({"a.py": "one", "b.tmp": "two"})
    package = collect(root)
    (root / "b.tmp").unlink()
    with pytest.raises(
        ConfigError, match=r"b\.tmp was changed while it was packed\n  why:  No such file or directory\n"
    ):
        zipped(package)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_log_that_this_process_prints_into_is_left_out_and_told(tree, stream):
    root = tree({"a.py": "", "b.log": ""})
    inner = (
        "import sys\nfrom raykube.package import collect, zipped\n"
        f"package = collect({str(root)!r})\nprint('more', file=sys.{stream}, flush=True)\nzipped(package)\n"
        f"print(*package.report(), file=sys.{stream})"
    )
    with (root / "out.log").open("w") as file:
        subprocess.run([sys.executable, "-c", inner], check=True, timeout=60, **{stream: file})
    assert (root / "out.log").read_text().strip().endswith("ignored: out.log")
    assert own(collect(root)) == ["a.py", "b.log", "out.log"]


def test_git_commit_says_when_files_were_changed(tree):
    root = tree({"a.py": "one"})
    git = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@t"]
    for words in (["init", "-q"], ["add", "a.py"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert collect(root).git_commit == commit
    (root / "a.py").write_text("two")
    assert collect(root).git_commit == f"{commit}-dirty"


CODE = {
    "jobs/digits.py": "print(1)",
    "jobs/broken.py": "x = 1\ndef f(:\n",
    "jobs/__init__.py": "",
    "train.py": "",
    "pkg/__main__.py": "",
    ".gitignore": "hidden.py\n",
    "hidden.py": "",
    "data/readme.txt": "",
}


@pytest.mark.parametrize(
    "entrypoint",
    [
        "python -m jobs.digits --lr 1",
        "A=1 python3.11 -u -W ignore train.py && echo done",
        "python -m pkg",
        "python -m json.tool",
        "python -m pytest.plugins",
        "python -c 'import x'",
        "python $HOME/x.py",
        "cd elsewhere && python none.py",
        "nvidia-smi",
        "bash -c 'exit 3'",
        "python train.py>log",
        "python train.py 2>log",
        "python 2>log train.py",
        "python train.py|tee log",
        "python train.py&&python made.py",
        "python train.py&",
        "(cd elsewhere; python none.py)",
        "python train.py # it's said",
        "python - <<'EOF'\nprint(1)  # it's said\nEOF",
        "python \\\n  train.py",
        "python jobs/../train.py",
        "python pkg",
        "python train?.py",
        "python -um jobs.digits",
        "python -mjobs.digits --epochs 2",
        "python -Wignore -X dev -c 'import x' none.py",
        "python --check-hash-based-pycs always train.py",
        "python -- train.py",
        "python -m $MODULE",
        "PYTHONPATH=src python -m mine.train",
        "/opt/env/bin/python -m accelerate.commands.launch none.py",
    ],
)
def test_entrypoint_that_can_start_is_taken(tree, entrypoint):
    check_entrypoint(entrypoint, collect(tree(CODE)))


@pytest.mark.parametrize(
    ("entrypoint", "words"),
    [
        ("python -m jobs.digit", "did you mean jobs.digits"),
        ("python -m jobz.digits", "did you mean jobs.digits"),
        ("python trian.py", "did you mean train.py"),
        ("python -u jobs/digit.py --x 1", "did you mean jobs/digits.py"),
        ("python -m jobs", "jobs/__main__.py"),
        ("./run.sh", "no file run.sh"),
        ("bash run.sh", "no file run.sh"),
        ("python hidden.py", "an ignore rule leaves it out"),
        ("python ../up.py", "not below the working directory.*--working-dir"),
        ("python jobs", "it is a folder.*jobs/__main__.py"),
        ("python .", "it is a folder.*add __main__.py"),
        ("python -m train.", "no name of a module"),
        ("python -m ./train.py", "no name of a module.*python FILE"),
        ("python -m jobs.broken", r"jobs/broken.py:2: .*syntax error"),
        ("python jobs/broken.py>log", r"jobs/broken.py:2: .*syntax error"),
        ("python -m 'jobs", "cannot be read by a shell"),
        ("python -um jobs.digit", "did you mean jobs.digits"),
        ("python -mjobs.digit --epochs 2", "did you mean jobs.digits"),
        ("python -W ignore trian.py|tee log", "did you mean train.py"),
        ("python -m nothing.here", "nor installed"),
    ],
)
def test_entrypoint_that_cannot_start_is_refused_with_the_reason(tree, entrypoint, words):
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        check_entrypoint(entrypoint, collect(tree(CODE)))


ELSEWHERE = (
    rk.Job(entrypoint="python -m nothing.here"),
    rk.Job(entrypoint="python -m data.loaders"),
    rk.Service(name="a", apps=(rk.App(import_path="nothing.here:app"),)),
)


@pytest.mark.parametrize("work", ELSEWHERE)
def test_module_that_is_not_seen_here_may_be_in_the_image_of_a_cluster(tree, work):
    code = collect(tree(CODE))
    check_code(work, code, here=False)
    with pytest.raises(ConfigError, match="nor installed"):
        check_code(work, code, here=True)


@pytest.mark.parametrize(
    "brought",
    [
        {"pip": ("nothing",)},
        {"runtime_env": {"pip": {"packages": ["nothing"]}}},
        {"runtime_env": {"uv": ["nothing"]}},
        {"runtime_env": {"conda": "env"}},
        {"runtime_env": {"py_modules": ["s3://bucket/nothing.zip"]}},
        {"runtime_env": {"image_uri": "nothing"}},
        {"runtime_env": {"py_executable": "/opt/bin/python"}},
    ],
)
def test_module_may_be_what_the_runtime_environment_installs(tree, brought):
    code = collect(tree(CODE))
    for work in ELSEWHERE:
        check_code(work.model_copy(update=brought), code, here=True)


@pytest.mark.parametrize(
    "fields", [{"env_vars": {"PYTHONPATH": "/opt"}}, {"runtime_env": {"env_vars": {"PYTHONPATH": "/opt"}}}]
)
def test_module_may_be_where_the_search_path_of_a_job_leads(tree, fields):
    check_code(rk.Job(entrypoint="python -m nothing.here", **fields), collect(tree(CODE)), here=True)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("jbos.digits", "did you mean jobs.digits"),
        ("jobs.digit", "did you mean jobs.digits"),
        ("trian", "did you mean train"),
        ("hidden", "an ignore rule leaves it out"),
    ],
)
def test_module_nearly_of_the_code_is_a_typing_error_on_a_cluster_too(tree, name, words):
    code = collect(tree(CODE))
    for work in (
        rk.Job(entrypoint=f"python -m {name}", pip=("x",)),
        rk.Service(name="a", apps=(rk.App(import_path=f"{name}:app"),)),
    ):
        with pytest.raises(ConfigError, match=words):
            check_code(work, code, here=False)


def test_syntax_that_only_a_newer_python_may_know_is_no_error(tree):
    code = collect(tree(CODE))
    job = rk.Job(entrypoint="python -m jobs.broken")
    check_code(job, code, here=False, newer=True)
    check_entrypoint("python3.99 -m jobs.broken", code)
    check_import_path("jobs.broken:app", code, newer=True)
    for entrypoint in (job.entrypoint, "python3 jobs/broken.py", "python3.10 jobs/broken.py"):
        with pytest.raises(ConfigError, match="syntax error"):
            check_entrypoint(entrypoint, code)


def test_archive_that_python_runs_is_no_syntax_error(tree):
    root = tree({"app/__main__.py": "print(1)"})
    shutil.make_archive(str(root / "app"), "zip", root / "app")
    check_entrypoint("python app.zip", collect(root))


@pytest.mark.parametrize(("tag", "starts"), [("2.60.0-py399-gpu", True), ("2.60.0-py310", False), ("2.60.0", False)])
def test_image_tells_whether_its_python_may_know_more_syntax(tree, tag, starts):
    cluster = rk.Cluster.load("gpu-t4").with_image(f"registry.test:5000/rayproject/ray:{tag}")
    job = rk.Job(entrypoint="python -m jobs.broken", name="a", working_dir=tree(CODE))
    if starts:
        assert rk.plan(job, cluster).name == "a"
        return
    with pytest.raises(ConfigError, match="syntax error"):
        rk.plan(job, cluster)


def test_syntax_error_is_that_of_the_script_or_of_the_application(tree):
    package = collect(tree(CODE))
    with pytest.raises(ConfigError, match="the entrypoint's script has a syntax error") as told:
        check_entrypoint("python -m jobs.broken", package)
    assert told.value.next_step == "correct that line and submit again"
    with pytest.raises(ConfigError, match="the application's module has a syntax error") as told:
        check_import_path("jobs.broken:app", package)
    assert told.value.next_step == "correct that line and deploy again"


def test_entrypoint_check_runs_nothing(tree, tmp_path):
    mark = tmp_path / "ran"
    root = tree({"a.py": f"open({str(mark)!r}, 'w')"})
    check_entrypoint("python a.py", collect(root))
    assert not Path(mark).exists()


def test_script_in_a_folder_that_is_ignored_is_brought_back_by_what_is_told(tree):
    root = tree({".git/HEAD": "", ".gitignore": "build/\n", "build/x.py": "print(1)\n"})
    with pytest.raises(ConfigError) as caught:
        check_entrypoint("python build/x.py", collect(root))
    excludes = re.findall(r"--excludes '([^']+)'", caught.value.next_step)
    check_entrypoint("python build/x.py", collect(root, excludes=tuple(excludes)))
