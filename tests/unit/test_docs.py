"""What the guides say is so: the Role, the commands, the causes, the manifest."""

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from raykube import package
from raykube.backends import serveapps
from raykube.backends.kuberay import polling
from raykube.backends.kuberay.causes import nextsteps
from raykube.backends.kubernetes import kubeapi
from raykube.bodies import CONFIG_MAP_LIMIT
from raykube.cli import raykube
from raykube.cluster import Cluster
from raykube.doctor.rights import RULES
from raykube.errors import Unreachable
from tests import docs
from tests.cluster.namespaces import LEAST_PRIVILEGE

ROOT = docs.GUIDE.parent.parent
PAGES = ("README.md", "docs/kubernetes.md")
_ENDS = ("|", "||", "&&", "&", ";", ">", "2>", "<")
_FENCED = re.compile(r"```(?:bash|console)\n(.*?)```", re.DOTALL)
_INLINE = re.compile(r"(?<!`)`(raykube [^`]+)`(?!`)")


def test_role_of_the_guide_is_the_one_that_tests_use():
    rules = yaml.safe_load(docs.file("role.yaml"))["rules"]
    assert all(rule.keys() == {"apiGroups", "resources", "verbs"} for rule in rules)
    said = [(*rule["apiGroups"], tuple(rule["resources"]), tuple(rule["verbs"])) for rule in rules]
    assert said == list(LEAST_PRIVILEGE)


def test_sizes_of_code_that_can_be_sent_are_those_of_the_guide():
    told = f"Up to {CONFIG_MAP_LIMIT // 1024} KiB (zipped) travel in a ConfigMap"
    sent = f"At most {package.MAX_FILES:,} files and {package.MAX_BYTES // 2**20} MiB can be sent"
    guide = " ".join(docs.GUIDE.read_text(encoding="utf-8").split())
    assert [words in guide for words in (told, sent)] == [True, True]


def test_doctor_asks_for_the_same_rights():
    assert [(rule.group, rule.resources, rule.verbs) for rule in RULES] == list(LEAST_PRIVILEGE)


def test_role_of_the_guide_has_nothing_that_is_never_asked_for():
    asked = {(path.split("/")[1] if path.startswith("apis/") else "", kind) for path, kind in kubeapi._PATHS.values()}
    parts = {"pods/log", "pods/proxy", "pods/portforward", "services/proxy", "localqueues/pendingworkloads"}
    granted = [(group, kind, verbs) for group, kinds, verbs in LEAST_PRIVILEGE for kind in kinds]
    assert {(group, kind) for group, kind, _ in granted if "/" not in kind} <= asked
    assert {kind for _, kind, _ in granted if "/" in kind} == parts
    # Objects are changed by patches; a PUT only brings code to a head.
    assert [kind for _, kind, verbs in granted if "update" in verbs] == ["services/proxy"]


def test_manifest_of_the_guide_can_work(tmp_path):
    path = tmp_path / "house.yaml"
    path.write_text(docs.file("cluster-configs/house.yaml"))
    house = Cluster.load(path)
    assert (house.storage, house.namespace, house.scale.workers) == ("/shared", "ray-team", 2)


def test_guides_table_has_every_cause_with_a_next_step_and_no_other():
    table = re.findall(r"^\| (`[A-Z].*?) \|", docs.GUIDE.read_text(), re.MULTILINE)
    named = {word for cell in table for word in re.findall(r"`([A-Z]\w+[a-z]\w+)`", cell)}
    failed = serveapps.failure("greet", {"app": {"status": "DEPLOY_FAILED"}})
    away = polling.unreachable(Unreachable("no answer", next_step="look"))
    assert failed.next_step
    assert named == nextsteps._STEPS.keys() | {failed.reason, serveapps.UNSCHEDULABLE, serveapps.UNHEALTHY, away.reason}


def command_lines(page):
    text = (ROOT / page).read_text()
    for block in _FENCED.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            yield from typed(line.removeprefix("$ "), whole=True)
    for line in _INLINE.findall(text):
        if "|" not in line.split()[1]:
            yield from typed(line, whole=False)


def typed(line, *, whole):
    """Yield the raykube commands of a shell's line."""
    words = []
    for word in [*shlex.split(line, comments=True), ";"]:
        if word not in _ENDS:
            words.append(word)
            continue
        if words[:1] == ["raykube"]:
            yield pytest.param(words[1:], whole, id=" ".join(words)[:70])
        words = []


LINES = [line for page in PAGES for line in command_lines(page)]


def test_command_lines_are_found():
    assert len(LINES) > 30


@pytest.mark.parametrize(("words", "whole"), LINES)
def test_command_line_of_a_guide_parses(words, whole):
    command, name = raykube, "raykube"
    while isinstance(command, click.Group) and words:
        name, *words = words
        command = command.commands[name]
    if whole:
        command.make_context(name, list(words))
    mine = words[: words.index("--")] if "--" in words else words
    known = {option for each in command.params for option in each.opts}
    assert {word.partition("=")[0] for word in mine if word.startswith("-")} <= known


def test_guide_names_files_that_exist():
    for page in PAGES:
        text = (ROOT / page).read_text()
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert ((ROOT / page).parent / Path(target)).exists(), target


def test_python_of_the_readme_that_is_not_run_is_type_checked():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    checked = {line.strip() for line in (ROOT / "tests/typing/readme.py").read_text().splitlines()}
    lines = [line for block in blocks if not block.startswith('"""Line fit') for line in block.splitlines()]
    assert len(lines) > 5
    assert [line for line in lines if line.strip() not in checked] == []
