"""Commands that do one job of the library, without Dagster."""

import dataclasses
import os
from enum import StrEnum
from typing import Annotated, Any

import typer

from flextok import provenance, storage
from flextok.config import parse_config
from flextok.data.config import CorpusConfig, SourceConfig, source_name
from flextok.errors import UsageError
from pipelines.commands.options import DEFAULT_WORKSPACE, Debug, Profile, Sets, WorkspaceUrl
from pipelines.execute import ray_ended, say
from pipelines.recipe import DEFAULT_PROFILE, Recipe, load_recipe
from pipelines.workspace import Workspace

TokenizerPath = Annotated[
    str, typer.Option("--tokenizer", metavar="CKPT", help="Tokenizer checkpoint, ours or official.")
]


# Ray starts as many as the cluster has room for, also when nodes join later.
MOST_ACTORS = 64


def _corpus_option(flag: str, field: str, metavar: str | None = None) -> Any:
    """The option that sets a field of CorpusConfig and shows its description and default; None leaves it as it is."""
    info = CorpusConfig.model_fields[field]
    default = "" if info.default is None or info.default is False else f"; default: {info.default}"
    return typer.Option(flag, metavar=metavar, help=f"{str(info.description).rstrip('.')}{default}.")


class Part(StrEnum):
    """What `flextok train` trains."""

    tokenizer = "tokenizer"
    prior = "prior"
    vae = "vae"


def shard(
    places: Annotated[
        list[str], typer.Argument(metavar="SOURCE... DEST", help="Folders, tars, tables; then the goal.")
    ],
    split: Annotated[str, typer.Option("--split", help="train, val or all.")] = "all",
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes; the result is the same for any.")] = (
        os.cpu_count() or 1
    ),
    name: Annotated[
        list[str], typer.Option("--name", help="Name of a source; once for each, in their order; default: of its URL.")
    ] = [],  # noqa: B006
    weight: Annotated[
        list[float], typer.Option("--weight", help="Weight of a source in training; once for each, in their order.")
    ] = [],  # noqa: B006
    format: Annotated[str | None, _corpus_option("--format", "format")] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="CSV", help="Table of the labels: a file beside the pictures, a path or URL."),
    ] = None,
    image_column: Annotated[str | None, _corpus_option("--image-column", "image_column")] = None,
    text_column: Annotated[str | None, _corpus_option("--text-column", "text_column")] = None,
    label_column: Annotated[str | None, _corpus_option("--label-column", "label_column")] = None,
    val_fraction: Annotated[float | None, _corpus_option("--val-fraction", "val_fraction")] = None,
    shard_samples: Annotated[int | None, _corpus_option("--shard-samples", "shard_samples")] = None,
    shard_bytes: Annotated[int | None, _corpus_option("--shard-bytes", "shard_bytes")] = None,
    min_side: Annotated[int | None, _corpus_option("--min-side", "min_side")] = None,
    max_aspect: Annotated[float | None, _corpus_option("--max-aspect", "max_aspect")] = None,
    max_pixels: Annotated[int | None, _corpus_option("--max-pixels", "max_pixels")] = None,
    max_reject_fraction: Annotated[float | None, _corpus_option("--max-reject-fraction", "max_reject_fraction")] = None,
    duplicates: Annotated[str | None, _corpus_option("--duplicates", "duplicates", "keep|drop")] = None,
    near_duplicates: Annotated[bool | None, _corpus_option("--near-duplicates", "near_duplicates")] = None,
    resize: Annotated[int | None, _corpus_option("--resize", "resize_short_side")] = None,
    seed: Annotated[int | None, _corpus_option("--seed", "seed")] = None,
    debug: Debug = False,
) -> None:
    """Any supported corpus as WebDataset shards with a manifest."""
    from flextok.data.corpus.job import shard_corpus
    from flextok.data.sources.labels import label_csv_url

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
    config = parse_config(CorpusConfig, values, "flextok shard")
    if labels is not None and label_csv_url(config) is None:
        # A profile may name a table that only some sources have; who names one here wants it used.
        raise UsageError(f"expected {labels} beside the pictures, found none; give its path, as ./{labels}")
    made = shard_corpus(config, split, dest, workers)
    say(
        f"{made.inputs:,} inputs = {made.samples:,} samples in {made.shards} shards + {made.rejects:,} rejects "
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


def train(
    part: Annotated[Part, typer.Argument(help="What to train.")],
    profile: Profile = DEFAULT_PROFILE,
    sets: Sets = [],  # noqa: B006 - typer reads it, nothing writes it
    workspace: WorkspaceUrl = DEFAULT_WORKSPACE,
    debug: Debug = False,
) -> None:
    """One training job of the profile on what the workspace holds, without Dagster."""
    recipe = load_recipe(profile, sets)
    place = Workspace(workspace)
    with ray_ended():
        made = _train(part, recipe, place)
    say(f"{part.value} {made.digest[:12]}")
    print(made.url)


def _train(part: Part, recipe: Recipe, place: Workspace) -> Any:
    from flextok.data.corpus.reader import Corpus

    shards = Corpus.open(place.corpus(recipe.corpus.name, "train")).url
    if part is Part.vae:
        from flextok.train.autoencoder import train_latents

        return train_latents(recipe.latents, shards, recipe.image_size, place.checkpoints("vae"), recipe.compute)
    if part is Part.tokenizer:
        from flextok.train.tokenizer import train_tokenizer

        latents = _newest(place.checkpoints("vae"), "flextok train vae")
        return train_tokenizer(
            recipe.tokenizer, latents, shards, recipe.image_size, place.checkpoints("tokenizer"), recipe.compute
        )
    from flextok.train.prior import train_prior

    train_tokens, val_tokens = (
        _newest(place.url("tokens", recipe.corpus.name, split), "flextok tokenize") for split in ("train", "val")
    )
    return train_prior(recipe.prior, train_tokens, val_tokens, place.checkpoints("prior"), recipe.compute)


def tokenize(
    shards: Annotated[str, typer.Argument(metavar="SHARDS", help="Folder of a corpus split.")],
    dest: Annotated[str, typer.Argument(metavar="DEST", help="Folder for the token shards.")],
    tokenizer: TokenizerPath,
    keep: Annotated[
        int | None, typer.Option("--keep", min=1, help="Tokens stored for each image; default all.")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or bfloat16.")] = "float32",
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Images in a call of the tokenizer; default: found by trying."),
    ] = None,
    view: Annotated[
        list[str],
        typer.Option(
            "--view", help="A crop that is a row of its own; repeat it: center, start, end, or one with _flip."
        ),
    ] = [],  # noqa: B006
    length: Annotated[
        str,
        typer.Option(
            "--length", help="Tokens an image needs: all, a number, METRIC:EPS (mae:0.02), or KIND:SETTING=VALUE."
        ),
    ] = "all",
    max_reject_fraction: Annotated[
        float | None, typer.Option("--max-reject-fraction", min=0, max=1, help="More rejects than this are a failure.")
    ] = None,
    actors: Annotated[
        int, typer.Option("--actors", min=1, help="Most actors; fewer work where resources or images are few.")
    ] = MOST_ACTORS,
    address: Annotated[str, typer.Option("--address", help="Ray: local, auto, or a cluster's address.")] = "local",
    gpus: Annotated[float, typer.Option("--gpus", min=0, help="GPUs for each actor; 0 computes on CPUs.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and do nothing.")] = False,
    debug: Debug = False,
) -> None:
    """Bulk tokenization of shards into Parquet token shards."""
    from flextok.runtime.compute import ComputeConfig
    from flextok.tokenize.config import TokenizeConfig
    from flextok.tokenize.lengths.base import parse_length

    values: dict[str, Any] = {"keep": keep, "dtype": dtype, "batch_size": batch_size, "length": parse_length(length)}
    if view:
        values["views"] = view
    if max_reject_fraction is not None:
        values["max_reject_fraction"] = max_reject_fraction
    config = parse_config(TokenizeConfig, values, "flextok tokenize")
    compute = ComputeConfig(address=address, gpus_per_worker=gpus, tokenize_actors=(1, actors))
    if dry_run:
        from flextok.tokenize.estimate import plan_tokenization

        for name, value in dataclasses.asdict(plan_tokenization(shards, tokenizer, dest, config, compute)).items():
            print(f"{name:16} {value:,.1f}" if isinstance(value, float) else f"{name:16} {value}")
        return
    from flextok.tokenize.job import tokenize_corpus

    with ray_ended():
        made = tokenize_corpus(shards, tokenizer, dest, config, compute)
    say(f"{made.rows:,} rows in {made.shards} shards ({made.skipped} were there), digest {made.digest[:12]}")
    print(made.url)


def encode(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Picture files.")],
    tokenizer: TokenizerPath,
    out: Annotated[str, typer.Option("--out", metavar="FILE.parquet", help="Where the tokens go.")],
    keep: Annotated[
        int | None, typer.Option("--keep", min=1, help="Tokens stored for each image; default all.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Pictures as tokens."""
    from flextok.tokenize.config import TokenizeConfig
    from flextok.tokenize.files import encode_images

    encode_images(images, tokenizer, out, TokenizeConfig(keep=keep))
    print(out)


def decode(
    tokens: Annotated[str, typer.Argument(metavar="FILE.parquet", help="A token file.")],
    tokenizer: TokenizerPath,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder for the PNG files.")],
    keep: Annotated[
        list[int], typer.Option("--keep", min=1, help="Tokens to decode with; repeat it for several.")
    ] = [],  # noqa: B006
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of the flow decoder.")] = 25,
    guidance: Annotated[float, typer.Option("--guidance", min=0, help="Guidance of the flow decoder.")] = 7.5,
    debug: Debug = False,
) -> None:
    """Tokens as PNG files."""
    from flextok.model.decoders.config import SamplerConfig
    from flextok.tokenize.files import decode_tokens

    sampler = parse_config(SamplerConfig, {"steps": steps, "guidance": guidance}, "flextok decode")
    decode_tokens(tokens, tokenizer, out, keep, sampler)
    print(out)


def generate(
    prior: Annotated[str, typer.Option("--prior", metavar="CKPT", help="Prior checkpoint.")],
    tokenizer: TokenizerPath,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder for the PNG files.")],
    label: Annotated[int | None, typer.Option("--label", min=0, help="Class to draw; default all in turn.")] = None,
    text: Annotated[str | None, typer.Option("--text", help="Caption to draw.")] = None,
    keep: Annotated[int | None, typer.Option("--keep", min=1, help="Tokens of each image; default all.")] = None,
    num: Annotated[int, typer.Option("--num", min=1, help="Number of images.")] = 8,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed gives other images.")] = 0,
    debug: Debug = False,
) -> None:
    """Images drawn from a prior, as PNG files."""
    from flextok.data.images import to_uint8
    from flextok.evaluate.images import to_png
    from flextok.model.checkpoint import load_tokenizer
    from flextok.model.priors.autoregressive import load_prior

    model, decoder = load_prior(prior), load_tokenizer(tokenizer)
    condition = model.config.condition
    given = {"class": label, "text": text}
    for name, value in given.items():
        if value is not None and name != condition:
            raise UsageError(f"expected a {condition} for this prior, found a {name}; it was not trained on any")
    if condition == "text" and text is None:
        raise UsageError("expected --text for a prior that reads captions, found none")
    classes = max(model.config.num_classes, 1)
    if label is not None and label >= classes:
        raise UsageError(f"expected --label within 0..{classes - 1}, found {label}")
    if keep is not None and keep > model.config.num_tokens:
        raise UsageError(f"expected --keep within 1..{model.config.num_tokens}, found {keep}")
    labels = [index % classes if label is None else label for index in range(num)]
    ids = model.generate(
        labels=labels if condition == "class" else None,
        text=[text] * num if condition == "text" and text is not None else None,
        keep=keep,
        seed=seed,
        num=num if condition == "none" else None,
    )
    images = to_uint8(decoder.detokenize(ids, seed=seed))
    for index, (image, drawn) in enumerate(zip(images, labels, strict=True)):
        stem = f"{index:04d}_class{drawn:04d}" if condition == "class" else f"{index:04d}"
        storage.write_bytes(storage.join(out, f"{stem}.png"), to_png(image))
    print(out)


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
    """Numbers with their protocol, by the profile's evaluation settings."""
    config = load_recipe(profile, sets).evaluation
    if samples is None:
        from flextok.evaluate.reconstruction import evaluate_reconstruction

        made = evaluate_reconstruction(tokenizer, shards, out, config)
    else:
        from flextok.evaluate.generation import evaluate_generation

        made = evaluate_generation(samples, shards, tokenizer, out, config)
    for item in made.metrics:
        at = "" if item["k"] is None else f" at K={item['k']}"
        say(f"{item['name']}{at}: {item['value']:.6g}")
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
    from flextok.evaluate.report import ReportInputs, write_report

    seen, drawn = provenance.lineage(reconstructions), provenance.lineage(generation)
    has_latents = any(item["kind"] == "vae" for item in _behind(seen, "tokenizer")["inputs"])
    made = write_report(
        ReportInputs(
            reconstruction_url=reconstructions,
            generation_url=generation,
            samples_url=_behind(drawn, "samples")["uri"],
            tokenizer_url=_behind(seen, "tokenizer")["uri"],
            prior_url=_behind(drawn, "samples", "prior")["uri"],
            train_tokens_url=_behind(drawn, "samples", "prior", "tokens")["uri"],
            val_tokens_url=val_tokens,
            train_url=_behind(drawn, "samples", "prior", "tokens", "corpus")["uri"],
            val_url=_behind(seen, "corpus")["uri"],
            latents_url=_behind(seen, "tokenizer", "vae")["uri"] if has_latents else None,
        ),
        out,
        load_recipe(profile, sets).report,
    )
    print(made.html_path)


def _newest(parent: str, made_by: str) -> str:
    """The artifact made last among those in the folder `parent`."""
    found: list[tuple[str, str]] = []
    for name in storage.list_names(parent):
        url = storage.join(parent, name)
        if not name.startswith(".") and storage.exists(storage.join(url, "config.yaml")) | storage.exists(
            storage.join(url, "manifest.json")
        ):
            found.append((provenance.read_provenance(url)["created"], url))
    if not found:
        raise UsageError(f"expected an artifact in {parent}, found none; make it with `{made_by}`")
    newest = max(found)[1]
    say(f"uses {newest}")
    return newest


def _behind(node: dict[str, Any], *kinds: str) -> dict[str, Any]:
    """The artifact that is reached from a node of a lineage tree by inputs of these kinds."""
    for kind in kinds:
        found = [item for item in node["inputs"] if item["kind"] == kind]
        if not found or not found[0]["found"]:
            raise UsageError(f"expected the {kind} behind {node['uri']}, found it is not there; give other evaluations")
        node = found[0]
    return node
