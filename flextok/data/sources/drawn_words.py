"""The built-in corpus of drawn words as a source."""

from dataclasses import dataclass

import polars as pl

from flextok.data.config import DRAWN_WORDS, CorpusConfig, SourceConfig
from flextok.data.sources.base import RawInput
from flextok.data.sources.listing import LISTING_SCHEMA, Listing
from flextok.data.sources.look import Look
from flextok.data.sources.registry import SOURCES, SourceFormat, splits_of
from flextok.data.sources.staging import Staging
from flextok.data.words import WordsConfig, draw_page, fitting_words, words_digest
from flextok.digests import digest_of


@dataclass(frozen=True)
class PageReader:
    """Draws the page named "<split>/<index>"."""

    config: WordsConfig
    remote: bool = False

    def read(self, name: str, size: int, where: str | None, max_bytes: int) -> RawInput:
        """See Reader."""
        split, _, index = name.partition("/")
        page = draw_page(self.config, split, int(index))
        return RawInput(page.png, captions=(page.text,), metadata=page.metadata)


class WordsFormat(SourceFormat):
    """The drawn words: "drawn_words" in place of a URL."""

    name = DRAWN_WORDS
    needs_files = False

    def detects(self, look: Look) -> bool:
        return look.url == DRAWN_WORDS

    def list(self, source: SourceConfig, split: str, config: CorpusConfig, staging: Staging) -> Listing:
        words = config.words
        for glyph_px in words.glyph_px:
            fitting_words(words.image_px, glyph_px)
        rows = [
            (f"{part}/{index:07d}", f"{part}_{index:07d}", 0, words_digest(words, part), None)
            for part in splits_of(split)
            for index in range(words.samples(part))
        ]
        frame = pl.DataFrame(rows, schema=LISTING_SCHEMA, orient="row")
        return Listing(frame, PageReader(words), [], None, has_splits=True)

    def digest(self, source: SourceConfig, split: str, config: CorpusConfig) -> str:
        return digest_of([words_digest(config.words, part) for part in splits_of(split)])


SOURCES.add(DRAWN_WORDS, WordsFormat())
