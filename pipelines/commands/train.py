"""`flextok train`: one stage of a profile on what the workspace's files hold, without Dagster."""

import logging
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer

from flextok.errors import UsageError
from flextok.provenance import newest_artifact
from flextok.runtime.cluster import ray_ended
from pipelines.commands.options import DEFAULT_WORKSPACE, Debug, Profile, Sets, WorkspaceUrl
from pipelines.recipe import DEFAULT_PROFILE, Recipe, load_recipe
from pipelines.stages import STAGES
from pipelines.workspace import Workspace

logger = logging.getLogger(__name__)


class Part(StrEnum):
    """What `flextok train` trains, by the kind of its checkpoint."""

    tokenizer = "tokenizer"
    prior = "prior"
    vae = "vae"


STAGE = {Part.vae: "latents", Part.tokenizer: "tokenizer", Part.prior: "prior"}


def train(
    part: Annotated[Part, typer.Argument(help="What to train.")],
    profile: Profile = DEFAULT_PROFILE,
    sets: Sets = [],  # noqa: B006 - typer reads it, nothing writes it
    workspace: WorkspaceUrl = DEFAULT_WORKSPACE,
    debug: Debug = False,
) -> None:
    """One training job of the profile on what the workspace holds, without Dagster."""
    run = FileRun(load_recipe(profile, sets), Workspace(workspace))
    with ray_ended():
        made = STAGES[STAGE[part]].run(run)
    logger.info("%s %s", part.value, made.digest[:12])
    print(made.url)


@dataclass(frozen=True)
class FileRun:
    """A stage's run without Dagster: what it reads is the newest in the workspace's folders."""

    recipe: Recipe
    workspace: Workspace
    split: str = "train"

    def latest(self, stage: str, split: str | None = None, corpus: str | None = None) -> str:
        folder = STAGES[stage].folder.replace("<corpus>", corpus or self.recipe.corpus.name)
        folder = folder.replace("<split>", split or self.split)
        parent, named_by_content, _ = folder.partition("<")
        url = self.workspace.url(parent.rstrip("/"))
        if named_by_content:
            return _newest(url, stage)
        from flextok.data.corpus.reader import Corpus

        return Corpus.open(url).url  # a training would find only later that there is none


def _newest(parent: str, stage: str) -> str:
    newest = newest_artifact(parent)
    if newest is None:
        raise UsageError(
            f"expected {stage} in {parent}, found none; make it first, as `flextok run --select {stage}` does"
        )
    logger.info("uses %s", newest)
    return newest
