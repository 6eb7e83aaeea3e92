"""Commands on what a workspace keeps: promote, prune."""

import datetime
import enum
import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from flextok.aliases import promote as promote_artifact
from flextok.errors import UsageError
from pipelines.commands.options import DEFAULT_WORKSPACE, PIPE_WIDTH, AsJson, Debug, WorkspaceUrl, print_json
from pipelines.schedules import seconds
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    from pipelines.prune import Judged

logger = logging.getLogger(__name__)


class Kind(enum.StrEnum):
    """What can be promoted."""

    TOKENIZER = "tokenizer"
    PRIOR = "prior"
    VAE = "vae"
    EVALUATION = "evaluation"


def promote(
    kind: Annotated[Kind, typer.Argument(help="What is promoted.")],
    digest: Annotated[str, typer.Argument(metavar="DIGEST", help="The first letters of its digest.")],
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="The alias, such as production.")],
    workspace: WorkspaceUrl = DEFAULT_WORKSPACE,
    debug: Debug = False,
) -> None:
    """Give an artifact a name that stays when another one takes its place, as in `checkpoints/tokenizer@production`."""
    place = Workspace(workspace)
    folder = place.url("evaluation") if kind is Kind.EVALUATION else place.checkpoints(kind)
    url = promote_artifact(folder, digest, name)
    logger.info("%s@%s stands for it", folder, name)
    print(url)


def prune(
    workspace: WorkspaceUrl = DEFAULT_WORKSPACE,
    keep_last: Annotated[
        int | None, typer.Option("--keep-last", min=0, metavar="N", help="Keep the newest N of each folder; default 1.")
    ] = None,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help="Remove only what is older, as in 12h or 30d.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run/--delete", help="Only say what would be removed, or remove it.")
    ] = True,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Remove artifacts that nothing current, promoted or kept was made of; prints them with their bytes."""
    from pipelines import prune as pruning

    place, age = Workspace(workspace), _age(older_than)
    with ExitStack() as held:
        if not dry_run:
            held.enter_context(place.lock())
        if keep_last is None:
            pruning.require_records(place)
        current: set[str] = set()
        if place.has_records:
            instance = held.enter_context(place.instance())
            current = pruning.current_artifacts(place, instance)
            if not dry_run:
                pruning.require_idle(instance)
        judged = pruning.judge(place, current, 1 if keep_last is None else keep_last, age)
        unneeded = [item for item in judged if not item.kept]
        for item in unneeded if not dry_run else ():
            pruning.remove(item)
    size = sum(item.size for item in unneeded)
    if as_json:
        print_json(
            {
                "workspace": place.root,
                "deleted": not dry_run,
                "bytes": size,
                "artifacts": [
                    {"uri": item.url, "kind": item.kind, "digest": item.digest, "bytes": item.size, "kept": item.kept}
                    for item in judged
                ],
            }
        )
    else:
        _print(place, judged)
    done = "would be removed; --delete removes them" if dry_run else "are removed"
    logger.info("%d of %d artifacts, %s bytes, %s", len(unneeded), len(judged), f"{size:,}", done)


def _age(text: str | None) -> datetime.timedelta | None:
    try:
        return datetime.timedelta(seconds=seconds(text)) if text is not None else None
    except ValueError as error:
        raise UsageError(f"--older-than: {error}") from None


def _print(workspace: Workspace, judged: "list[Judged]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("artifact", "bytes", "verdict"):
        table.add_column(column, overflow="fold", justify="right" if column == "bytes" else "left")
    for item in judged:
        verdict = Text(f"keep: {item.kept}", style="green") if item.kept else Text("remove", style="red")
        table.add_row(Text(workspace.relative(item.url)), f"{item.size:,}", verdict)
    console = Console()
    Console(width=None if console.is_terminal else PIPE_WIDTH).print(table)
