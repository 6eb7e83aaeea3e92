"""The shrunk profile on clusters of real nodes: who works in its stages, and what must have been made in the end."""

import hashlib
import json
from pathlib import Path

from shrunk_smoke import Built

WORKERS = {
    "image_shards[scenes/train]": "_Worker",
    "latents": "RayTrainWorker",
    "tokenizer": "RayTrainWorker",
    "reconstructions": "_Worker",
    "token_shards[scenes/train]": "MapWorker",
    "prior": "RayTrainWorker",
    "samples": "_Worker",
    "fid": "_Worker",
}


def check_made(workspace: Path, built: Built) -> None:
    """Whatever is there is what one machine makes, and nothing is wanting."""
    made, expected = contents(workspace), contents(built.workspace)
    for kind in ("manifest.json", "provenance.json", "metrics.json", ".png"):
        of_kind = {place: content for place, content in made.items() if place.endswith(kind)}
        assert of_kind and of_kind.items() <= expected.items(), kind


def contents(workspace: Path) -> dict[str, str]:
    """By place: digests of what was made, of whose evaluations the folder is named by it, and the samples' pictures."""
    documents = {
        str(path.relative_to(workspace)): json.loads(path.read_text())
        for name in ("manifest.json", "provenance.json")
        for path in workspace.rglob(name)
    }
    found = {place: document["digest"] for place, document in documents.items() if "digest" in document}
    for path in workspace.glob("evaluation/*/metrics.json"):
        found[str(path.relative_to(workspace))] = path.parent.name
    for path in workspace.glob("samples/*/images/*/*.png"):
        found[str(path.relative_to(workspace))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
