"""Options that commands share."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from flextok.aliases import resolve_alias
from flextok.errors import FlextokError

Profile = Annotated[str, typer.Option("--profile", metavar="NAME|FILE.yaml", help="A profile's name or file.")]
Profiles = Annotated[
    list[str],
    typer.Option("--profile", metavar="NAME|FILE.yaml", help="A profile's name or file; repeat it for several."),
]
Sets = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, as in prior.train.steps=100.")
]
WorkspaceUrl = Annotated[str, typer.Option("--workspace", metavar="DIR|URL", help="Where all artifacts lie.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
TokenizerPath = Annotated[
    str,
    typer.Option(
        "--tokenizer",
        metavar="CKPT",
        help="Tokenizer checkpoint, ours (or FOLDER@ALIAS) or official.",
        callback=resolve_alias,
    ),
]
PriorPath = Annotated[
    str, typer.Option("--prior", metavar="CKPT", help="Prior checkpoint, or FOLDER@ALIAS.", callback=resolve_alias)
]
ArtifactPath = Annotated[
    str,
    typer.Argument(
        metavar="PATH",
        help="Folder of a corpus, tokens, checkpoint, evaluation, or FOLDER@ALIAS.",
        callback=resolve_alias,
    ),
]
RayAddress = Annotated[str, typer.Option("--address", help="Ray: local, auto, or a cluster's address.")]
Resources = Annotated[
    list[str],
    typer.Option(
        "--resource", metavar="NAME=VALUE", help="A node's custom resource or label for each worker; repeat it."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

DEFAULT_WORKSPACE = "./workspace"
# As a hint has it (`set corpus.text_column`), and as a fault of a value (`'text_column': Input should be ...`).
SETTING = re.compile(r"(?<![\w/.])(?:corpus|compute|tokens)\.\w+|(?<=: )'\w+'(?=: )")
COMPUTE_FLAGS = {
    "compute.address": "--address",
    "compute.gpus_per_worker": "--gpus",
    "compute.resources": "--resource",
}
PIPE_WIDTH = 240  # no folding where another program or a file reads a table


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


@contextlib.contextmanager
def flags_in_hints(flags: Mapping[str, str]) -> Iterator[None]:
    """Errors of the library name settings, as profiles have them; here each is told by the flag that sets it.

    `flags` are those of settings by their whole names, such as corpus.seed.
    """
    by_field = {setting.rpartition(".")[2]: flag for setting, flag in flags.items()}

    def flag_of(match: re.Match[str]) -> str:
        return flags.get(match[0]) or by_field.get(match[0].strip("'")) or match[0]

    try:
        yield
    except FlextokError as error:
        told = SETTING.sub(flag_of, str(error))
        raise type(error)(told) from error
