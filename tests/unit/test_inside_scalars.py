import json

import pytest

import raykube
from raykube.errors import ConfigError
from raykube.inside import checkpoints, loops
from raykube.inside.history import Recorder
from raykube.inside.scalars import Deferred, fetched, scalars
from tests.support import Later

np = Later("numpy")
torch = Later("torch")


@pytest.mark.parametrize(
    "value",
    [
        lambda: np.float32(0.5),
        lambda: np.float64(0.5),
        lambda: np.array(0.5),
        lambda: torch.tensor(0.5),
        lambda: torch.tensor([0.5], requires_grad=True),
    ],
)
def test_scalars_take_one_value_of_numpy_and_torch(value):
    assert json.loads(json.dumps(scalars({"loss": value()}))) == {"loss": 0.5}


def test_scalars_name_every_value_that_is_none():
    with pytest.raises(ConfigError) as caught:
        scalars({"good": 1, "list": [1], "array": np.zeros(3), "tensor": torch.zeros(2, 2), "object": object()})
    assert [problem.path for problem in caught.value.problems] == ["list", "array", "tensor", "object"]


def test_scalars_name_every_name_that_is_no_text():
    with pytest.raises(ConfigError) as caught:
        scalars({"good": 1, 0: 0.5, ("a", 1): 2})
    assert [(problem.path, problem.next_step) for problem in caught.value.problems] == [
        ("0", "write '0'"),
        ("('a', 1)", """write "('a', 1)\""""),
    ]


def test_scalars_want_a_dict():
    with pytest.raises(ConfigError, match="dict"):
        scalars(3)


def test_scalars_refuse_complex_numbers_of_a_device_at_once():
    with pytest.raises(ConfigError, match="loss"):
        scalars({"loss": torch.zeros((), dtype=torch.complex64, device="meta")}, defer=True)


def test_scalars_refuse_several_numbers_of_a_device_at_once():
    with pytest.raises(ConfigError, match=r"loss: shape \(3,\) is more than one value"):
        scalars({"loss": torch.zeros(3, device="meta")}, defer=True)


@pytest.fixture
def mesh():
    """Be the only rank of a process group."""
    dist = torch.distributed
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, of its own parts
def test_scalars_refuse_what_only_all_workers_together_can_read(mesh):
    from torch.distributed.tensor import DTensor, Partial, Replicate

    one = torch.ones(())
    assert scalars({"norm": DTensor.from_local(one, mesh, [Replicate()])}) == {"norm": 1.0}
    with pytest.raises(ConfigError, match=r"norm: is spread over the workers: report its full_tensor\(\)"):
        scalars({"norm": DTensor.from_local(one, mesh, [Partial()])}, defer=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rank", [0, 1])
def test_checkpoint_of_which_each_worker_holds_a_part_is_refused_on_every_worker(mesh, monkeypatch, tmp_path, rank):
    from torch.distributed.tensor import DTensor, Replicate, Shard

    whole, part = (DTensor.from_local(torch.ones(2), mesh, [placement]) for placement in (Replicate(), Shard(0)))
    state = {"model": {"bias": whole, "weight": part}, "optimizer": [{"step": 1, "moment": part}]}
    checkpoints.require_whole({"model": {"bias": whole}})
    state["me"] = state
    recorder = Recorder(str(tmp_path / "metrics.jsonl"), 1) if rank == 0 else None
    monkeypatch.setattr(loops, "_session", loops._Session(recorder, str(tmp_path)))
    with pytest.raises(ConfigError, match=r"workers: model\.weight and 1 more\n.*\n.*full_state_dict=True"):
        raykube.report({"loss": 1.0}, state)
    assert not list(tmp_path.glob("checkpoint_*"))


def test_scalars_leave_a_copy_of_what_lies_on_a_device():
    loss = torch.ones((1, 1), device="meta", requires_grad=True)
    left = scalars({"step": 1, "loss": loss}, defer=True)["loss"].value
    assert left is not loss
    assert not left.requires_grad


def test_fetched_takes_numbers_as_they_are():
    assert fetched([{"a": 1, "b": "x"}, {}, {"a": None}]) == ([{"a": 1, "b": "x"}, {}, {"a": None}], {})


def test_fetched_puts_each_number_where_it_belongs_and_keeps_its_type():
    def row(step):
        values = {"half": torch.tensor(step / 2, dtype=torch.bfloat16), "count": torch.tensor([[step]])}
        return {"step": step} | {
            name: Deferred(value) for name, value in (values | {"on": values["count"] > 1}).items()
        }

    found, unread = fetched([row(1), row(2)])
    assert (found, unread) == (
        [{"step": 1, "half": 0.5, "count": 1, "on": False}, {"step": 2, "half": 1.0, "count": 2, "on": True}],
        {},
    )
    assert [type(found[0][name]) for name in ("half", "count", "on")] == [float, int, bool]


class Event:
    """Ends a computation the third time that it is asked for it."""

    def __init__(self, value):
        self.value, self.asked = value, 0

    def query(self):
        self.asked += 1
        if self.asked < 3:
            return False
        self.value.fill_(7)
        return True


def test_fetched_waits_until_a_value_is_computed():
    value = torch.zeros(())
    assert fetched([{"loss": Deferred(value, Event(value))}]) == ([{"loss": 7.0}], {})


def test_fetched_leaves_out_only_what_cannot_be_read():
    sparse = torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.long), torch.ones(1), (1,), check_invariants=True)
    lost = Deferred(torch.zeros((), device="meta"))
    rows = [{"good": Deferred(torch.tensor(0.5)), "norm": Deferred(sparse), "lost": lost}]
    (found,), unread = fetched(rows)
    assert found == {"good": 0.5, "norm": 1.0}
    assert [*unread] == ["lost"]
