"""The built-in drawn corpus as a source."""

from dataclasses import dataclass

import polars as pl

from flextok.data.config import SCENES, CorpusConfig, SourceConfig
from flextok.data.scenes import ScenesConfig, draw_scene, scene_classes, scenes_digest
from flextok.data.sources.base import RawInput
from flextok.data.sources.listing import LISTING_SCHEMA, Listing
from flextok.data.sources.look import Look
from flextok.data.sources.registry import SOURCES, SourceFormat, splits_of
from flextok.data.sources.staging import Staging
from flextok.digests import digest_of


@dataclass(frozen=True)
class SceneReader:
    """Draws the scene named "<split>/<index>"."""

    config: ScenesConfig
    remote: bool = False

    def read(self, name: str, size: int, where: str | None, max_bytes: int) -> RawInput:
        """See Reader."""
        split, _, index = name.partition("/")
        scene = draw_scene(self.config, split, int(index))
        return RawInput(scene.png, scene.label, captions=(scene.text,))


def list_scenes(config: ScenesConfig, split: str) -> Listing:
    """The scenes of a split, or of both."""
    splits = splits_of(split)
    rows = [
        (f"{s}/{i:07d}", f"{s}_{i:07d}", 0, scenes_digest(config, s), None)
        for s in splits
        for i in range(config.samples(s))
    ]
    frame = pl.DataFrame(rows, schema=LISTING_SCHEMA, orient="row")
    return Listing(frame, SceneReader(config), [], scene_classes(), has_splits=True)


class ScenesFormat(SourceFormat):
    """The drawn corpus: the word "scenes" in place of a URL."""

    name = "scenes"
    needs_files = False

    def detects(self, look: Look) -> bool:
        return look.url == SCENES

    def list(self, source: SourceConfig, split: str, config: CorpusConfig, staging: Staging) -> Listing:
        return list_scenes(config.scenes, split)

    def digest(self, source: SourceConfig, split: str, config: CorpusConfig) -> str:
        return digest_of([scenes_digest(config.scenes, part) for part in splits_of(split)])


SOURCES.add("scenes", ScenesFormat())
