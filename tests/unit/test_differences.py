"""In what two plans differ, as a user is told it."""

import pytest

from raykube import differences
from raykube.yamltext import as_yaml


def test_fields_that_differ_are_named_with_both_values():
    wanted = {"entrypoint": "b", "list": [{"x": 1}], "same": {"y": 2}}
    known = {"entrypoint": "a", "list": [{"x": 1, "default": 0}], "same": {"y": 2}, "added": True}
    assert list(differences.of_objects(wanted, known, "spec")) == ["spec.entrypoint: 'a' there, 'b' here"]


def test_texts_differ_in_their_lines():
    (told,) = differences.of_objects("a: 1\nb: 2\n", "a: 1\nb: 3\n", "spec.runtimeEnvYAML")
    assert told == "spec.runtimeEnvYAML:\n-b: 3\n+b: 2"
    assert differences.of_texts("plain\ntext: [", "plain\nwords: [") == "-text: [\n+words: ["


def test_environment_variables_are_named_without_their_values():
    def text(password, workers):
        variables = {"env_vars": {"PASSWORD": password, "USER": "me", "RAYKUBE_WORKERS": workers}}
        return as_yaml({"runtime_env": variables, "entrypoint": "python a.py"})

    told = differences.of_texts(text("old-hunter2", "2"), text("new-hunter3", "4"))
    assert "hunter" not in told
    lines = [line.replace(" ", "") for line in told.splitlines()]
    assert sorted(lines) == [
        "+PASSWORD:(thevaluehere)",
        '+RAYKUBE_WORKERS:"4"',
        "-PASSWORD:(thevaluethere)",
        '-RAYKUBE_WORKERS:"2"',
    ]


def test_files_that_differ_are_named_and_many_are_counted():
    there, here = {"a.py": 1, "b.log": 1, "old.py": 1}, {"a.py": 1, "b.log": 2, "new.py": 1}
    assert differences.of_files(there, here) == "b.log differs, new.py is only here, old.py is only there"
    assert differences.of_files(there, there) == ""
    many = {f"{number}.log": number for number in range(7)}
    assert differences.of_files(dict.fromkeys(many, 9), many).endswith(", 4.log differs, and 2 more")


def test_variable_of_a_container_is_named_without_its_value():
    def pod(value):
        return {"containers": [{"env": [{"name": "PASSWORD", "value": value}]}]}

    (told,) = differences.of_objects(pod("hunter3"), pod("hunter2"), "spec")
    assert told == "spec.containers[0].env[0].value: another one there"


def test_variable_of_several_lines_is_told_without_its_value():
    def pod(value):
        return {"env": [{"name": "KEY", "value": value}]}

    secret = "-----BEGIN KEY-----\nhunter2\n"
    for wanted, known in ((secret, "-----BEGIN KEY-----\nhunter3\n"), (secret, "hunter3")):
        told = list(differences.of_objects(pod(wanted), pod(known), "c"))
        assert told == ["c.env[0].value: another one there"]


def test_fields_of_either_side_count_where_the_whole_does():
    wanted, known = {"a": {"b": 1}, "both": 1}, {"a": {}, "more": "line\nline", "both": 1}
    told = list(differences.of_objects(wanted, known, "spec", whole=True))
    assert told == ["spec.a.b: absent there, 1 here", "spec.more: 'line\\nline' there, absent here"]


def test_field_that_is_false_or_empty_may_be_left_out_there_but_is_not_another_value():
    empty = {"no": False, "text": "", "map": {}, "list": [], "nothing": None, "none": 0}
    told = list(differences.of_objects(empty, {}, "spec", omits=True))
    assert told == ["spec.none: absent there, 0 here"]
    assert list(differences.of_objects({"no": False}, {"no": True}, "spec", omits=True)) == [
        "spec.no: True there, False here"
    ]
    assert list(differences.of_objects({"no": False}, {}, "spec")) == ["spec.no: absent there, False here"]


def test_variables_that_are_more_are_told_without_their_values():
    def pod(*values):
        return {"env": [{"name": "A", "value": value} for value in values]}

    assert list(differences.of_objects(pod("hunter3"), pod("hunter3", "hunter2"), "c")) == ["c.env: another one there"]


def test_variables_that_stand_deeper_in_what_differs_are_told_without_their_values():
    sidecar = {"name": "sidecar", "env": [{"name": "PASSWORD", "value": "hunter2"}]}
    told = differences.of_objects({"containers": [{"name": "ray"}, sidecar]}, {"containers": [{"name": "ray"}]}, "spec")
    assert list(told) == ["spec.containers: another one there"]
    told = differences.of_objects({"template": {"containers": [sidecar]}}, {}, "spec")
    assert list(told) == ["spec.template: absent there, something else here"]


def test_variables_in_a_text_of_one_line_are_told_without_their_values():
    def spec(text):
        return {"runtimeEnvYAML": text}

    secret = "env_vars: {TOKEN: hunter2}"
    for wanted, known in ((secret, "env_vars: {TOKEN: hunter3}"), (secret, "pip: [a]"), (secret, None), (None, secret)):
        told = "\n".join(differences.of_objects(spec(wanted), spec(known), "spec"))
        assert "spec.runtimeEnvYAML" in told
        assert "hunter" not in told


@pytest.mark.parametrize("odd", ["env_vars: {1: a}", "a: 2024-99-99", "[" * 600, "a: .nan"])
def test_text_that_is_odd_yaml_is_told_of_all_the_same(odd):
    assert differences.of_texts("a: b", odd)


@pytest.mark.parametrize("odd", ["a: .nan", "a: 1\na: 2", "a: ["])
def test_variables_beside_what_cannot_be_read_are_told_without_their_values(odd):
    sound, text = "env_vars: {A: secret-there}", "env_vars: {A: secret-here}\n" + odd
    told = differences.of_texts(sound, text)
    assert told
    assert "secret" not in told
