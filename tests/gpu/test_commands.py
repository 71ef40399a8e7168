"""What a person types on a machine with a GPU."""

import json
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests import support
from tests.local.inside.support import MARKS

torch = pytest.importorskip("torch")
pytestmark = [*MARKS, pytest.mark.gpu]
ROOT = Path(__file__).parent.parent.parent
APP = """
import torch
from jobs import _digits
from raykube.inside import serving

def load(checkpoint):
    return _digits.load(checkpoint).cuda()

def predict(net, instances):
    with torch.inference_mode():
        images = torch.tensor(instances, dtype=torch.float32, device="cuda").reshape(-1, 1, 8, 8)
        found = net(images).argmax(1)
    return [f"{digit} by {found.device}" for digit in found.tolist()]

app = serving.application(load, predict)
"""


def raykube(*words, cwd=ROOT, **environ):
    done = support.run("raykube", *words, cwd=cwd, timeout=180, **environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_doctor_tells_a_gpu_that_nothing_uses_and_one_that_is_used():
    assert re.search(
        r"^\S+ +gpus +\d NVIDIA GPUs?; no training on this machine uses them", raykube("doctor"), re.MULTILINE
    )
    used = raykube("doctor", RAYKUBE_GPUS_PER_WORKER="1")
    assert re.search(r"^ok +gpus +\d NVIDIA GPUs?; a worker has 1", used, re.MULTILINE)


@pytest.fixture(scope="module")
def trained():
    """Train digits on the GPU by the command, once; return its result."""
    raykube("job", "submit", "--name", "gpu-a1", "--", "python", "-m", "jobs.digits", RAYKUBE_GPUS_PER_WORKER="1")
    return json.loads(raykube("job", "result", "gpu-a1", "--json"))


def test_digits_of_a_submitted_run_were_trained_on_the_gpu(trained):
    assert trained["metrics"]["accuracy"] >= 0.97
    state = torch.load(Path(trained["checkpoint"], "state.pt"), weights_only=True)
    assert {weights.device.type for weights in state["model"].values()} == {"cuda"}


def test_service_answers_from_the_gpu(trained, tmp_path):
    (tmp_path / "app.py").write_text(APP)
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs")
    words = ("gpu-s1", "app:app", "--model", trained["checkpoint"], "--num-gpus", "1")
    try:
        url = raykube("service", "deploy", *words, cwd=tmp_path).splitlines()[-1]
        answer = httpx.post(url, json={"instances": [[0.0] * 64]}, timeout=30).json()
    finally:
        raykube("service", "delete", "gpu-s1")
    assert answer["predictions"][0].endswith("by cuda:0")


def test_readme_s_script_runs_on_the_gpu_too(tmp_path):
    (tour,) = re.findall(r"```python\n(\"\"\"Line fit.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "line.py").write_text(tour)
    words = ("job", "submit", "--name", "gpu-l1", "--", "python", "-m", "jobs.line")
    raykube(*words, cwd=tmp_path, RAYKUBE_GPUS_PER_WORKER="1")
    found = json.loads(raykube("job", "result", "gpu-l1", "--json"))
    state = torch.load(Path(found["checkpoint"], "state.pt"), weights_only=True)
    assert state["model"]["weight"].device.type == "cuda"


def test_tracking_knows_the_gpus_of_a_run(trained):
    with closing(sqlite3.connect(Path(trained["path"]).parents[1] / "mlflow.db")) as store:
        told = store.execute("select distinct value from tags where key = 'raykube.gpus_per_worker'").fetchall()
    assert told == [("1",)]
