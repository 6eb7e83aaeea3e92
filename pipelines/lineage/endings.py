"""The end of runs that could not tell it: their process was killed."""

import dagster as dg

from pipelines.alive import PROCESS_IS_GONE
from pipelines.lineage import record
from pipelines.lineage.events import dagster_run_of, failure_line
from pipelines.lineage.quietly import quietly
from pipelines.lineage.sender import END_WAIT_S, sender_of
from pipelines.workspace import Workspace

LOOK_EVERY_S = 30
MESSAGES = {
    dg.DagsterRunStatus.FAILURE: PROCESS_IS_GONE,
    dg.DagsterRunStatus.CANCELED: "it was cancelled",
}


def tell_ends(instance: dg.DagsterInstance, workspace: Workspace) -> bool:
    """Tell the FAIL of each run that has a START, has failed by Dagster's records, and did not say so.

    Gives whether all runs have ended by now.
    """
    unfinished = record.unfinished(workspace)
    for start in list(unfinished):
        run_id = dagster_run_of(start)
        run = instance.get_run_by_id(run_id) if run_id else None
        if run is not None and run.status in MESSAGES:
            record.append(workspace, [failure_line(start, MESSAGES[run.status])])
            unfinished.remove(start)
    return not unfinished


def lineage_sensor(workspace_url: str) -> dg.SensorDefinition:
    """Looks for runs that were killed, and sends what no receiver took when it happened."""

    @dg.sensor(
        name="lineage",
        description="Tells the end of runs that were killed, and sends events that wait for their receiver.",
        minimum_interval_seconds=LOOK_EVERY_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def lineage(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        workspace = Workspace(workspace_url)
        with quietly(f"tell the ends of runs in {record.events_url(workspace)}"):
            size = str(record.size(workspace))
            # The record is read only as long as a run is open in it, or once more when it has grown.
            if context.cursor != size and tell_ends(context.instance, workspace):
                context.update_cursor(size)
        sender = sender_of(workspace)
        sender.wake()
        sender.wait(END_WAIT_S)
        return dg.SkipReason("it asks for no runs")

    return lineage
