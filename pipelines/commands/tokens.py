"""Commands on tokens: bulk tokenization, and pictures to tokens and back for a person."""

import dataclasses
import logging
from typing import Annotated, Any

import typer

from flextok.config import parse_config
from flextok.errors import UsageError
from flextok.runtime.cluster import ray_ended
from pipelines.commands.options import (
    COMPUTE_FLAGS,
    Debug,
    PriorPath,
    RayAddress,
    Resources,
    TokenizerPath,
    flags_in_hints,
)
from pipelines.recipe import assign, load_recipe

logger = logging.getLogger(__name__)

# Ray starts as many as the cluster has room for, also when nodes join later.
MOST_ACTORS = 64
FEW_IMAGES = 1000
TOKENIZE_FLAGS = {
    **COMPUTE_FLAGS,
    **{f"tokens.{field}": f"--{field.replace('_', '-')}" for field in (
        "keep", "dtype", "batch_size", "length", "max_reject_fraction",
    )},
    "tokens.views": "--view",
}  # fmt: skip
"""The flags of `flextok tokenize` for settings that hints of the library name."""


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
        str, typer.Option("--length", help="Tokens an image needs: all, a number, or mae:EPS, mse:EPS, psnr:EPS.")
    ] = "all",
    max_reject_fraction: Annotated[
        float | None, typer.Option("--max-reject-fraction", min=0, max=1, help="More rejects than this are a failure.")
    ] = None,
    actors: Annotated[
        int, typer.Option("--actors", min=1, help="Most actors; fewer work where resources or images are few.")
    ] = MOST_ACTORS,
    address: RayAddress = "local",
    gpus: Annotated[float, typer.Option("--gpus", min=0, help="GPUs for each actor; 0 computes on CPUs.")] = 0,
    resource: Resources = [],  # noqa: B006
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and do nothing.")] = False,
    debug: Debug = False,
) -> None:
    """Bulk tokenization of shards into Parquet token shards."""
    from flextok.runtime.compute import ComputeConfig, parse_resources
    from flextok.tokenize.config import TokenizeConfig
    from flextok.tokenize.lengths.base import parse_length

    values: dict[str, Any] = {"keep": keep, "dtype": dtype, "batch_size": batch_size, "length": parse_length(length)}
    if view:
        values["views"] = view
    if max_reject_fraction is not None:
        values["max_reject_fraction"] = max_reject_fraction
    with flags_in_hints(TOKENIZE_FLAGS):
        config = parse_config(TokenizeConfig, values, "flextok tokenize")
    places = {"address": address, "gpus_per_worker": gpus, "resources": parse_resources(resource)}
    compute = parse_config(ComputeConfig, {**places, "tokenize_actors": (1, actors)}, "flextok tokenize")
    if dry_run:
        from flextok.tokenize.estimate import plan_tokenization

        with flags_in_hints(TOKENIZE_FLAGS):
            plan = plan_tokenization(shards, tokenizer, dest, config, compute)
        for name, value in dataclasses.asdict(plan).items():
            print(f"{name:16} {value:,.1f}" if isinstance(value, float) else f"{name:16} {value}")
        return
    from flextok.tokenize.job import tokenize_corpus

    with flags_in_hints(TOKENIZE_FLAGS), ray_ended():
        made = tokenize_corpus(shards, tokenizer, dest, config, compute)
    logger.info(f"{made.rows:,} rows in {made.shards} shards ({made.skipped} were there), digest {made.digest[:12]}")
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

    encode_images(images, tokenizer, out, TokenizeConfig.model_validate({"keep": keep}))
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
    prior: PriorPath,
    tokenizer: TokenizerPath,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder for the PNG files.")],
    label: Annotated[int | None, typer.Option("--label", min=0, help="Class to draw; default all in turn.")] = None,
    text: Annotated[str | None, typer.Option("--text", help="Caption to draw.")] = None,
    keep: Annotated[int | None, typer.Option("--keep", min=1, help="Tokens of each image; default all.")] = None,
    num: Annotated[int, typer.Option("--num", min=1, help="Number of images; more than 1,000 are a job.")] = 8,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed gives other images.")] = 0,
    sets: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="How ids are drawn, as in evaluation.samples: guidance=3, guidance_schedule.kind=cosine, top_p=0.9.",
        ),
    ] = [],  # noqa: B006
    picture: Annotated[
        str | None, typer.Option("--from", metavar="PICTURE", help="Begin with tokens of this picture.")
    ] = None,
    keep_from: Annotated[
        int | None, typer.Option("--keep-from", help="How many of its tokens stay; the others are drawn.")
    ] = None,
    job: Annotated[
        bool | None,
        typer.Option(
            "--job/--no-job", help="Token shards by a job that resumes, or PNG files at once; default: by --num."
        ),
    ] = None,
    pictures: Annotated[
        int, typer.Option("--pictures", min=0, help="Of a job: images to keep, the first ones, in images/.")
    ] = 0,
    features: Annotated[
        str | None,
        typer.Option(
            "--features",
            metavar="NAME|FILE.yaml",
            help="Of a job: decode all images as this profile's evaluation, and keep features for `evaluate --samples`.",
        ),
    ] = None,
    shard_samples: Annotated[int, typer.Option("--shard-samples", min=1, help="Of a job: images of a shard.")] = 1000,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Of a job: images drawn at once.")] = 64,
    actors: Annotated[int, typer.Option("--actors", min=1, help="Of a job: most actors.")] = MOST_ACTORS,
    address: RayAddress = "local",
    gpus: Annotated[float, typer.Option("--gpus", min=0, help="Of a job: GPUs for each actor.")] = 0,
    resource: Resources = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Images drawn from a prior: a few as PNG files; many as token shards, by a job that resumes."""
    from flextok.generate import generate_images
    from flextok.model.sampling.config import DrawConfig

    values: dict[str, Any] = {}
    for item in sets:
        assign(values, item)
    law = parse_config(DrawConfig, values, "flextok generate")
    if not (num > FEW_IMAGES if job is None else job):
        if pictures or features or address != "local":
            raise UsageError(
                "expected --pictures, --features and --address with many images or --job, found few without"
            )
        generate_images(prior, tokenizer, out, label, text, keep, num, seed, law, picture, keep_from)
        print(out)
        return
    if picture is not None or keep_from is not None:
        raise UsageError("expected --from for few images only, found a job; leave it out, or give --no-job")
    from flextok.evaluate.config import DecodingConfig, SamplingConfig, SetComparisonConfig, keep_counts
    from flextok.generate import generate_samples
    from flextok.model.load import prior_outline
    from flextok.runtime.compute import ComputeConfig, parse_resources

    measured = None if features is None else load_recipe(features).evaluation
    tokens = prior_outline(prior)[0].num_tokens if keep is None else keep
    counts = (measured.samples.keep or measured.keep) if measured is not None and keep is None else (tokens,)
    samples = {"num": num, "keep": keep_counts(counts, tokens), "pictures": pictures, "shard_samples": shard_samples}
    decoding = {} if measured is None else dict(measured.part(DecodingConfig))
    decoding |= {"seed": seed, "batch_size": batch_size}
    config = parse_config(SamplingConfig, {**decoding, "samples": {**dict(law), **samples}}, "flextok generate")
    places = {"address": address, "gpus_per_worker": gpus, "resources": parse_resources(resource)}
    compute = parse_config(ComputeConfig, {**places, "tokenize_actors": (1, actors)}, "flextok generate")
    comparison = None if measured is None else measured.part(SetComparisonConfig)
    with ray_ended():
        made = generate_samples(prior, tokenizer, out, config, label, text, keep, compute, comparison)
    logger.info(f"{made.num:,} samples, pictures of {made.pictures:,}, digest {made.digest[:12]}")
    print(made.url)
