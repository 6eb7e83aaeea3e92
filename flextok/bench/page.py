"""How many bytes pictures take on the report's page, by encoding: what decides `flextok.evaluate.report.pictures.ENCODINGS`.

    python -m flextok.bench.page FOLDER [--images 64]

Takes photographs. At each of 9 K, and through the latents, a picture is stood for by its original blurred less and less.
"""

import argparse
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from flextok.data.images import center_crop, decode, to_png
from flextok.evaluate.report.pictures import ENCODINGS, Album

SIZE_PX = 256
BLUR_PX = (24, 16, 11, 8, 5.5, 4, 2.5, 1.5, 1, 0.5)
MEASURED = 16
ENDINGS = {".jpg", ".jpeg", ".png", ".webp"}


def rows(folder: Path, images: int) -> Iterator[list[bytes]]:
    """Of `images` photographs below `folder`, spread over their names: the PNG files of each and of what stands for its
    reconstructions."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    for place in np.linspace(0, len(paths) - 1, min(images, len(paths))).astype(int):
        original = Image.fromarray(center_crop(decode(paths[place].read_bytes()).rgb, SIZE_PX))
        blurred = (original.filter(ImageFilter.GaussianBlur(radius)) for radius in BLUR_PX)
        yield [to_png(np.asarray(image)) for image in (original, *blurred)]


def _as_png(png: bytes) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(png)).save(file, format="PNG", optimize=True)
    return file.getvalue()


def main() -> None:
    """Print the tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=64)
    arguments = parser.parse_args()
    found = list(rows(arguments.folder, arguments.images))
    if not found:
        sys.exit(f"expected pictures in {arguments.folder}, found none; name a folder of photographs")
    print(f"| bytes a picture, {SIZE_PX} px | original | reconstruction |\n| --- | --- | --- |")
    for name, encode in (("PNG, optimized", _as_png), *((str(each), each.encode) for each in ENCODINGS)):
        sizes = np.array([[len(encode(png)) for png in row] for row in found[:MEASURED]])
        print(f"| {name} | {sizes[:, 0].mean():,.0f} | {sizes[:, 1:].mean():,.0f} |")
    album = Album()
    for png in (png for row in found for png in row):
        album.add(png)
    encoding, uris = album.written()
    total = sum(map(len, uris))
    print(
        f"\nChosen for {len(found)} images in {len(BLUR_PX) + 1} pictures each: {encoding}; {total / 1e6:.2f} MB of text."
    )


if __name__ == "__main__":
    main()
