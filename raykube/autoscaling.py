"""How many replicas of a deployment Ray Serve keeps: the spec of its ``autoscaling_config``."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from raykube.errors import ConfigError, Problem
from raykube.strict import Spec, jsonable


class Autoscaling(Spec):
    """Ray Serve's ``autoscaling_config``; a field that is None keeps Ray Serve's default."""

    min_replicas: int | None = Field(default=None, ge=0)
    initial_replicas: int | None = Field(default=None, ge=0)
    max_replicas: int | None = Field(default=None, ge=1)
    target_ongoing_requests: float | None = Field(default=None, gt=0)
    upscale_delay_s: float | None = Field(default=None, ge=0)
    downscale_delay_s: float | None = Field(default=None, ge=0)
    downscale_to_zero_delay_s: float | None = Field(default=None, ge=0)
    upscaling_factor: float | None = Field(default=None, gt=0)
    downscaling_factor: float | None = Field(default=None, gt=0)
    look_back_period_s: float | None = Field(default=None, gt=0)
    aggregation_function: str | None = Field(default=None, pattern="^(mean|max|min)$")
    policy: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check_order(self) -> Autoscaling:
        low = 1 if self.min_replicas is None else self.min_replicas
        high = 1 if self.max_replicas is None else self.max_replicas
        start = low if self.initial_replicas is None else self.initial_replicas
        if not low <= start <= high:
            what = f"min_replicas {low} <= initial_replicas {start} <= max_replicas {high} does not hold"
            raise ConfigError.of("", [Problem("", what, "Ray Serve's default of min_replicas and max_replicas is 1")])
        return self

    @field_validator("policy")
    @classmethod
    def _check_policy(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return value and jsonable(value, "it")
