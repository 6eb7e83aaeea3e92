"""Commands on one artifact, from its files alone: inspect, verify, lineage, import-checkpoint, export-prior."""

import logging
from typing import Annotated, Any

import typer
import yaml

from flextok import provenance, storage
from flextok.aliases import resolve_alias
from flextok.errors import FlextokError, IntegrityError, UsageError
from pipelines.commands.options import PIPE_WIDTH, ArtifactPath, AsJson, Debug, print_json

logger = logging.getLogger(__name__)

CORPUS = ("corpus",)
TOKENS = ("tokens", "samples")
TEXT_FEATURES = ("text_features",)
CHECKPOINTS = ("tokenizer", "prior", "vae")
EXPORTED = "exported-prior"


def inspect(path: ArtifactPath, as_json: AsJson = False, debug: Debug = False) -> None:
    """What this artifact is: shards, token store, checkpoint, evaluation."""
    described = _describe(path)
    if as_json:
        print_json(described)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in described.items():
        table.add_row(Text(name, style="bold"), Text(_shown(value)))
    Console().print(table)


def verify(
    path: ArtifactPath,
    against: Annotated[
        str | None, typer.Option("--against", metavar="SHARDS", help="For tokens: their corpus, to compare rows with.")
    ] = None,
    decode: Annotated[
        int, typer.Option("--decode", min=0, metavar="N", help="For tokens: encode N random images anew and compare.")
    ] = 0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Hash and count an artifact again, and compare with its manifest."""
    kind = _kind(path)
    problems = _problems(path, kind, against)
    if decode and kind == "tokens" and not problems:
        from flextok.tokenize.verify import verify_encoding

        problems = verify_encoding(path, decode, against)
    if as_json:
        print_json({"path": storage.absolute(path), "kind": kind, "ok": not problems, "problems": problems})
    if problems:
        for problem in problems if not as_json else ():
            logger.info(problem)
        raise IntegrityError(
            f"expected {path} to hold what its manifest says, found {len(problems)} faults: {problems[0]}; "
            "restore it or make it again"
        )
    if not as_json:
        print(f"{kind} {path}: holds")


def lineage(path: ArtifactPath, as_json: AsJson = False, debug: Debug = False) -> None:
    """Everything this artifact came from, from the files alone."""
    tree = provenance.lineage(path)
    if as_json:
        print_json(tree)
        return
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    told: set[str] = set()

    def grow(node: dict[str, Any], branch: Tree | None) -> Tree:
        again = node["uri"] in told and bool(node["inputs"])
        text = Text(f"{node['kind']} {node['digest'][:12]}  {node['uri']}")
        text.append("" if node["found"] else "  gone", style="red")
        text.append("  (its inputs stand above)" if again else "", style="dim")
        grown = Tree(text) if branch is None else branch.add(text)
        told.add(node["uri"])
        for item in () if again else node["inputs"]:
            grow(item, grown)
        return grown

    console = Console()
    Console(width=None if console.is_terminal else PIPE_WIDTH).print(grow(tree, None), soft_wrap=True)


def import_checkpoint(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Official model.safetensors, or a Hub folder.")],
    dest: Annotated[str, typer.Argument(metavar="DEST", help="Folder for the checkpoint.")],
    debug: Debug = False,
) -> None:
    """A published FlexTok checkpoint as one of ours."""
    from flextok.model.official import checkpoint as official

    saved = official.import_checkpoint(source, dest)
    logger.info("tokenizer %s", saved.digest[:12])
    print(saved.url)


def export_prior(
    prior: Annotated[
        str, typer.Argument(metavar="CKPT", help="Prior of kind llama, or FOLDER@ALIAS.", callback=resolve_alias)
    ],
    dest: Annotated[str, typer.Argument(metavar="DEST", help="Folder to make.")],
    debug: Debug = False,
) -> None:
    """A prior as a folder that transformers, and servers that read its folders, load as a causal language model."""
    from flextok.model import export

    logger.info("exported prior %s", export.export_prior(prior, dest)[:12])
    print(dest)


def _kind(path: str) -> str:
    try:
        return provenance.read_provenance(path)["kind"]
    except UsageError:
        from flextok.model.official.checkpoint import is_official

        if is_official(path):
            return "official"
        raise


def _describe(path: str) -> dict[str, Any]:
    kind = _kind(path)
    if kind == "official" or kind in CHECKPOINTS:
        from flextok.model.describe import describe_checkpoint

        found = describe_checkpoint(path)
    elif kind in TOKENS:
        from flextok.data.tokens import summarize_tokens

        found = summarize_tokens(path)
    elif kind in TEXT_FEATURES:
        from flextok.data.text_features.store import read_manifest

        manifest = read_manifest(path)
        found = {**manifest["text_features"], **manifest["counts"]}
    elif kind in CORPUS:
        from flextok.data.corpus.reader import Corpus

        corpus = Corpus.open(path)
        found = {
            "name": corpus.name,
            "split": corpus.split,
            **corpus.manifest["counts"],
            "bytes": sum(shard.bytes for shard in corpus.shards),
            "classes": corpus.classes,
        }
    elif kind == EXPORTED:
        found = {"config": storage.read_json(storage.join(path, "config.json"))}
    elif kind == "reference":
        from flextok.evaluate.reference import Reference

        manifest = Reference.open(path).manifest
        found = {name: manifest[name] for name in ("images", "preprocess", "features", "kept")}
    else:
        document = storage.read_json(storage.join(path, "metrics.json"))
        found = {"metrics": [{key: item[key] for key in ("name", "value", "k")} for item in document["metrics"]]}
    if kind == "official":
        return {**found, "uri": storage.absolute(path)}
    block = provenance.read_provenance(path)
    head = {key: block[key] for key in ("kind", "digest", "created", "code_version")}
    return {**head, "uri": storage.absolute(path), **{name: value for name, value in found.items() if name not in head}}


def _problems(path: str, kind: str, against: str | None) -> list[str]:
    if kind in CORPUS:
        from flextok.data.corpus.verify import verify_corpus

        return verify_corpus(path)
    if kind == "samples" and against is None:
        from flextok.evaluate.samples.verify import verify_samples

        return verify_samples(path)
    if kind in TOKENS:
        from flextok.data.tokens import verify_tokens

        return verify_tokens(path, against)
    if kind in TEXT_FEATURES:
        from flextok.data.text_features.store import verify_text_features

        return verify_text_features(path)
    if kind == "official" or kind in CHECKPOINTS:
        from flextok.model.describe import describe_checkpoint

        try:
            describe_checkpoint(path)
        except FlextokError as error:
            return [str(error)]
        return []
    if kind == EXPORTED:
        from flextok.model.export import verify_export

        return verify_export(path)
    if kind == "reference":
        from flextok.evaluate.reference import verify_reference

        return verify_reference(path)
    from flextok.evaluate.results import verify_evaluation

    return verify_evaluation(path)


def _shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float | list | dict):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return yaml.safe_dump(value, sort_keys=False, default_flow_style=None, width=100).strip()
