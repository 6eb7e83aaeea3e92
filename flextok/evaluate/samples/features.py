"""Features of samples as they were gathered when these were made, for the metrics of sets."""

from collections.abc import Mapping
from typing import Any

from flextok.data.tokens import read_manifest
from flextok.errors import UsageError
from flextok.evaluate.gathered import Gathered
from flextok.evaluate.measure import ImageSets
from flextok.evaluate.samples.layout import features_url


def gathered_features(url: str, recipe: Mapping[str, Any], sets: ImageSets, images: int) -> dict[int, Gathered]:
    """By K the features of the first `images` samples at `url`, which `recipe` made, as far as `sets` needs them.

    Raises UsageError where others were gathered, or none.
    """
    found = recipe.get("features") or {"images": 0, "records": {}, "kept": {}}
    for source, needed in sets.kept.items():
        same = found["records"].get(source) == sets.records()[source] and needed <= set(found["kept"][source])
        if found["images"] != images or not same:
            described = ", ".join(f"{name} ({' and '.join(kept)})" for name, kept in found["kept"].items()) or "none"
            raise UsageError(
                f"expected pictures of {images} samples in {url}, or their features with {' and '.join(sorted(needed))} by "
                f"{source} (the same weights and input size), found features of {found['images']} samples: {described}; draw "
                "the samples again with these settings, or with pictures"
            )
    gathered = {keep: Gathered(sets.kept) for keep in recipe["keep"]}
    left = images
    for entry in read_manifest(url)["shards"]:
        if left > 0:
            for keep, merged in gathered.items():
                merged.merge(Gathered.read(features_url(url, keep, entry["shard"]), sets.kept))
        left -= entry["rows"]
    return gathered
