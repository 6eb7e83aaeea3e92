"""Words read by tesseract, through pytesseract: both are asked for only where a recipe names it."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image, ImageOps
from pydantic import Field

from flextok.errors import FlextokError, UsageError
from flextok.metrics.base import Content
from flextok.metrics.recognisers.base import RECOGNISERS, Recogniser, RecogniserConfig

HEIGHT_PX = 48
"""Of the line as it is read: tesseract wants capital letters of some 30 px."""
BORDER_PX = 12
ONE_WORD = "--psm 8"
VERSION = "0.3.13"


@RECOGNISERS.register
class TesseractConfig(RecogniserConfig):
    """Words by tesseract, each as a picture of its own."""

    kind: Literal["tesseract"] = "tesseract"
    looks_for: ClassVar[Content] = "text"
    language: str = Field(
        default="eng", pattern=r"^[A-Za-z_+]+$", description="Of its trained data, such as eng or deu+eng."
    )

    def build(self) -> Recogniser:
        return Tesseract(self)


class Tesseract(Recogniser):
    """Reads each region as one word. Raises UsageError where package, program or the language's data is not there."""

    def __init__(self, config: TesseractConfig):
        try:
            import pytesseract  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UsageError(
                f"expected the package pytesseract for {config.kind}, found none; run `pip install pytesseract=={VERSION}`, or "
                "name another recogniser (evaluation.recognisers)"
            ) from None
        self._package: Any = pytesseract
        self._language = config.language
        try:
            version, languages = str(pytesseract.get_tesseract_version()), pytesseract.get_languages()
        except (pytesseract.TesseractNotFoundError, SystemExit):
            raise UsageError(
                "expected the program tesseract on the PATH, found none that runs; install it, or name another recogniser "
                "(evaluation.recognisers)"
            ) from None
        if lacking := {*config.language.split("+")} - {*languages}:
            raise UsageError(
                f"expected tesseract's data for {', '.join(sorted(lacking))}, found {', '.join(sorted(languages))}; install it"
            )
        self.record: dict[str, Any] = {
            "recogniser": "tesseract",
            "version": version,
            "language": config.language,
            "mode": ONE_WORD,
            "input": f"region enlarged to {HEIGHT_PX} px in height by bicubic, {BORDER_PX} px of its median colour around it",
        }

    def __call__(self, regions: Sequence[np.ndarray]) -> list[str]:
        return [self._read(region) for region in regions]

    def _read(self, region_HWC: np.ndarray) -> str:
        height, width = region_HWC.shape[:2]
        size = max(1, round(width * HEIGHT_PX / height)), HEIGHT_PX
        picture = Image.fromarray(region_HWC).resize(size, Image.Resampling.BICUBIC)
        paper = tuple(int(each) for each in np.median(region_HWC, axis=(0, 1)))
        try:
            read = self._package.image_to_string(
                ImageOps.expand(picture, BORDER_PX, paper), lang=self._language, config=ONE_WORD
            )
        except (self._package.TesseractError, OSError) as error:
            raise FlextokError(f"expected tesseract to read a word, found: {' '.join(str(error).split())}") from None
        return read.strip()
