import pytest

from raykube.inside.tuning import reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ray::f()\n  File x\nraykube.errors.ConfigError: no report\n  next: report it", "ConfigError: no report"),
        (
            "a: b\nraykube.errors.RunFailed: run x failed\n  why:  KeyError: 'lr' (worker 0)\n  next: y",
            "KeyError: 'lr' (worker 0)",
        ),
        (
            "2 worker(s) were killed due to the node running low on memory.\nOOM kill: x\nray.y: see",
            "Ray's memory monitor killed it: 2 worker(s) were killed due to the node running low on memory.",
        ),
        ("The actor died.\n\tpid: 1\nThe actor is dead because of x", "The actor is dead because of x"),
        ("something odd", "something odd"),
        ("", "Exception('')"),
    ],
)
def test_reason_of_a_trial_is_one_line(text, expected):
    assert reason(Exception(text)) == expected
