"""Spares trainings actors that Ray Train 2.60 starts and ours do not need. Imported only where Ray is.

Each is a process on the head's node that loads all of Ray Train and Ray Data before a worker may begin:

- One hands out the parts of datasets. ``raykube.train`` passes none, but Ray starts the actor all the same.
- One frees what a killed controller had reserved, if it outlives the controller. Here the driver does so (``deaths``).

This uses internals of Ray, which may move; if they have, Ray is left as it is.
"""

from __future__ import annotations

from typing import Any


class NoDatasets:
    """Stands in a worker for the datasets of a training that has none."""

    def get_dataset_shard(self, dataset_info: Any) -> Any:
        """Refuse, as Ray's own provider does for an unknown name.

        Raises:
            KeyError: always.
        """
        raise KeyError(f"{dataset_info.dataset_name!r}: raykube.train hands no datasets on; read the data in the loop")

    def shutdown_data_executors(self) -> None:
        """Do nothing: there is nothing to end."""


def spare_actors() -> None:
    """Keep the controller in this process from starting these actors."""
    _spare_datasets()
    _spare_cleaner()


def _spare_datasets() -> None:
    try:
        from ray.train.v2._internal.callbacks import datasets as of_ray

        provider = of_ray.RayDatasetShardProvider
    except (ImportError, AttributeError):
        return
    if isinstance(provider, type):  # not yet replaced
        of_ray.RayDatasetShardProvider = lambda datasets, **rest: (
            provider(datasets=datasets, **rest) if datasets else NoDatasets()
        )


def _spare_cleaner() -> None:
    try:
        from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback as Cleaner
    except ImportError:
        return
    if hasattr(Cleaner, "after_controller_start") and hasattr(Cleaner, "after_worker_group_start"):
        Cleaner.after_controller_start = Cleaner.after_worker_group_start = lambda *_: None
