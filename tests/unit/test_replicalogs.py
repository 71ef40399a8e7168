"""What replicas log and print, from the files of their workers."""

import pytest

from raykube.backends import sources
from raykube.backends.replicalogs import ReplicaLines, in_order

MARKS = b":job_id:01\n:actor_name:ServeReplica:a:Model\n"


@pytest.mark.parametrize(
    ("log", "shown"),
    [
        (MARKS + b"mine\nunended", ["mine", "unended"]),
        (
            b":job_id:01\n:task_name:f\nof a task\n" + MARKS + b"mine\n:task_name:g\nstill mine\n",
            ["mine", "still mine"],
        ),
        (b":actor_name:Other\nof another\nunended", []),
        (b"of a file that took the place of a full one\n", ["of a file that took the place of a full one"]),
    ],
)
def test_what_a_worker_printed_for_others_is_not_a_replica_s(log, shown):
    for size in (1, 7, len(log)):
        parts = [log[begin : begin + size] for begin in range(0, len(log), size)]
        assert list(sources.lines_in(parts, ReplicaLines())) == shown


def test_standard_output_comes_after_what_is_merged_by_time():
    late, early = (f"INFO 2026-11-28 12:00:0{second},000 a_Model x1 -- said" for second in (2, 1))
    files = {"w1.out": ["of w1"], "w1.err": [late, "warned"], "w2.err": [early], "w2.out": ["of w2"]}
    assert list(in_order(files.items())) == [early, late, "warned", "of w1", "of w2"]
