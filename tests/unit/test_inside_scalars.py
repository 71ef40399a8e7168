import json

import pytest

from raykube.errors import ConfigError
from raykube.inside.scalars import fetched, scalars

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")


@pytest.mark.parametrize(
    "value",
    [np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5), torch.tensor([0.5], requires_grad=True)],
)
def test_scalars_take_one_value_of_numpy_and_torch(value):
    assert json.loads(json.dumps(scalars({"loss": value}))) == {"loss": 0.5}


def test_scalars_name_every_value_that_is_none():
    with pytest.raises(ConfigError) as caught:
        scalars({"good": 1, "list": [1], "array": np.zeros(3), "tensor": torch.zeros(2, 2), "object": object()})
    assert [problem.path for problem in caught.value.problems] == ["list", "array", "tensor", "object"]


def test_scalars_want_a_dict():
    with pytest.raises(ConfigError, match="dict"):
        scalars(3)


def test_scalars_refuse_complex_numbers_of_a_device_at_once():
    with pytest.raises(ConfigError, match="loss"):
        scalars({"loss": torch.zeros((), dtype=torch.complex64, device="meta")}, defer=True)


def test_scalars_leave_a_copy_of_what_lies_on_a_device():
    loss = torch.ones((1, 1), device="meta", requires_grad=True)
    left = scalars({"step": 1, "loss": loss}, defer=True)["loss"]
    assert left is not loss
    assert not left.requires_grad


def test_fetched_takes_numbers_as_they_are():
    assert fetched([{"a": 1, "b": "x"}, {}, {"a": None}]) == [{"a": 1, "b": "x"}, {}, {"a": None}]
