"""Commands on evaluations: numbers with their protocol, and the report about them."""

import logging
from typing import Annotated

import typer

from flextok import storage
from flextok.runtime.cluster import ray_ended
from pipelines.commands.options import Debug, Profile, Sets, TokenizerPath
from pipelines.recipe import DEFAULT_PROFILE, load_recipe

logger = logging.getLogger(__name__)


def evaluate(
    tokenizer: TokenizerPath,
    shards: Annotated[str, typer.Option("--shards", metavar="SHARDS", help="Held-out corpus split.")],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="The result goes to DIR/<digest>.")],
    samples: Annotated[
        str | None, typer.Option("--samples", metavar="DIR", help="Measure these samples, not reconstructions.")
    ] = None,
    profile: Profile = DEFAULT_PROFILE,
    sets: Sets = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Numbers with their protocol, by the profile's evaluation settings; on a cluster by `--set compute.address=...`."""
    recipe = load_recipe(profile, sets)
    with ray_ended():
        if samples is None:
            from flextok.evaluate.reconstruction import evaluate_reconstruction

            made = evaluate_reconstruction(tokenizer, shards, out, recipe.evaluation, recipe.compute)
        else:
            from flextok.evaluate.generation import evaluate_generation

            made = evaluate_generation(samples, shards, tokenizer, out, recipe.evaluation, recipe.compute)
    for item in made.metrics:
        at = "" if item["k"] is None else f" at K={item['k']}"
        logger.info("%s%s: %.6g", item["name"], at, item["value"])
    print(storage.join(made.url, "metrics.json"))


def report(
    reconstructions: Annotated[str, typer.Argument(metavar="RECONSTRUCTIONS", help="Evaluation of reconstructions.")],
    generation: Annotated[str, typer.Argument(metavar="GENERATION", help="Evaluation of samples.")],
    val_tokens: Annotated[str, typer.Option("--val-tokens", metavar="TOKENS", help="Token shards of held-out images.")],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="The report goes to DIR/<digest>.")],
    profile: Profile = DEFAULT_PROFILE,
    sets: Sets = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """The HTML report about two evaluations; the models and data behind them are found by their lineage."""
    from flextok.evaluate.report import write_report
    from flextok.evaluate.report_inputs import find_report_inputs

    inputs = find_report_inputs(reconstructions, generation, val_tokens)
    recipe = load_recipe(profile, sets)
    with ray_ended():
        made = write_report(inputs, out, recipe.report, recipe.compute)
    print(made.html_path)
