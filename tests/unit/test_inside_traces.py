"""Where an error of a loop arose."""

import importlib
import pickle
import sys
import traceback

import pytest

from raykube.inside import loops
from raykube.inside.failures import LoopError, explain, mark
from raykube.inside.traces import own_line


def test_failure_of_a_loop_names_the_line_of_the_users_code(tmp_path, monkeypatch):
    (tmp_path / "job.py").write_text("import statistics\n\ndef loop(config):\n    statistics.mean([])\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    job = importlib.import_module("job")
    monkeypatch.delitem(sys.modules, "job")
    with pytest.raises(ValueError, match="data point") as caught:
        loops.call(job.loop, {"lr": 1})
    mark(caught.value, "".join(traceback.format_exception(caught.value)))
    failure, _ = explain(LoopError({3: pickle.loads(pickle.dumps(caught.value))}))
    assert failure.message.endswith("data point (worker 3, job.py line 4)")


@pytest.mark.parametrize(
    ("frames", "line"),
    [
        (["/elsewhere/job.py", "/usr/lib/python3.12/json/decoder.py"], "/elsewhere/job.py line 1"),
        (["/a/job.py", "/b/job.py", "/venv/lib/python3.12/site-packages/torch/x.py"], "/b/job.py line 2"),
        (["/a/job.py", "<frozen importlib._bootstrap>"], "/a/job.py line 1"),
        (["/tmp/ipykernel_7/123.py"], "notebook cell line 1"),
        (["<string>"], "<string> line 1"),
        ([loops.__file__], ""),
        ([], ""),
    ],
)
def test_line_is_the_last_one_of_the_users_own(frames, line):
    text = "\n".join(f'  File "{path}", line {number}, in loop\n    x' for number, path in enumerate(frames, 1))
    assert own_line(f"Traceback (most recent call last):\n{text}\nValueError: bad") == line
