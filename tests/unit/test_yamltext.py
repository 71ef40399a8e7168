"""Manifests are read as other readers of YAML read them."""

import pytest
import yaml

from raykube.yamltext import documents


@pytest.mark.parametrize("text", ["env: [1]\nenv: [2]", "spec:\n  a: 1\n  b: 2\n  a: 3", '{"a": 1, "a": 2}'])
def test_key_that_stands_twice_is_refused_with_its_place(text):
    with pytest.raises(yaml.YAMLError, match="is there twice") as caught:
        list(documents(text))
    assert caught.value.problem_mark.line == text.count("\n")


def test_value_that_is_none_of_its_tag_is_no_yaml():
    with pytest.raises(yaml.YAMLError, match="abc"):
        list(documents("a: !!int abc"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: .nan", "Out of range float"),
        ('a: "x\\ud800"', "half a character"),
        ("a: !!binary aGk=", "bytes is not JSON"),
        ("a: !!set {b}", "set is not JSON"),
        ("&x [*x]", "Circular reference"),
        ("[" * 600, "nested too deeply"),
    ],
)
def test_value_that_json_has_not_is_refused_in_words(text, words):
    with pytest.raises(yaml.YAMLError, match=words):
        list(documents(text))


def test_merged_mapping_may_say_otherwise_wherever_it_is_merged_again():
    text = "x: {deep: {deeper: &b {<<: &a {k: 1}, k: 2}}}\nc: {<<: *b}\nd: {<<: *a, k: 3}"
    (found,) = documents(text)
    assert (found["x"]["deep"]["deeper"], found["c"], found["d"]) == ({"k": 2}, {"k": 2}, {"k": 3})


def test_keys_are_what_is_written():
    (found,) = documents("{ON: a, YES: b, true: c, 1: d, 1.0: e, 0x1: f, ~: g, 2024-01-01: h}")
    names = ("ON", "YES", "true", "1", "1.0", "0x1", "~", "2024-01-01")
    assert found == dict(zip(names, "abcdefgh", strict=True))
    assert list(documents("a: &x 8080\nb: {*x : y}\nc: {&z 1: y}\nd: *z")) == [
        {"a": 8080, "b": {"8080": "y"}, "c": {"1": "y"}, "d": 1}
    ]


def test_uses_of_an_anchor_are_values_of_their_own():
    (found,) = documents("a: &x {k: [1]}\nb: *x")
    found["a"]["k"].append(2)
    assert found["b"] == {"k": [1]}


def test_keys_are_text_and_times_are_no_numbers():
    (found,) = documents("{7: a, true: b, text: 22:30, number: 10, float: 1.5, other: 1:30.5}")
    assert found == {"7": "a", "true": "b", "text": "22:30", "number": 10, "float": 1.5, "other": "1:30.5"}
