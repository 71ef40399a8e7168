"""The rules of the house that no linter holds."""

import ast
import functools
import re
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import raykube
from raykube.settings import tomllib
from tests.support import run

ROOT = Path(raykube.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
TESTS = sorted((ROOT.parent / "tests").rglob("*.py"))
JOBS = sorted((ROOT.parent / "jobs").glob("*.py"))
PYPROJECT = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())
SEVEN_PARAMETERS: set[str] = {"train", "sweep"}
PUBLIC = {
    *("App", "BackendError", "Cluster", "ConfigError", "Endpoint", "Job", "RaykubeError", "Result", "Run", "RunFailed"),
    *("Service", "Status", "attach", "deploy", "plan", "report", "runs", "submit", "sweep", "train"),
}


@functools.cache
def parsed(path):
    return ast.parse(path.read_text())


@functools.cache
def functions():
    return [
        (f"{path.relative_to(ROOT)}:{node.name}", node)
        for path in MODULES
        for node in ast.walk(parsed(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def length(node):
    return node.end_lineno - node.lineno + 1


def test_modules_have_at_most_350_lines():
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in MODULES}
    assert [name for name, number in lines.items() if number > 350] == []


def test_functions_have_at_most_50_lines():
    assert [name for name, node in functions() if length(node) > 50] == []


def test_median_function_is_below_10_lines():
    assert statistics.median(length(node) for _, node in functions()) < 10


def test_functions_have_at_most_6_parameters():
    def count(node):
        names = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        return len([name for name in names if name not in ("self", "cls")])

    many = {name: count(node) for name, node in functions() if count(node) > 6}
    assert [name for name, number in many.items() if number > 7 or name.partition(":")[2] not in SEVEN_PARAMETERS] == []


def test_public_names_are_these_20():
    assert set(raykube.__all__) == PUBLIC
    assert len(raykube.__all__) == 20


def test_public_names_are_where_they_are_said_to_be():
    def has(module, name):
        body = parsed(ROOT.joinpath(*module.split(".")).with_suffix(".py")).body
        assigned = (alias.name for node in body for alias in getattr(node, "names", ()))
        return name in {getattr(node, "name", "") for node in body} | {*assigned}

    assert [name for name in sorted(PUBLIC) if not has(raykube._HOMES[name], name)] == []


def test_errors_are_there_before_anything_is_imported():
    command = [sys.executable, "-c", "import raykube as rk; print(issubclass(rk.errors.Conflict, rk.BackendError))"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\n"


def test_version_is_a_constant_which_jobs_know_without_an_installed_package():
    constants = {node.targets[0].id for node in parsed(ROOT / "__init__.py").body if is_constant(node)}
    assert "__version__" in constants
    assert re.fullmatch(r"\d+\.\d+\.\d+", raykube.__version__)


def is_constant(node):
    return isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)


def test_import_loads_nothing_heavy():
    command = [sys.executable, "-X", "importtime", "-c", "import raykube"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert "raykube" in loaded
    assert loaded & {"ray", "torch", "mlflow", "kubernetes", "pydantic", "click", "httpx", "yaml"} == set()


def test_outside_loads_neither_ray_nor_torch():
    code = "import sys, raykube.api; print({'ray', 'torch', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


#: Imports the modules that the second word names where no others are than Python's own and those of the first.
_ALONE = """
import importlib, sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
class Base(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.partition(".")[0]
        is_there = top in allowed or top.startswith("_sysconfigdata_")  # each platform has its own
        return super().find_spec(name, path, target) if is_there else None
allowed = {*sys.stdlib_module_names, *sys.argv[1].split()}
sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Base]
for name in sys.argv[2].split():
    importlib.import_module(name)
"""


def base_install():
    """Return the modules of what pyproject.toml says that raykube needs, and of what that brings."""
    names, modules = set(), {"raykube"}
    left = [*PYPROJECT["project"]["dependencies"]]
    while left:
        needed = Requirement(left.pop())
        if needed.name in names or (needed.marker and not needed.marker.evaluate({"extra": ""})):
            continue
        names.add(needed.name)
        found = metadata.distribution(needed.name)
        left.extend(found.requires or ())
        modules |= {path.parts[0].partition(".")[0] for path in found.files}
    return modules


def test_outside_needs_no_more_than_the_base_install():
    outside = [".".join(path.relative_to(ROOT.parent).with_suffix("").parts) for path in MODULES]
    outside = [name.removesuffix(".__init__") for name in outside if not name.startswith("raykube.inside")]
    outside.remove("raykube.__main__")  # which is a command
    assert len(outside) > 80
    words = (" ".join(base_install()), " ".join(outside))
    done = run("python", "-c", _ALONE, *words, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr


def test_every_module_stands_in_the_contracts_of_import_linter():
    tops = {f"raykube.{path.relative_to(ROOT).parts[0].removesuffix('.py')}" for path in MODULES}
    outside = tops - {f"raykube.{name}" for name in ("__init__", "__main__", "inside", "wire", "errors")}
    inside_never, outside_never, one_way, *_ = PYPROJECT["tool"]["importlinter"]["contracts"]
    assert set(inside_never["forbidden_modules"]) == outside
    assert set(outside_never["source_modules"]) == outside | {"raykube.wire", "raykube.errors"}
    assert set(re.findall(r"[\w.]+", " ".join(one_way["layers"]))) == set(outside_never["source_modules"])


def names_used(tree):
    """Yield what a module imports, by whole names, and the attributes that it takes of names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def mocks_and_sleeps(tree):
    return [name for name in names_used(tree) if name == "time.sleep" or f"{name}.".startswith("unittest.mock.")]


def test_tests_use_no_mocks_and_no_sleeps():
    assert [str(path.relative_to(ROOT.parent)) for path in TESTS if mocks_and_sleeps(parsed(path))] == []


@pytest.mark.parametrize(
    "text",
    [
        "import unittest.mock",
        "from unittest import mock",
        "from unittest.mock import Mock",
        "from time import sleep",
        "import time; time.sleep(1)",
    ],
)
def test_mocks_and_sleeps_are_found(text):
    assert len(mocks_and_sleeps(ast.parse(text))) == 1


def not_for_a_job(tree, *, is_app=False):
    """Return what a job uses of the outside plane, which only an app may, and of other jobs than what they share."""
    names = [re.sub(r"^rk\.", "raykube.", name) for name in names_used(tree)]
    of_raykube = [name.split(".")[1] for name in names if name.startswith("raykube.")]
    inside = ("inside", "wire", "errors")
    outside = [name for name in of_raykube if raykube._HOMES.get(name, name).partition(".")[0] not in inside]
    others = [name for name in names if f"{name}.".startswith("jobs.") and not name.startswith("jobs._digits")]
    return [*([] if is_app else outside), *others]


def test_jobs_use_only_the_inside_plane_and_nothing_of_each_other():
    found = ((path.name, not_for_a_job(parsed(path), is_app=path.stem.endswith("_app"))) for path in JOBS)
    assert [(job, names) for job, names in found if names] == []


@pytest.mark.parametrize(
    "text",
    [
        "import raykube.api",
        "from raykube import submit",
        "import raykube as rk; rk.Cluster.local()",
        "from jobs import digits",
        "from jobs.digits import main",
    ],
)
def test_what_is_not_for_a_job_is_found(text):
    assert len(not_for_a_job(ast.parse(text))) == 1
