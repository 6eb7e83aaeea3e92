"""Commands on evaluations: numbers with their protocol, and the report about them."""

import logging
from typing import Annotated, Any

import typer

from flextok import storage
from flextok.errors import UsageError
from flextok.provenance import read_provenance
from flextok.runtime.cluster import ray_ended
from pipelines.commands.options import (
    DEFAULT_WORKSPACE,
    PIPE_WIDTH,
    AsJson,
    Debug,
    PriorPath,
    Profile,
    Sets,
    TokenizerPath,
    WorkspaceUrl,
    print_json,
)
from pipelines.recipe import DEFAULT_PROFILE, load_recipe

logger = logging.getLogger(__name__)


def evaluate(
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="The result goes to DIR/<digest>.")],
    tokenizer: TokenizerPath = "",
    shards: Annotated[str | None, typer.Option("--shards", metavar="SHARDS", help="Held-out corpus split.")] = None,
    samples: Annotated[
        str | None, typer.Option("--samples", metavar="DIR", help="Measure these samples, not reconstructions.")
    ] = None,
    images: Annotated[
        str | None,
        typer.Option("--images", metavar="DIR|FILE.npz", help="Measure these pictures, whoever made them."),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="DIR|FILE.npz",
            help="What --images are measured against: pictures, or ADM's statistics.",
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option("--size", min=1, help="Crop all of both to such squares; default: they are squares of one size."),
    ] = None,
    pairs: Annotated[
        bool | None,
        typer.Option(
            "--pairs/--no-pairs",
            help="Also each picture against that of the same name (a.png, a.jpg) in --reference, or not; default: where "
            "two folders hold the same names.",
        ),
    ] = None,
    profile: Profile = DEFAULT_PROFILE,
    sets: Sets = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Numbers with their protocol, by the profile's evaluation settings; on a cluster by `--set compute.address=...`.

    Of a tokenizer (--tokenizer, --shards), of samples of a prior (--samples as well), or of anybody's pictures (--images,
    --reference).
    """
    ours, others = (tokenizer, shards), (images, reference)
    if all(ours) == all(others) or any(ours) == any(others) or (images and samples):
        raise UsageError(
            "expected --tokenizer and --shards (and --samples), or --images and --reference, found "
            f"{_given(tokenizer=tokenizer, shards=shards, samples=samples, images=images, reference=reference)}"
        )
    if images is None and (size, pairs) != (None, None):
        raise UsageError("expected --size and --pairs with --images only, found them without; a tokenizer has its size")
    recipe = load_recipe(profile, sets)
    with ray_ended():
        if images is not None and reference is not None:
            from flextok.evaluate.pictures import evaluate_pictures

            made = evaluate_pictures(images, reference, out, recipe.evaluation, size, pairs, recipe.compute)
        elif samples is None:
            from flextok.evaluate.reconstruction import evaluate_reconstruction

            made = evaluate_reconstruction(tokenizer, str(shards), out, recipe.evaluation, recipe.compute)
        else:
            from flextok.evaluate.generation import evaluate_generation

            made = evaluate_generation(samples, str(shards), tokenizer, out, recipe.evaluation, recipe.compute)
    for item in made.metrics:
        logger.info(_told(item))
    print(storage.join(made.url, "metrics.json"))


def _told(item: dict[str, Any]) -> str:
    """A number in a line, with its standard error and whether more images are needed for it."""
    at = "" if item["k"] is None else f" at K={item['k']}"
    error = f" ± {item['standard_error']:.2g}" if "standard_error" in item else ""
    distance = item["protocol"].get("distance", {})
    few = f" (small sample, below {distance['images_needed']:,} images)" if distance.get("small_sample") else ""
    return f"{item['name']}{at}: {item['value']:.6g}{error}{few}"


def _given(**options: str | None) -> str:
    return ", ".join(f"--{name}" for name, value in options.items() if value) or "none of them"


def export_samples(
    samples: Annotated[str, typer.Argument(metavar="SAMPLES", help="Folder of samples.")],
    dest: Annotated[str, typer.Argument(metavar="DEST.npz", help="Where their pictures go.")],
    keep: Annotated[
        int | None, typer.Option("--keep", min=1, help="Tokens that they are decoded from; default: the most.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Pictures of samples as one .npz, which ADM's evaluator takes: arr_0, uint8 [N, H, W, 3]."""
    from flextok.evaluate import export

    count = export.export_samples(samples, dest, keep)
    logger.info("%d pictures", count)
    print(dest)


def speed(
    tokenizer: TokenizerPath,
    prior: PriorPath = "",
    keep: Annotated[int | None, typer.Option("--keep", help="Tokens that are decoded and drawn; default: all.")] = None,
    largest_batch: Annotated[
        int, typer.Option("--largest-batch", min=1, help="Images of the largest batch tried.")
    ] = 256,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed calls, whose median counts.")] = 5,
    profile: Profile = DEFAULT_PROFILE,
    sets: Sets = [],  # noqa: B006
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Images a second that a tokenizer encodes and decodes here, and ids that a prior draws: one at a time, and saturated.

    By the profile's evaluation settings: steps, guidance and precision of the decoder, the law of the prior.
    """
    from flextok.bench.speed import measure_checkpoints

    recipe = load_recipe(profile, sets)
    found = measure_checkpoints(tokenizer, prior or None, recipe.evaluation, keep, largest_batch, repeats)
    if as_json:
        print_json(found.to_json())
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "batch", "ms a call", "a second", "", box=None, pad_edge=False)
    for each in found.speeds:
        ending = "saturated" if each.saturated else ""
        cells = (f"{1000 * each.seconds:,.1f}", f"{each.per_second:,.1f} {each.unit}", ending)
        table.add_row(each.task, str(each.batch), *cells)
    Console(width=PIPE_WIDTH).print(table)
    for name, value in found.protocol.items():
        logger.info("%s: %s", name, value)


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


def compare(
    evaluations: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]EVALUATION...", help="Folders, or beginnings of digests in the workspace."),
    ],
    workspace: WorkspaceUrl = DEFAULT_WORKSPACE,
    may_differ: Annotated[
        list[str],
        typer.Option("--may-differ", metavar="FIELD", help="Subtract all the same, as in decoder.steps; repeat it."),
    ] = [],  # noqa: B006
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Write a page with the table, too.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Numbers of evaluations side by side, and their differences from the first where they were measured alike."""
    from flextok.evaluate.comparison import compare_evaluations, find_evaluation
    from flextok.evaluate.report.comparison import cells, reasons, write_comparison

    named = [text.rpartition("=") for text in evaluations]
    urls = [find_evaluation(place, storage.join(workspace, "evaluation")) for _, _, place in named]
    labels = [name or read_provenance(url)["digest"][:12] for (name, _, _), url in zip(named, urls, strict=True)]
    numbers = compare_evaluations(urls, may_differ)
    if html is not None:
        write_comparison(html, numbers, labels, urls)
        logger.info("page %s", html)
    if as_json:
        given = [{"label": label, "url": storage.absolute(url)} for label, url in zip(labels, urls, strict=True)]
        print_json({"evaluations": given, "numbers": [each.to_json() for each in numbers]})
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("number")
    for title in ("K", labels[0], *(text for label in labels[1:] for text in (label, "difference"))):
        table.add_column(Text(title), justify="right")
    for number in numbers:
        table.add_row(number.name, *cells(number))
    console = Console()
    Console(width=None if console.is_terminal else PIPE_WIDTH).print(table)
    for label, fields, names in reasons(numbers, labels):
        logger.info("%s, not subtracted: %s: protocols differ in %s", label, ", ".join(names), fields)
