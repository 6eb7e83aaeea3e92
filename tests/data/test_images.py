"""The one way from bytes to pixels, on real hostile files and on pictures made here."""

import csv
import io
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flextok.data import images
from flextok.data.config import ImageLimits

# Rows of expected.csv that leave a choice, where ours is not the suggested one.
CHOSEN = {"images/.hidden.jpg": "accept"}  # the folder walk leaves it out, by its name; its bytes are a picture


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def hostile_rows(shared: Path) -> list[dict[str, str]]:
    with (shared / "data/hostile/expected.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["kind"] == "image"]


def test_every_hostile_picture_is_judged_as_expected(shared: Path) -> None:
    rows = hostile_rows(shared)
    assert len(rows) == 42
    for row in rows:
        raw = (shared / "data/hostile" / row["file"]).read_bytes()
        try:
            decoded = images.decode(raw)
        except images.ImageError as error:
            found = "reject"
            with pytest.raises(images.ImageError, match=error.reason):
                images.inspect(raw)
        else:
            found = "accept"
            info = images.inspect(raw)
            assert (info.width, info.height, info.ext) == (decoded.width, decoded.height, decoded.ext), row["file"]
            assert decoded.rgb.shape[2] == 3 and decoded.rgb.dtype == np.uint8
            if row["width"]:
                assert (decoded.width, decoded.height) == (int(row["width"]), int(row["height"])), row["file"]
        assert found == CHOSEN.get(row["file"], row["expected"]), row["file"]


def test_hostile_pictures_have_the_right_colours(shared: Path) -> None:
    def decode(name: str) -> np.ndarray:
        return images.decode((shared / "data/hostile/images" / name).read_bytes()).rgb

    gray16 = decode("gray16.png")
    assert abs(float(gray16.mean()) - 137) < 2
    gray = decode("gray.jpg")
    assert (gray[..., 0] == gray[..., 1]).all() and (gray[..., 1] == gray[..., 2]).all()
    assert np.ptp(decode("palette.png").mean(axis=(0, 1))) > 1  # indices taken for gray would have three equal means
    cmyk = Image.open(shared / "data/hostile/images/cmyk.jpg").convert("RGB")
    assert (decode("cmyk.jpg") == np.asarray(cmyk)).all()
    with Image.open(shared / "data/hostile/images/icc_srgb.jpg") as plain:
        assert (decode("icc_srgb.jpg") == np.asarray(plain)).all()


@pytest.mark.parametrize("name", ["bomb_header_60000x60000.png", "bomb_valid_13000x13000.png"])
def test_bombs_are_refused_from_the_header(shared: Path, name: str) -> None:
    raw = (shared / "data/hostile/images" / name).read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(images.ImageError, match="too_many_pixels"):
        images.decode(raw)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


def test_a_large_webp_is_refused_before_pillow_makes_its_canvas() -> None:
    for options in ({"lossless": True}, {"quality": 1}):
        raw = bytearray(encoded(Image.new("RGB", (64, 64)), "WEBP", **options))
        assert images.inspect(bytes(raw)).width == 64
        if options.get("lossless"):
            raw[21:25] = ((12000 - 1) | (12000 - 1) << 14).to_bytes(4, "little")
        else:
            raw[26:30] = (12000).to_bytes(2, "little") * 2
        with pytest.raises(images.ImageError, match="too_many_pixels: 12000x12000"):
            images.decode(bytes(raw))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_shows_it(orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = encoded(Image.fromarray(noise(40, 24)), "JPEG", exif=exif)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(raw))))
    decoded = images.decode(raw)
    assert (decoded.rgb == shown).all()
    info = images.inspect(raw)
    assert (info.height, info.width) == shown.shape[:2]


def test_orientation_of_png_webp_and_tiff_is_applied_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb = noise(40, 24)
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        raw = encoded(Image.fromarray(rgb), format, exif=exif, **options)
        assert (images.decode(raw).rgb == np.rot90(rgb, -1)).all(), format
        assert (images.inspect(raw).width, images.inspect(raw).height) == (24, 40), format


def test_alpha_is_laid_over_white() -> None:
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[:8, :, 3] = 255
    rgb = images.decode(encoded(Image.fromarray(rgba), "PNG")).rgb
    assert (rgb[:8] == 0).all() and (rgb[8:] == 255).all()
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([0, 0, 0, 200, 10, 10])
    assert (images.decode(encoded(palette, "PNG", transparency=1)).rgb == 255).all()


def test_sixteen_bit_gray_is_scaled_not_clipped() -> None:
    wide = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    rgb = images.decode(encoded(Image.fromarray(wide), "PNG")).rgb
    assert (rgb[..., 0] == np.rint(wide / 257)).all()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_allowed_format_is_known_by_content(format: str) -> None:
    raw = encoded(Image.fromarray(noise(32, 32)), format)
    info = images.inspect(raw)
    assert info == images.ImageInfo(images.EXTENSIONS[format], 32, 32)
    with pytest.raises(images.ImageError):
        images.decode(raw[: len(raw) // 2])


def test_other_formats_and_float_pixels_are_refused() -> None:
    with pytest.raises(images.ImageError, match="not_an_image"):
        images.decode(encoded(Image.fromarray(noise(32, 32)), "PPM"))
    with pytest.raises(images.ImageError, match="unsupported_pixels"):
        images.decode(encoded(Image.fromarray(np.zeros((32, 32), np.float32)), "TIFF"))


def test_limits_name_the_reason() -> None:
    raw = encoded(Image.fromarray(noise(100, 20)), "PNG")
    for limits, reason in (
        ({"min_side": 21}, "too_small"),
        ({"max_aspect": 4.9}, "extreme_aspect"),
        ({"max_pixels": 1999}, "too_many_pixels"),
        ({"max_bytes": 100}, "too_many_bytes"),
    ):
        with pytest.raises(images.ImageError, match=reason):
            images.decode(raw, ImageLimits.model_validate(limits))
    assert images.decode(raw, ImageLimits.model_validate({"min_side": 20, "max_aspect": 5.0})).width == 100


def adm_reference(image: Image.Image, size: int) -> np.ndarray:
    """center_crop_arr of openai/guided-diffusion, for pictures of any size."""
    while min(*image.size) >= 2 * size:
        image = image.resize(tuple(x // 2 for x in image.size), resample=Image.Resampling.BOX)
    scale = size / min(*image.size)
    image = image.resize(tuple(round(x * scale) for x in image.size), resample=Image.Resampling.BICUBIC)
    array = np.array(image)
    y, x = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[y : y + size, x : x + size]


@pytest.mark.parametrize(("width", "height"), [(32, 32), (33, 47), (301, 140), (20, 90), (640, 480)])
def test_center_crop_is_adms(width: int, height: int) -> None:
    rgb = noise(width, height)
    assert (images.center_crop(rgb, 32) == adm_reference(Image.fromarray(rgb), 32)).all()


def test_model_range_round_trips_exactly() -> None:
    batch = np.stack([noise(16, 16), np.full((16, 16, 3), 255, np.uint8)])
    floats = images.to_model(batch)
    assert floats.shape == (2, 3, 16, 16) and floats.min() >= -1 and floats.max() == 1
    assert (images.to_uint8(floats) == batch).all()
    assert (images.to_uint8(floats * 3).max(), images.to_uint8(floats * 3).min()) == (255, 0)


def test_a_damaged_exif_block_does_not_cost_the_picture() -> None:
    raw = encoded(Image.fromarray(noise(32, 32)), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff broken")
    assert images.decode(raw).width == 32


@pytest.mark.parametrize("save", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 2}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_sharding_judges_damaged_jpegs_as_decoding_does(mode: str, save: dict[str, int]) -> None:
    """`inspect` makes no colours and no full size; it must refuse what `decode` refuses, whatever the damage."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).convert(mode)
    file = io.BytesIO()
    picture.save(file, "JPEG", **save)
    outcomes = set()
    for attempt in range(60):
        raw = bytearray(file.getvalue())
        place = int(rng.integers(len(raw)))
        if attempt % 3 == 0:
            del raw[place:]
        elif attempt % 3 == 1:
            raw[place : place + 200] = bytes(len(raw[place : place + 200]))
        else:
            raw[place] ^= 1 << int(rng.integers(8))
        judged = [_judged(judge, bytes(raw)) for judge in (images.inspect, images.decode)]
        assert judged[0] == judged[1]
        outcomes.add(judged[0][0])
    assert {"fine", "broken_image"} <= outcomes


DECODE_AND_TELL_PEAK = """
import sys
from flextok.data import images
from flextok.runtime.memory import peak_memory

raw = open(sys.argv[1], "rb").read()
before = peak_memory()
decoded = images.decode(raw)
print(decoded.width * decoded.height, peak_memory() - before)
"""


@pytest.mark.parametrize(
    ("mode", "format"),
    [("RGB", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("I;16", "PNG"), ("P", "PNG"), ("RGB", "WEBP"), ("RGB", "AVIF")],
)  # fmt: skip
def test_memory_of_a_large_picture_is_within_the_stated_bound(mode: str, format: str, tmp_path: Path) -> None:
    """At most 17 bytes a pixel and twice the file, turned pictures included; each kind in a process of its own."""
    side = 3000
    gradient = np.add.outer(np.arange(side), np.arange(side)).astype(np.uint16)
    picture = Image.fromarray(gradient)
    if mode != "I;16":
        picture = Image.fromarray((gradient % 251).astype(np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[images.ORIENTATION_TAG] = 6
    path = tmp_path / "picture"
    path.write_bytes(encoded(picture, format, exif=exif))
    told = subprocess.run(
        [sys.executable, "-c", DECODE_AND_TELL_PEAK, str(path)], capture_output=True, text=True, check=True
    )
    pixels, peak = map(int, told.stdout.split())
    assert pixels == side * side
    assert 3 * pixels <= peak <= 17 * pixels + 2 * path.stat().st_size


def _judged(judge: Callable[..., Any], raw: bytes) -> tuple[Any, ...]:
    try:
        found = judge(raw)
    except images.ImageError as error:
        return (error.reason,)
    return "fine", found.ext, found.width, found.height
