"""Which plans are the same, and which are the same work."""

import pytest

import raykube as rk
from raykube import marks, sameness

CHANGES = {"timeout_s": 60, "pending_timeout_s": 30, "max_retries": 2, "keep_cluster_s": 5}


@pytest.fixture
def planned(tmp_path):
    """Return a function that plans a job, here or on a preset."""
    (tmp_path / "train.py").write_text("print('trained')\n")

    def plan(on, **fields):
        job = {"entrypoint": "python train.py", "working_dir": tmp_path, "name": "a", **fields}
        return rk.plan(rk.Job(**job), on=on)

    return plan


@pytest.mark.parametrize("on", ["local", "cpu-small"])
@pytest.mark.parametrize("limit", CHANGES)
def test_limits_make_another_plan_of_the_same_work(planned, on, limit):
    one, other = planned(on), planned(on, **{limit: CHANGES[limit]})
    assert sameness.work(one.body) == sameness.work(other.body)
    if (on, limit) != ("local", "keep_cluster_s"):  # there is none to keep
        assert one.hash != other.hash


@pytest.mark.parametrize("on", ["local", "cpu-small"])
@pytest.mark.parametrize("fields", [{"entrypoint": "python train.py --lr 1"}, {"env_vars": {"A": "b"}}])
def test_another_command_or_environment_is_other_work(planned, on, fields):
    assert sameness.work(planned(on).body) != sameness.work(planned(on, **fields).body)


def test_rayjob_tells_its_work_by_a_label(planned):
    plan = planned("cpu-small")
    assert plan.body[-1]["metadata"]["labels"][marks.WORK] == sameness.work(plan.body)
