import pytest

import raykube
from jobs import _digits
from raykube import wire
from tests import support
from tests.local.inside.support import MARKS

pytestmark = MARKS


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """Run ``python -m jobs.digits`` with a Ray and a home of its own; return (its output, its result, its home)."""
    folder = tmp_path_factory.mktemp("script")
    environ = {wire.STORAGE: str(folder / "runs"), wire.RUN_NAME: "script", wire.WORKERS: "2", wire.TRACKING: "off"}
    done = support.run("python", "-m", "jobs.digits", timeout=300, HOME=str(folder), **environ)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (folder / "runs" / "script" / wire.RESULT_FILE).read_text()
    return done.stdout, wire.Result.from_json(text), folder


def test_digits_are_recognised(script):
    assert script[1].metrics["accuracy"] >= 0.97


def test_script_tells_what_happens_and_where_it_ended(script):
    output, result, _ = script
    assert "raykube: epoch 1 " in output
    assert result.checkpoint in output
    assert f"sha256:{_digits.fingerprint(result.checkpoint)}" in output


def test_own_ray_leaves_no_token_in_the_home(script):
    assert not (script[2] / ".ray" / "auth_token").exists()


@pytest.mark.usefixtures("here")
def test_same_seed_and_scale_give_the_same_weights(script):
    config = {"data": _digits.write_data(), "epochs": script[1].metrics["epoch"]}
    again = raykube.train(_digits.loop, config, experiment="digits")
    assert _digits.fingerprint(again.checkpoint) == _digits.fingerprint(script[1].checkpoint)
