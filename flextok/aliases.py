"""Names for artifacts that stay while the artifacts change: `checkpoints/tokenizer@production`.

An alias of the folder F is the file `F/aliases/<name>.json`, which says what it stands for now and stood for before:
`{format, history: [{artifact, kind, digest, promoted}, ...]}`, the latest last; `artifact` is the name of a folder in F.
"""

import datetime
import re
from dataclasses import asdict, dataclass

from flextok import storage
from flextok.errors import FlextokError, UsageError
from flextok.provenance import artifacts_in, read_provenance

FOLDER = "aliases"
FORMAT = "flextok.alias/1"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Promotion:
    """What an alias stands for since `promoted`, a time of ISO 8601."""

    artifact: str
    kind: str
    digest: str
    promoted: str


def promote(folder: str, digest: str, name: str) -> str:
    """Have `folder@name` stand for the artifact in `folder` whose digest begins with `digest`; gives its URL.

    Raises UsageError where none or several do, and for a name that is none.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"expected letters, digits, '_', '-' or '.' for the name of an alias, found '{name}'")
    known = {url: read_provenance(url) for url in artifacts_in(folder)}
    found = [url for url, block in known.items() if block["digest"].startswith(digest)]
    if len(found) != 1:
        digests = ", ".join(sorted(block["digest"][:12] for block in known.values())) or "none"
        raise UsageError(
            f"expected the digest of one artifact in {folder} ({digests}), found {len(found)} that begin with '{digest}'"
        )
    (url,) = found
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    promotion = Promotion(url.rpartition("/")[2], known[url]["kind"], known[url]["digest"], now)
    history = [*promotions(folder, name), promotion]
    storage.write_json(_file(folder, name), {"format": FORMAT, "history": [asdict(item) for item in history]})
    return url


def promotions(folder: str, name: str) -> list[Promotion]:
    """What `folder@name` has stood for, the latest last; nothing where there is no such alias."""
    try:
        document = storage.read_json(_file(folder, name))
    except FileNotFoundError:
        return []
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise FlextokError(
            f"expected an alias ({FORMAT}) in {_file(folder, name)}, found something else; promote again"
        )
    return [Promotion(**item) for item in document["history"]]


def alias_names(folder: str) -> list[str]:
    """Names of the aliases of a folder, sorted."""
    return [name.removesuffix(".json") for name in storage.list_names(storage.join(folder, FOLDER))]


def last_promoted(folder: str, kind: str) -> str | None:
    """URL of the artifact of a kind for which an alias of the folder stands since the latest; None where there is none."""
    latest = [promotions(folder, name)[-1] for name in alias_names(folder)]
    of_kind = [item for item in latest if item.kind == kind]
    return storage.join(folder, max(of_kind, key=lambda item: item.promoted).artifact) if of_kind else None


def resolve_alias(path: str) -> str:
    """The artifact that `folder@name` stands for; any other path as it is.

    Raises UsageError where the folder has other aliases only, or what was promoted is gone.
    """
    folder, _, name = path.rpartition("@")
    if not folder or not NAME.fullmatch(name) or storage.exists(path):
        return path
    names = alias_names(folder)
    if name not in names:
        if not names:
            return path
        raise UsageError(
            f"expected an alias of {folder} ({', '.join(names)}), found '{name}'; `flextok promote` makes one"
        )
    latest = promotions(folder, name)[-1]
    url = storage.join(folder, latest.artifact)
    try:
        found = read_provenance(url)["digest"]
    except UsageError:
        found = "nothing"
    if found != latest.digest:
        raise UsageError(
            f"expected {latest.kind} {latest.digest[:12]} in {url}, for which {path} stands, found {found[:12]}; bring it "
            "back or promote another one"
        )
    return url


def _file(folder: str, name: str) -> str:
    return storage.join(folder, FOLDER, f"{name}.json")
