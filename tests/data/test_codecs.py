"""Pictures in a number of bytes: against trying every quality, and what Pillow itself reads back."""

import io

import numpy as np
import pytest
from PIL import Image

from flextok.data.codecs import CODECS, QUALITIES, Compressed
from flextok.errors import UsageError


def picture(side: int = 48) -> np.ndarray:
    """Smooth colours with a little noise."""
    y, x = np.mgrid[:side, :side] / side
    smooth = np.stack([255 * x, 255 * y, 127 * (1 + np.sin(9 * x * y))], axis=-1)
    return (smooth + np.random.default_rng(0).normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)


def file_of(name: str, image: np.ndarray, quality: int) -> bytes:
    options = {"jpeg": {"optimize": True}, "webp": {"method": 4}, "avif": {"speed": 6, "max_threads": 1}}[name]
    file = io.BytesIO()
    Image.fromarray(image).save(file, format=name, quality=quality, **options)
    return file.getvalue()


def error(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.square(first.astype(float) - second).mean())


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_it_is_as_good_as_any_quality_that_fits(name: str) -> None:
    image = picture()
    every = {quality: file_of(name, image, quality) for quality in QUALITIES}
    for size in (700, 1000, 1600, 10**6):
        fitting = [file for file in every.values() if len(file) <= size]
        best = min(error(np.asarray(Image.open(io.BytesIO(file)).convert("RGB")), image) for file in fitting)
        found = Compressed(CODECS[name], image).at_most(size)
        assert found is not None and found.shape == image.shape
        # Sizes do not quite rise with quality, and a halved picture may be better than any.
        assert error(found, image) <= 1.02 * best


@pytest.mark.parametrize("name", CODECS.names())
def test_more_bytes_are_never_worse_and_too_few_give_nothing(name: str) -> None:
    image = picture()
    compressed = Compressed(CODECS[name], image)
    found = [compressed.at_most(size) for size in (10, 400, 800, 1600, 3200, 10**6)]
    assert found[0] is None
    errors = [error(each, image) for each in found if each is not None]
    assert len(errors) >= 4 and errors == sorted(errors, reverse=True)


def test_a_halved_picture_fits_where_the_whole_does_not() -> None:
    image = picture(64)
    whole = len(file_of("webp", image, 1))
    found = Compressed(CODECS["webp"], image).at_most(whole - 10)
    assert found is not None and found.shape == image.shape
    assert error(found, image) < error(np.full_like(image, image.mean(axis=(0, 1)).astype(np.uint8)), image)


def test_a_codec_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.features.check", lambda feature: False)
    with pytest.raises(UsageError, match="a Pillow that writes avif"):
        CODECS["avif"].require()
