"""Which checkpoint a tokenizer's training begins from: where it lies, and the digest that decides the result."""

import functools

from flextok import storage
from flextok.aliases import resolve_alias
from flextok.errors import UsageError
from flextok.provenance import artifact_input
from flextok.train.config import InitFromConfig, TokenizerRecipe

WEIGHTS = "model.safetensors"


def origin_of(settings: InitFromConfig) -> dict[str, str]:
    """The checkpoint as an input `{kind, digest, uri}`, uri absolute and no alias.

    The digest of one in the official layout is the SHA-256 of its weight file, as for an import. Raises UsageError where
    there is none, and where it is not the one that `digest` names.
    """
    url = storage.absolute(resolve_alias(settings.checkpoint))
    file_url = url if url.endswith(".safetensors") else storage.join(url, WEIGHTS)
    if not storage.exists(file_url):
        raise UsageError(
            f"expected a tokenizer checkpoint at {settings.checkpoint} for tokenizer.init_from, found no {WEIGHTS} there"
        )
    if storage.exists(storage.join(url, "provenance.json")):
        found = artifact_input(url)
    else:
        found = {"kind": "official", "digest": _sha256(file_url, _version(file_url)), "uri": url}
    if found["kind"] not in ("tokenizer", "official"):
        raise UsageError(f"expected a tokenizer checkpoint for tokenizer.init_from, found a {found['kind']} at {url}")
    if settings.digest not in (None, found["digest"]):
        raise UsageError(
            f"expected the checkpoint {settings.digest} for tokenizer.init_from, found {found['digest']} at {url}; "
            "leave tokenizer.init_from.digest out, or bring the other one back"
        )
    return found


def pinned(recipe: TokenizerRecipe, digest: str) -> TokenizerRecipe:
    """`recipe` with the digest of the checkpoint that it begins from."""
    assert recipe.init_from is not None
    return recipe.model_copy(update={"init_from": recipe.init_from.model_copy(update={"digest": digest})})


def _version(file_url: str) -> str:
    fs, path = storage.filesystem(file_url)
    fs.invalidate_cache()
    return fs.ukey(path)


@functools.cache
def _sha256(file_url: str, version: str) -> str:
    """Computed once for each version of a file: weights may be gigabytes, and staleness asks often."""
    return storage.sha256_file(file_url)
