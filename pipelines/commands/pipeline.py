"""Commands on a whole pipeline: run, status, refresh."""

import logging
from typing import TYPE_CHECKING, Annotated

import typer

from flextok.runtime.cluster import ray_ended
from pipelines.commands.options import (
    DEFAULT_WORKSPACE,
    PIPE_WIDTH,
    AsJson,
    Debug,
    Profile,
    Sets,
    WorkspaceUrl,
    print_json,
)
from pipelines.recipe import DEFAULT_PROFILE, load_recipe

# Dagster, which drives the graph, is imported where a graph is driven: half a second that no other command should wait.
if TYPE_CHECKING:
    from pipelines.execute import Executor

logger = logging.getLogger(__name__)

STYLES = {"fresh": "green", "stale": "yellow", "missing": "red"}


def run(
    profile: Profile = DEFAULT_PROFILE,
    sets: Sets = [],  # noqa: B006 - typer reads it, nothing writes it
    workspace: WorkspaceUrl = DEFAULT_WORKSPACE,
    select: Annotated[
        str | None, typer.Option("--select", metavar="SELECTION", help="Assets, as in 'tokenizer+' or 'prior,report'.")
    ] = None,
    partition: Annotated[
        str | None,
        typer.Option(
            "--partition", metavar="PATTERN", help="Of the selected assets only these partitions, as in 'coco/*'."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and do nothing.")] = False,
    debug: Debug = False,
) -> None:
    """Build the profile's assets in order, in this process; prints where the report is."""
    from pipelines.execute import open_executor
    from pipelines.lineage.sender import sending

    recipe = load_recipe(profile, sets)
    if dry_run:
        from pipelines.plan import make_plan, print_plan

        with open_executor(recipe, workspace, remember=False) as executor:
            parts = executor.parts(executor.select(select), partition)
            print_plan(make_plan(recipe, list(dict.fromkeys(key.path[-1] for key, _ in parts))))
        return
    with (
        open_executor(recipe, workspace) as executor,
        sending(executor.workspace),
        executor.workspace.lock(),
        ray_ended(),
    ):
        executor.run(executor.parts(executor.select(select), partition))
        _print_report(executor)


def status(
    profile: Profile = DEFAULT_PROFILE,
    sets: Sets = [],  # noqa: B006
    workspace: WorkspaceUrl = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Every asset and partition: missing, stale or fresh, and why."""
    from pipelines.execute import open_executor

    recipe = load_recipe(profile, sets)
    with open_executor(recipe, workspace) as executor:
        states = executor.survey()
    if as_json:
        document = {
            "profile": recipe.name,
            "workspace": executor.workspace.root,
            "assets": [
                {
                    "asset": state.key.path[-1],
                    "partition": state.partition,
                    "status": state.status,
                    "reasons": list(state.reasons),
                    "waits_for": list(state.waits_for),
                    "digest": state.digest,
                    "uri": state.uri,
                }
                for state in states
            ],
        }
        print_json(document)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("asset", "status", "digest", "why"):
        table.add_column(column, overflow="fold")
    for state in states:
        why = "; ".join(state.reasons) or (f"waits for {', '.join(state.waits_for)}" if state.waits_for else "")
        shown = Text(state.status, style=STYLES[state.status])
        table.add_row(Text(state.label), shown, Text((state.digest or "")[:12]), Text(why))
    console = Console()
    Console(width=None if console.is_terminal else PIPE_WIDTH).print(table)


def refresh(
    profile: Profile = DEFAULT_PROFILE,
    sets: Sets = [],  # noqa: B006
    workspace: WorkspaceUrl = DEFAULT_WORKSPACE,
    debug: Debug = False,
) -> None:
    """Build again only what is out of date, until nothing is."""
    from pipelines.execute import open_executor
    from pipelines.lineage.sender import sending

    recipe = load_recipe(profile, sets)
    with (
        open_executor(recipe, workspace) as executor,
        sending(executor.workspace),
        executor.workspace.lock(),
        ray_ended(),
    ):
        done = executor.refresh()
        if done:
            logger.info("refreshed %d: %s", len(done), ", ".join(done))
        else:
            logger.info("nothing to do: every asset is fresh")
        _print_report(executor)


def _print_report(executor: "Executor") -> None:
    path = executor.report_path()
    if path:
        logger.info("report:")
        print(path, flush=True)
