"""The built-in drawn corpus as a source."""

from dataclasses import dataclass

import polars as pl

from flextok.data.scenes import ScenesConfig, draw_scene, scene_classes, scenes_digest
from flextok.data.sources.base import RawInput
from flextok.data.sources.listing import LISTING_SCHEMA, Listing


@dataclass(frozen=True)
class SceneReader:
    """SampleRng the scene named "<split>/<index>"."""

    config: ScenesConfig
    remote: bool = False

    def read(self, name: str, size: int, where: str | None, max_bytes: int) -> RawInput:
        """See Reader."""
        split, _, index = name.partition("/")
        scene = draw_scene(self.config, split, int(index))
        return RawInput(scene.png, scene.label, captions=(scene.text,))


def list_scenes(config: ScenesConfig, split: str) -> Listing:
    """The scenes of a split, or of both."""
    splits = ("train", "val") if split == "all" else (split,)
    rows = [
        (f"{s}/{i:07d}", f"{s}_{i:07d}", 0, scenes_digest(config, s), None)
        for s in splits
        for i in range(config.samples(s))
    ]
    frame = pl.DataFrame(rows, schema=LISTING_SCHEMA, orient="row")
    return Listing(frame, SceneReader(config), [], scene_classes(), has_splits=True)
