"""What is trained: a loop, its config and the metric that judges it; configs as JSON and pickle take them."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from raykube.errors import ConfigError, Problem
from raykube.inside.loops import takes_config
from raykube.inside.scores import is_number


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        loop: a Ray Train loop, of no argument or of its config.
        config: for the loop.
        metric: by which the best checkpoint is chosen; None for the last one.
        mode: ``"min"`` or ``"max"``.
    """

    loop: Callable[..., Any]
    config: dict[str, Any] = field(default_factory=dict)
    metric: str | None = None
    mode: str = "min"

    def __post_init__(self) -> None:
        takes_config(self.loop, self.config)
        if self.mode not in {"min", "max"}:
            raise ConfigError(f"mode is {self.mode!r}", next_step='write "min" or "max"')

    @property
    def without_metric(self) -> str:
        """The note on a result whose checkpoint was not chosen by the metric."""
        return f"no checkpoint was reported with a number for the metric {self.metric!r}, so this is the last one"

    def best(self, scored: Sequence[tuple[Any, Mapping[str, Any]]]) -> tuple[Any, Mapping[str, Any]] | None:
        """Return the (item, metrics) with the best metric; None when no metrics have a number for it."""
        valid = [pair for pair in scored if is_number(pair[1].get(self.metric or ""))]
        choose = min if self.mode == "min" else max
        return choose(valid, key=lambda pair: pair[1][self.metric or ""]) if valid else None


def published(config: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a config as JSON can hold it: all names are text, and values that JSON does not know become words."""
    return {str(name): _plain(value) for name, value in config.items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    try:
        json.dumps(value, skipkeys=True, default=str)  # which raises if a value holds itself
        if isinstance(value, Mapping):
            return published(value)
        if isinstance(value, list | tuple):
            return [_plain(each) for each in value]
        json.dumps(value)
    except (TypeError, ValueError):
        return _number(value)
    return value


def _number(value: Any) -> Any:
    """Return the one number in a numpy or PyTorch value; for any other value, its words."""
    with contextlib.suppress(TypeError, ValueError, RuntimeError):
        if hasattr(value, "shape") and hasattr(value, "item") and math.prod(value.shape) == 1:
            found = value.item()
            return found if isinstance(found, int | float) else str(found)
    return str(value)


def wrong_arguments(experiment: Any, metric: Any, model: Any) -> list[Problem]:
    """Return all problems of the other arguments of ``train`` and ``sweep``; None stands for one that was left out."""
    found = []
    if not isinstance(experiment, str) or not experiment:
        found.append(Problem("experiment", f"{experiment!r} is not a name", 'write text, as "digits"'))
    if metric is not None and (not isinstance(metric, str) or not metric):
        found.append(Problem("metric", f"{metric!r} is not a name", "name a number that the loop reports"))
    if model is not None and (why := _no_loader(model)):
        found.append(Problem("model", why, "give a function that makes a torch.nn.Module from a checkpoint's folder"))
    return found


def _no_loader(model: Any) -> str:
    """Return why `model` cannot be called with a folder; "" if it can, or if only a call would tell."""
    if not callable(model):
        return f"must be a function, not {type(model).__name__}"
    if (torch := sys.modules.get("torch")) and isinstance(model, torch.nn.Module):
        return f"is itself a model, a {type(model).__name__}"
    try:
        inspect.signature(model).bind("folder")
    except TypeError as error:
        return f"cannot be called with a checkpoint's folder: {error}"
    except ValueError:  # a function written in C may have no signature
        pass
    return ""


def as_dict(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config as a dict.

    Raises:
        ConfigError: it is not a mapping.
    """
    if not isinstance(config, Mapping):
        step = "write vars(config); of a dataclass, dataclasses.asdict(config)"
        raise ConfigError(f"the config must be a dict, not {type(config).__name__}", next_step=step)
    return dict(config)


@contextmanager
def sent_by_pickle(config: Mapping[str, Any]) -> Iterator[None]:
    """Name the values of a config that pickle does not take, if that is why it could not be sent.

    Raises:
        ConfigError: there are such values.
    """
    try:
        yield
    except (TypeError, ValueError, AttributeError, pickle.PicklingError) as error:
        if problems := list(_unsendable(config)):
            raise ConfigError.of("this config cannot be sent to the workers", problems) from error
        raise


def _unsendable(config: Mapping[str, Any]) -> Iterator[Problem]:
    for name, value in config.items():
        if why := _refusal(value):
            yield Problem(f"config.{name}", why, "make it in the loop")


def _refusal(value: Any) -> str:
    """Return why pickle does not take a value; "" if it does."""
    from ray import cloudpickle

    try:
        cloudpickle.dumps(value)
    except Exception as error:  # noqa: BLE001 # whatever the value's own methods raise
        return f"{type(error).__name__}: {error}"
    return ""
