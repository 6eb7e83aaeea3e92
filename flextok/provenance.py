"""Provenance: every artifact says what it was made of, so lineage can be read from the files alone.

A provenance block is `{format, kind, digest, inputs: [{kind, digest, uri}], recipe, recipe_digest, code_version,
created, environment}`. It stands in `manifest.json` (corpora, token stores, samples), `provenance.json`
(checkpoints) or `metrics.json` (evaluations). An input's uri is relative to the artifact when both lie on one
file system, so that a workspace may be moved.
"""

import datetime
import os
import platform
from typing import Any

from flextok import storage
from flextok.digests import digest_of
from flextok.errors import UsageError
from flextok.version import __version__

FORMAT = "flextok.provenance/1"
DOCUMENTS = ("provenance.json", "manifest.json", "metrics.json")
GIVEN = ("folder", "npz", "official")
"""Kinds of inputs that are no artifacts: pictures and published weights that somebody else made."""


def artifact_input(url: str) -> dict[str, str]:
    """The artifact at `url` as an input: `{kind, digest, uri}`, uri absolute."""
    block = read_provenance(url)
    return {"kind": block["kind"], "digest": block["digest"], "uri": storage.absolute(url)}


def make_provenance(kind: str, digest: str, inputs: list[dict[str, str]], recipe: Any, url: str) -> dict[str, Any]:
    """The provenance block of the artifact `digest` stored at `url`, made from `inputs` by the settings `recipe`."""
    return {
        "format": FORMAT,
        "kind": kind,
        "digest": digest,
        "inputs": [{**item, "uri": _relative(item["uri"], storage.absolute(url))} for item in inputs],
        "recipe": recipe,
        "recipe_digest": digest_of(recipe),
        "code_version": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": {"python": platform.python_version(), "machine": platform.machine()},
    }


def read_provenance(url: str) -> dict[str, Any]:
    """The provenance block of the artifact folder `url`; raises UsageError when there is none."""
    for name in DOCUMENTS:
        document_url = storage.join(url, name)
        if storage.exists(document_url):
            document = storage.read_json(document_url)
            block = document if name == "provenance.json" else document.get("provenance")
            if isinstance(block, dict) and block.get("format") == FORMAT:
                return block
    raise UsageError(
        f"expected an artifact with one of {', '.join(DOCUMENTS)} in {url}, found none; "
        "give the folder of a corpus split, checkpoint, token store, samples or evaluation"
    )


def artifacts_in(parent: str) -> list[str]:
    """URLs of the artifacts that lie in the folder `parent`, sorted."""
    urls = [storage.join(parent, name) for name in storage.list_names(parent) if not name.startswith(".")]
    return [url for url in urls if any(storage.exists(storage.join(url, document)) for document in DOCUMENTS)]


def newest_artifact(parent: str) -> str | None:
    """URL of the artifact made last among those in the folder `parent`; None when there is none."""
    found = [(read_provenance(url)["created"], url) for url in artifacts_in(parent)]
    return max(found)[1] if found else None


def lineage(url: str) -> dict[str, Any]:
    """The tree of everything the artifact at `url` came from.

    Each node is `{kind, digest, uri, found, inputs: [node, ...]}`; `found` is false where the input's folder is
    gone or now holds something else than the recorded digest. Of what somebody else made, whose digest takes all of
    it to compute, it says only whether anything is there.
    """
    return _trace(storage.absolute(url), expected=None)


def _trace(url: str, expected: dict[str, str] | None) -> dict[str, Any]:
    if expected is not None and expected["kind"] in GIVEN:
        return {**expected, "uri": url, "found": storage.exists(url), "inputs": []}
    try:
        block = read_provenance(url)
    except UsageError:
        if expected is None:
            raise
        return {**expected, "uri": url, "found": False, "inputs": []}
    if expected is not None and block["digest"] != expected["digest"]:
        return {**expected, "uri": url, "found": False, "inputs": []}
    inputs = [_trace(resolve_input(item["uri"], url), expected=item) for item in block["inputs"]]
    return {
        "kind": block["kind"],
        "digest": block["digest"],
        "uri": url,
        "found": True,
        "created": block["created"],
        "recipe_digest": block["recipe_digest"],
        "inputs": inputs,
    }


def _relative(uri: str, base: str) -> str:
    return os.path.relpath(uri, base) if storage.is_local(uri) and storage.is_local(base) else uri


def resolve_input(uri: str, base: str) -> str:
    """Where an input lies whose recorded `uri` stands in the artifact at `base`."""
    if "://" in uri or uri.startswith("/"):
        return uri
    return os.path.normpath(os.path.join(base, uri))
