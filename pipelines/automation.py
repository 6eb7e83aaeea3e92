"""What runs by itself once the user turns the sensor on: stages whose inputs' data or own settings changed."""

from typing import Any

import dagster as dg

AC = dg.AutomationCondition

# Dagster's `eager()` would run everything below a stage after each of its runs, also when its data stayed the same,
# and would miss changed settings. This one looks at data versions, so the early cut-off holds here as in `refresh`.
# Any: in Dagster's annotations conditions on assets do not join those on assets or checks.
_changed: Any = AC.any_deps_match(AC.data_version_changed()) | AC.code_version_changed() | AC.newly_missing()
refresh_when_inputs_change = (
    AC.in_latest_time_window()
    & _changed.since_last_handled()
    & ~AC.any_deps_missing()
    & ~AC.any_deps_in_progress()
    & ~AC.in_progress()
).with_label("refresh_when_inputs_change")


def automation_sensor() -> dg.AutomationConditionSensorDefinition:
    """The sensor that evaluates the conditions; off until a person turns it on, since training is costly."""
    return dg.AutomationConditionSensorDefinition(
        "automation", target=dg.AssetSelection.all(), default_status=dg.DefaultSensorStatus.STOPPED
    )
