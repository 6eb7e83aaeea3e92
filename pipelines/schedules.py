"""When work starts by itself: cron times and how often the source is looked at, as a profile says."""

import re
import zoneinfo

from pydantic import Field, field_validator, model_validator

from flextok.config import Config

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class AutomationConfig(Config):
    """When work starts by itself, where `flextok ui` or Dagster's daemon runs, and what happens where it fails.

    Nothing starts unless it stands here.
    """

    refresh: str | None = Field(
        default=None, description='When to build what is out of date, as a cron line ("0 3 * * *").'
    )
    evaluate: str | None = Field(
        default=None, description="When to make all evaluations and the report anew, as a cron line."
    )
    timezone: str = Field(default="UTC", description="Time zone of the cron lines, by its name (Europe/Berlin).")
    watch_source: str | None = Field(
        default=None,
        description="How often to look whether the source changed, as in 30s, 15m, 6h or 1d; a change starts a refresh.",
    )

    max_regression: float = Field(
        default=0.05, ge=0, description="Part by which a new evaluation may be worse than the last promoted one."
    )
    freshness: dict[str, str] = Field(
        default_factory=dict, description="By stage, how old its newest result may be, as in {report: 7d}."
    )
    retries: int = Field(
        default=3, ge=0, description="How often a step that a store, a network or a lost worker ended is run again."
    )
    retry_wait: str = Field(default="1m", description="Wait before the first of these, as in 30s or 5m; it doubles.")

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        if value not in zoneinfo.available_timezones():
            raise ValueError(f"expected a time zone such as UTC or Europe/Berlin, found '{value}'")
        return value

    @field_validator("watch_source", "retry_wait")
    @classmethod
    def _duration(cls, value: str | None) -> str | None:
        if value is not None:
            seconds(value)
        return value

    @field_validator("freshness")
    @classmethod
    def _durations(cls, value: dict[str, str]) -> dict[str, str]:
        for duration in value.values():
            seconds(duration)
        return value

    @model_validator(mode="after")
    def _cron_lines(self) -> "AutomationConfig":
        for name in ("refresh", "evaluate"):
            line = getattr(self, name)
            if line is not None and not _is_cron(line):
                raise ValueError(f"expected {name} as a cron line such as '0 3 * * *', found '{line}'")
        return self


def seconds(duration: str) -> int:
    """Seconds of "30s", "15m", "6h" or "1d"; raises ValueError for anything else."""
    found = re.fullmatch(r"([1-9]\d*)([smhd])", duration)
    if found is None:
        raise ValueError(f"expected a duration such as 30s, 15m, 6h or 1d, found '{duration}'")
    return int(found[1]) * UNITS[found[2]]


def _is_cron(line: str) -> bool:
    # Only profiles with schedules pay for this import, half a second.
    import dagster as dg

    try:
        dg.ScheduleDefinition(job_name="any", cron_schedule=line)
    except dg.DagsterInvalidDefinitionError:
        return False
    return True
