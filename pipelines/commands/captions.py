"""`flextok encode-text`: the captions of a corpus as stored features of a text encoder."""

import logging
from typing import Annotated

import typer

from flextok.config import parse_config
from flextok.runtime.cluster import ray_ended
from pipelines.commands.options import COMPUTE_FLAGS, Debug, RayAddress, Resources, flags_in_hints
from pipelines.commands.tokens import MOST_ACTORS

logger = logging.getLogger(__name__)


def encode_text(
    shards: Annotated[str, typer.Argument(metavar="SHARDS", help="Folder of a corpus split.")],
    dest: Annotated[str, typer.Argument(metavar="DEST", help="Folder for the features.")],
    encoder: Annotated[
        str, typer.Option("--encoder", metavar="NAME", help="minilm, t5:FOLDER or Hub id, clip:FOLDER or Hub id.")
    ],
    actors: Annotated[
        int, typer.Option("--actors", min=1, help="Most actors; fewer work where resources or images are few.")
    ] = MOST_ACTORS,
    address: RayAddress = "local",
    gpus: Annotated[float, typer.Option("--gpus", min=0, help="GPUs for each actor; 0 computes on CPUs.")] = 0,
    resource: Resources = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """All captions of shards as features of a text encoder, which a prior's training reads."""
    from flextok.runtime.compute import ComputeConfig, parse_resources
    from flextok.tokenize.text.job import encode_captions, encoder_spec

    places = {"address": address, "gpus_per_worker": gpus, "resources": parse_resources(resource)}
    compute = parse_config(ComputeConfig, {**places, "tokenize_actors": (1, actors)}, "flextok encode-text")
    with flags_in_hints(COMPUTE_FLAGS), ray_ended():
        made = encode_captions(shards, encoder_spec(encoder), dest, compute)
    logger.info(
        f"{made.images:,} images in {made.shards} shards ({made.skipped} were there), digest {made.digest[:12]}"
    )
    print(made.url)
