"""How the learning rate goes after the warm-up; light to import."""

import math
from typing import Annotated, Literal

from pydantic import Field

from flextok.config import Config
from flextok.registry import ConfigRegister


class ScheduleSettings(Config):
    """A schedule of the learning rate; the base of each kind's settings."""

    kind: str

    def share(self, step: int, warmup_steps: int, steps: int, floor: float) -> float:
        """Part of the top learning rate at `step`, counted from 0 and not before the end of the warm-up.

        `floor` is the part at the last of all `steps`, for a kind that comes down.
        """
        raise NotImplementedError


SCHEDULES = ConfigRegister("learning rate schedule")
ScheduleConfig = Annotated[ScheduleSettings, SCHEDULES]


@SCHEDULES.register
class CosineSchedule(ScheduleSettings):
    """Half a cosine down to `final_lr_fraction` at the last step."""

    kind: Literal["cosine"] = "cosine"

    def share(self, step: int, warmup_steps: int, steps: int, floor: float) -> float:
        """See `ScheduleSettings.share`."""
        progress = (step - warmup_steps) / max(steps - 1 - warmup_steps, 1)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


@SCHEDULES.register
class ConstantSchedule(ScheduleSettings):
    """The same to the end; `final_lr_fraction` is not read."""

    kind: Literal["constant"] = "constant"

    def share(self, step: int, warmup_steps: int, steps: int, floor: float) -> float:
        """See `ScheduleSettings.share`."""
        return 1.0


@SCHEDULES.register
class WsdSchedule(ScheduleSettings):
    """Warm-up, stable, decay (Hu et al., arXiv 2404.06395): constant, then down to `final_lr_fraction` at the last step.

    `one_minus_sqrt` is the shape that Hägele et al. (arXiv 2405.18392) found best, by a little.
    """

    kind: Literal["wsd"] = "wsd"
    decay_fraction: float = Field(
        default=0.2, gt=0, le=1, description="The last part of all steps, in which it decays."
    )
    shape: Literal["linear", "one_minus_sqrt"] = Field(default="linear", description="How it comes down there.")

    def share(self, step: int, warmup_steps: int, steps: int, floor: float) -> float:
        """See `ScheduleSettings.share`."""
        decay_steps = max(round(self.decay_fraction * steps), 1)
        way = max(step + 1 - (steps - decay_steps), 0) / decay_steps
        return floor + (1 - floor) * (1 - (math.sqrt(way) if self.shape == "one_minus_sqrt" else way))
