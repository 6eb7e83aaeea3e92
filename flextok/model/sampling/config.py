"""The law by which ids are drawn from a prior; light to import.

Ids are ordered from coarse to fine, so that guidance and temperature may change along the way. The way is that of all L
positions, however many are drawn: fewer stay a prefix of more.
"""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from flextok.config import Added, Config
from flextok.registry import ConfigRegister


def way(position: int, length: int) -> float:
    """How far along `position` is among `length` ones, 0 to 1; a single one is at the end."""
    return position / (length - 1) if length > 1 else 1.0


class GuidanceScheduleConfig(Config):
    """How much of the guidance each position takes; the base of each kind's settings."""

    kind: str

    def share(self, way: float) -> float:
        """What of `guidance - 1` is in force at `way`, 0 to 1."""
        raise NotImplementedError


GUIDANCE_SCHEDULES = ConfigRegister("guidance schedule")
GuidanceSchedule = Annotated[GuidanceScheduleConfig, GUIDANCE_SCHEDULES]


@GUIDANCE_SCHEDULES.register
class ConstantGuidance(GuidanceScheduleConfig):
    """The same at all positions."""

    kind: Literal["constant"] = "constant"

    def share(self, way: float) -> float:
        return 1.0


@GUIDANCE_SCHEDULES.register
class LinearGuidance(GuidanceScheduleConfig):
    """None at the first position, rising evenly to all of it at the last."""

    kind: Literal["linear"] = "linear"

    def share(self, way: float) -> float:
        return way


@GUIDANCE_SCHEDULES.register
class CosineGuidance(GuidanceScheduleConfig):
    """None at the first position, rising as half a cosine to all of it at the last."""

    kind: Literal["cosine"] = "cosine"

    def share(self, way: float) -> float:
        return (1 - math.cos(math.pi * way)) / 2


@GUIDANCE_SCHEDULES.register
class PowerCosineGuidance(GuidanceScheduleConfig):
    """A cosine of way^power, as MaskGIT's descendants and RAR (arXiv 2411.00776) use it: late for a power above 1."""

    kind: Literal["power_cosine"] = "power_cosine"
    power: float = Field(default=2.75, gt=0, description="Above 1 the guidance comes later, below 1 sooner.")

    def share(self, way: float) -> float:
        return (1 - math.cos(math.pi * way**self.power)) / 2


@GUIDANCE_SCHEDULES.register
class IntervalGuidance(GuidanceScheduleConfig):
    """All of it between two points of the way, none elsewhere (arXiv 2404.07724)."""

    kind: Literal["interval"] = "interval"
    start: float = Field(default=0.0, ge=0, le=1, description="Where it begins: 0 is the first position, 1 the last.")
    stop: float = Field(default=1.0, ge=0, le=1, description="Where it ends, the point itself included.")

    @model_validator(mode="after")
    def _in_order(self) -> "IntervalGuidance":
        if self.start > self.stop:
            raise ValueError(f"expected start at most stop, found {self.start} and {self.stop}")
        return self

    def share(self, way: float) -> float:
        return 1.0 if self.start <= way <= self.stop else 0.0


class DrawConfig(Config):
    """How ids are drawn: logits are mixed, divided by the temperature, then cut by top_k, top_p and min_p in turn."""

    temperature: float = Field(default=1.0, ge=0, description="Divides the logits; 0 takes the likeliest id.")
    last_temperature: Added[float | None] = Field(
        default=None, ge=0, description="Temperature of the last position, reached evenly; null: that of the first."
    )
    top_k: int | None = Field(default=None, gt=0, description="Keep only the k likeliest ids; null keeps all.")
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="Keep the fewest ids whose probability reaches p; null: all."
    )
    min_p: Added[float | None] = Field(
        default=None, ge=0, le=1, description="Keep ids at least so many times as likely as the likeliest; null: all."
    )
    guidance: float = Field(default=1.0, ge=0, description="Classifier-free guidance of the prior; 1 is none.")
    guidance_schedule: Added[GuidanceSchedule] = Field(
        default=ConstantGuidance(), description="How much of the guidance each position takes."
    )

    def guidance_at(self, way: float) -> float:
        """1 + (guidance - 1) times what the schedule gives."""
        return 1 + (self.guidance - 1) * self.guidance_schedule.share(way)

    def temperature_at(self, way: float) -> float:
        """Between the first and the last temperature, in proportion."""
        last = self.temperature if self.last_temperature is None else self.last_temperature
        return self.temperature + (last - self.temperature) * way
