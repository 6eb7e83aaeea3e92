"""Drawn words: what stands where, by the pixels; the same page from the same settings; metadata from shard to reader."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flextok import glyphs
from flextok.config import parse_config
from flextok.data.config import CorpusConfig
from flextok.data.corpus.documents import sample_documents
from flextok.data.corpus.job import shard_corpus
from flextok.data.corpus.reader import Corpus, iter_shard
from flextok.data.words import WordsConfig, draw_page
from flextok.errors import IntegrityError, UsageError

WORDS = WordsConfig.model_validate({"val_samples": 30})


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)), int)


@pytest.mark.parametrize("index", range(20))
def test_ink_is_in_the_boxes_alone(index: int) -> None:
    page = draw_page(WORDS, "val", index)
    image = pixels(page.png)
    ink = np.abs(image - image[0, 0]).sum(axis=2) > 0
    boxes = np.zeros_like(ink)
    for text in page.metadata["texts"]:
        left, top, right, bottom = text["box"]
        assert not boxes[top:bottom, left:right].any()
        assert ink[top:bottom, left:right].any(axis=0)[1:-2].mean() > 0.6  # letters, a pixel or two apart
        boxes[top:bottom, left:right] = True
    assert not ink[~boxes].any()
    assert page.metadata["glyph_px"] == WORDS.glyph_px[index % 5]
    assert page.text.split() == [text["text"] for text in page.metadata["texts"]]


@pytest.mark.parametrize("capital_px", [6, 10, 16, 42])
def test_letters_have_the_height_that_is_named(capital_px: int) -> None:
    for letter in "HEL":
        inked = np.flatnonzero(glyphs.cell(letter, capital_px).max(axis=1) > 0.25)
        assert inked[-1] - inked[0] + 1 == capital_px
    assert glyphs.word("Hl", capital_px).shape[1] == sum(glyphs.cell(each, capital_px).shape[1] for each in "Hl")


def test_pages_are_those_of_their_settings() -> None:
    first = draw_page(WORDS, "val", 3)
    assert first == draw_page(WORDS, "val", 3)
    others = [
        draw_page(WORDS, "train", 3),
        draw_page(WORDS, "val", 8),
        draw_page(WORDS.model_copy(update={"seed": 1}), "val", 3),
    ]
    assert len({first.png, *(each.png for each in others)}) == 4


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"glyph_px": [6, 7]}, "expected ascending heights among 4, 5, 6, 8"),
        ({"glyph_px": [8, 6]}, "found [8, 6]"),
        ({"glyph_px": []}, "'words.glyph_px'"),
    ],
)
def test_heights_that_letters_cannot_have_are_told(values: dict, told: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_config(CorpusConfig, {"words": values}, "profile")
    assert told in str(error.value)


def test_words_that_do_not_fit_are_told(tmp_path: Path) -> None:
    config = CorpusConfig.model_validate({"source": "drawn_words", "words": {"image_px": 32, "glyph_px": [6, 24]}})
    with pytest.raises(UsageError, match="expected words of 24 px to fit on pages of 32 px"):
        shard_corpus(config, "val", str(tmp_path), workers=1, progress=False)


def test_metadata_reaches_the_reader(tmp_path: Path) -> None:
    """What is read beside the pictures is what their whole shards hold, of a source without any metadata too."""
    values = {
        "sources": [{"url": "drawn_words", "name": "text"}, {"url": "scenes"}],
        "words": WORDS.model_dump(),
        "scenes": {"val_samples": 7},
        "shard_samples": 10,
    }
    shard_corpus(CorpusConfig.model_validate(values), "val", str(tmp_path), workers=1, progress=False)
    corpus = Corpus.open(str(tmp_path))
    whole = {sample.key: sample.meta for shard in corpus.shards for sample in iter_shard(corpus.url, shard)}
    assert len(whole) == 37 and sample_documents(corpus, list(whole)) == whole
    key = "text_val_0000004"
    assert sample_documents(corpus, [key]) == {key: whole[key]}
    assert whole[key]["metadata"] == json.loads(json.dumps(draw_page(WORDS, "val", 4).metadata))
    with pytest.raises(IntegrityError, match="expected key gone"):
        sample_documents(corpus, [key, "gone"])


def test_a_corpus_without_words_has_the_recipe_it_had() -> None:
    assert "words" not in CorpusConfig().content()
    assert CorpusConfig.model_validate({"words": {"seed": 3}}).content()["words"]["seed"] == 3
