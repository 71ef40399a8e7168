"""The rules of the house that no linter holds."""

import ast
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import raykube

ROOT = Path(raykube.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
TESTS = sorted((ROOT.parent / "tests").rglob("*.py"))
SEVEN_PARAMETERS: set[str] = {"train", "sweep"}
PUBLIC = {
    *("App", "BackendError", "Cluster", "ConfigError", "Endpoint", "Job", "RaykubeError", "Result", "Run", "RunFailed"),
    *("Service", "Status", "attach", "deploy", "plan", "report", "runs", "submit", "sweep", "train"),
}


def functions():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{path.relative_to(ROOT)}:{node.name}", node


def length(node):
    return node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_has_at_most_350_lines(path):
    assert len(path.read_text().splitlines()) <= 350


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


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_name_is_where_it_is_said_to_be(name):
    module = ROOT.joinpath(*raykube._HOMES[name].split(".")).with_suffix(".py")
    names = {getattr(node, "name", "") for node in ast.parse(module.read_text()).body}
    assigned = {alias.name for node in ast.parse(module.read_text()).body for alias in getattr(node, "names", ())}
    assert name in names | assigned


def test_errors_are_there_before_anything_is_imported():
    command = [sys.executable, "-c", "import raykube as rk; print(issubclass(rk.errors.Conflict, rk.BackendError))"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\n"


def test_version_is_a_constant_which_jobs_know_without_an_installed_package():
    constants = {node.targets[0].id for node in ast.parse((ROOT / "__init__.py").read_text()).body if is_constant(node)}
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


def names_used(text):
    """Yield what a module imports, by whole names, and the attributes that it takes of names."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def mocks_and_sleeps(text):
    return [name for name in names_used(text) if name == "time.sleep" or f"{name}.".startswith("unittest.mock.")]


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_tests_use_no_mocks_and_no_sleeps(path):
    assert mocks_and_sleeps(path.read_text()) == []


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
    assert len(mocks_and_sleeps(text)) == 1
