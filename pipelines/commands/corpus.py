"""`flextok shard`: any supported corpus as shards."""

import logging
from typing import Annotated, Any

import typer

from flextok.config import parse_config
from flextok.data.config import CorpusConfig, SourceConfig, source_name
from flextok.errors import UsageError
from flextok.runtime.cluster import ray_ended
from pipelines.commands.options import COMPUTE_FLAGS, Debug, RayAddress, Resources, flags_in_hints

logger = logging.getLogger(__name__)

OPTIONS = {
    "format": "--format", "label_csv": "--labels", "image_column": "--image-column", "text_column": "--text-column",
    "label_column": "--label-column", "val_fraction": "--val-fraction", "shard_samples": "--shard-samples",
    "shard_bytes": "--shard-bytes", "min_side": "--min-side", "max_aspect": "--max-aspect",
    "max_pixels": "--max-pixels", "max_reject_fraction": "--max-reject-fraction", "duplicates": "--duplicates",
    "near_duplicates": "--near-duplicates", "resize_short_side": "--resize", "seed": "--seed",
}  # fmt: skip
"""The flag of each field of CorpusConfig that has one."""
SHARD_FLAGS = {**COMPUTE_FLAGS, "corpus.source": "SOURCE", **{f"corpus.{field}": OPTIONS[field] for field in OPTIONS}}


def _corpus_option(field: str, metavar: str | None = None) -> Any:
    """The option that sets a field of CorpusConfig and shows its description and default; None leaves it as it is."""
    info = CorpusConfig.model_fields[field]
    default = "" if info.default is None or info.default is False else f"; default: {info.default}"
    return typer.Option(OPTIONS[field], metavar=metavar, help=f"{str(info.description).rstrip('.')}{default}.")


def shard(
    places: Annotated[
        list[str], typer.Argument(metavar="SOURCE... DEST", help="Folders, tars, tables; then the destination.")
    ],
    split: Annotated[str, typer.Option("--split", help="train, val or all.")] = "all",
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, help="Processes, or workers on a cluster; default: all cores. No result differs."
        ),
    ] = None,
    name: Annotated[
        list[str], typer.Option("--name", help="Name of a source; once for each, in their order; default: of its URL.")
    ] = [],  # noqa: B006
    weight: Annotated[
        list[float], typer.Option("--weight", help="Weight of a source in training; once for each, in their order.")
    ] = [],  # noqa: B006
    format: Annotated[str | None, _corpus_option("format")] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="CSV", help="Table of the labels: a file beside the pictures, a path or URL."),
    ] = None,
    image_column: Annotated[str | None, _corpus_option("image_column")] = None,
    text_column: Annotated[str | None, _corpus_option("text_column")] = None,
    label_column: Annotated[str | None, _corpus_option("label_column")] = None,
    val_fraction: Annotated[float | None, _corpus_option("val_fraction")] = None,
    shard_samples: Annotated[int | None, _corpus_option("shard_samples")] = None,
    shard_bytes: Annotated[int | None, _corpus_option("shard_bytes")] = None,
    min_side: Annotated[int | None, _corpus_option("min_side")] = None,
    max_aspect: Annotated[float | None, _corpus_option("max_aspect")] = None,
    max_pixels: Annotated[int | None, _corpus_option("max_pixels")] = None,
    max_reject_fraction: Annotated[float | None, _corpus_option("max_reject_fraction")] = None,
    duplicates: Annotated[str | None, _corpus_option("duplicates", "keep|drop")] = None,
    near_duplicates: Annotated[bool | None, _corpus_option("near_duplicates")] = None,
    resize: Annotated[int | None, _corpus_option("resize_short_side")] = None,
    seed: Annotated[int | None, _corpus_option("seed")] = None,
    address: RayAddress = "local",
    resource: Resources = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Any supported corpus as WebDataset shards with a manifest."""
    from flextok.data.corpus.job import shard_corpus
    from flextok.data.sources.labels import label_csv_url
    from flextok.runtime.compute import ComputeConfig, parse_resources

    if len(places) < 2:
        raise UsageError(f"expected SOURCE... DEST, found only {places[0]}")
    if split not in ("train", "val", "all"):
        raise UsageError(f"expected --split train, val or all, found {split}")
    *urls, dest = places
    sources = _sources(urls, name, weight, format)
    given = {
        "format": format,
        "label_csv": labels,
        "image_column": image_column,
        "text_column": text_column,
        "label_column": label_column,
        "val_fraction": val_fraction,
        "shard_samples": shard_samples,
        "shard_bytes": shard_bytes,
        "min_side": min_side,
        "max_aspect": max_aspect,
        "max_pixels": max_pixels,
        "max_reject_fraction": max_reject_fraction,
        "duplicates": duplicates,
        "near_duplicates": near_duplicates,
        "resize_short_side": resize,
        "seed": seed,
    }
    values = {
        "name": source_name(parse_config(SourceConfig, sources[0], "flextok shard")),
        "sources": sources,
        **{field: value for field, value in given.items() if value is not None},
    }
    with flags_in_hints(SHARD_FLAGS):
        config = parse_config(CorpusConfig, values, "flextok shard")
    if labels is not None and label_csv_url(config) is None:
        # A profile may name a table that only some sources have; who names one here wants it used.
        raise UsageError(f"expected {labels} beside the pictures, found none; give its path, as ./{labels}")
    cluster = {"address": address, "resources": parse_resources(resource)}
    compute = parse_config(ComputeConfig, cluster, "flextok shard")
    with flags_in_hints(SHARD_FLAGS), ray_ended():
        made = shard_corpus(config, split, dest, workers, compute=compute)
    logger.info(
        f"{made.members:,} members = {made.samples:,} samples in {made.shards} shards + {made.fields:,} fields + "
        f"{made.rejects:,} rejects "
        f"({', '.join(f'{reason} {count}' for reason, count in sorted(made.reason_counts.items())) or 'none'}), "
        f"digest {made.digest[:12]}"
    )
    print(made.url)


def _sources(urls: list[str], names: list[str], weights: list[float], format: str | None) -> list[dict[str, Any]]:
    """The values of a SourceConfig for each of `urls`; UsageError unless names and weights go with them."""
    for flag, given in (("--name", names), ("--weight", weights)):
        if given and len(given) != len(urls):
            raise UsageError(
                f"expected {flag} once for each SOURCE in their order, found {len(given)} for {len(urls)}; "
                "give one for each or none"
            )
    columns = {"url": urls, "name": names, "weight": weights, "format": [format] * len(urls) if format else []}
    return [{field: values[i] for field, values in columns.items() if values} for i in range(len(urls))]
