"""The pod that reads and writes a storage."""

import inspect

from raykube.backends.kuberay import storage
from raykube.inside import storage as inside


def test_pod_runs_the_inside_planes_module_in_the_heads_image():
    made = storage._container({"name": "head", "image": "ray:1", "ports": []}, ("receive", "/shared"))
    assert made["command"] == ["python", "-c", inspect.getsource(inside), "receive", "/shared"]
    assert made["image"] == "ray:1"
    assert "ports" not in made
