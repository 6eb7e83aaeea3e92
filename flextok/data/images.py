"""The one way from the bytes of a picture to its pixels, for sharding, training, tokenization and evaluation alike.

| question | rule |
| --- | --- |
| type of the file | by content, never by name; JPEG (also MPO), PNG, WebP, GIF, BMP, TIFF, AVIF; nothing else is opened |
| size limits | checked on the header, before pixels are allocated: `ImageLimits` (max_bytes, max_pixels, min_side, max_aspect) |
| damage | a file whose data ends early is refused; damage that the decoder conceals (zeroed blocks) is not seen; bytes after the end are ignored, bytes before the start are not |
| EXIF orientation | applied; width and height are those of the picture as displayed |
| CMYK, YCCK, LAB | converted to RGB by Pillow's plain formulas, Adobe's inversion undone |
| palette | looked up, never taken for gray |
| alpha, transparent index | laid over white |
| 16-bit gray | v / 257, rounded; 32-bit integers are clipped to 0..65535 first; 16-bit colour keeps the high byte |
| gray, 1 bit | three equal channels |
| floating point | refused: its range is unknown |
| animations, MPO | the first frame |
| ICC profiles | ignored, as ImageNet pipelines do: the stored numbers are taken for sRGB |
| crop | `center_crop`: halved by BOX while twice too large, BICUBIC to the short side, the centre cut out (ADM's rule); smaller pictures are enlarged |
| model range | x / 127.5 - 1, and back clamp(round((x + 1) * 127.5), 0, 255) |

Memory: while one picture is decoded at most 17 bytes for each of its pixels (`max_pixels`) plus twice the file are in use.
"""

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from flextok.data.config import ImageLimits

if TYPE_CHECKING:
    import torch

EXTENSIONS = {
    "JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff", "AVIF": "avif",
}  # fmt: skip
PLUGINS = (
    JpegImagePlugin, PngImagePlugin, WebPImagePlugin, GifImagePlugin, BmpImagePlugin, TiffImagePlugin, AvifImagePlugin,
)  # fmt: skip
"""Imported so that Pillow has them registered; the JPEG one also opens MPO."""
OPENED = [name for name in EXTENSIONS if name != "MPO"]
DEFAULT_LIMITS = ImageLimits()
ORIENTATION_TAG = 0x0112
SIDEWAYS = (5, 6, 7, 8)
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip

# Sizes above Pillow's warning level are judged by ImageLimits; above its error level Pillow refuses them itself.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageError(Exception):
    """A picture that cannot be used; `reason` is one of the fixed reject reasons, `detail` says more."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class ImageInfo:
    """What a picture turned out to be: true file ending, and size as displayed."""

    ext: str
    width: int
    height: int


@dataclass(frozen=True)
class DecodedImage:
    """A picture as displayed, in Pillow's mode RGB, and its file ending by content."""

    image: Image.Image
    ext: str

    @property
    def rgb(self) -> np.ndarray:
        """A read-only copy of its pixels, uint8 [height, width, 3]."""
        return np.asarray(self.image)

    @property
    def width(self) -> int:
        return self.image.width

    @property
    def height(self) -> int:
        return self.image.height


def inspect(raw: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> ImageInfo:
    """Decodes all data of a picture as `decode` does but converts none of it: what sharding needs to trust a picture.

    Raises ImageError exactly where `decode` would.
    """
    image = _open(raw, limits)
    width, height = image.size
    if image.format in ("JPEG", "MPO"):
        # All coefficients are read, which is where damage shows; colours and full size, which nobody looks at, are not made.
        image.draft("L", (1, 1))
    _load(image)
    if _orientation(image) in SIDEWAYS:
        width, height = height, width
    return ImageInfo(EXTENSIONS[str(image.format)], width, height)


def decode(raw: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> DecodedImage:
    """The picture in `raw` by the rules of this module's table; raises ImageError(reason, detail)."""
    image = _open(raw, limits)
    _load(image)
    ext = EXTENSIONS[str(image.format)]
    turn = TURNS.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    return DecodedImage(_to_rgb(image), ext)


def center_crop(picture: Image.Image | np.ndarray, size_px: int) -> np.ndarray:
    """The centre of `picture` (RGB, or uint8 HWC) as uint8 [size_px, size_px, 3], by ADM's rule."""
    image = resize_short_side(Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture, size_px)
    left, top = (image.width - size_px) // 2, (image.height - size_px) // 2
    return np.asarray(image.crop((left, top, left + size_px, top + size_px)))


def resize_short_side(image: Image.Image, size_px: int) -> Image.Image:
    """`image` with its short side at `size_px`: halved by BOX while twice too large, then BICUBIC."""
    while min(image.size) >= 2 * size_px:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size_px / min(image.size)
    size = (max(size_px, round(image.width * scale)), max(size_px, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC)


def to_model(batch: np.ndarray, device: "torch.device | str" = "cpu") -> "torch.Tensor":
    """uint8 [B, H, W, 3] as float32 [B, 3, H, W] in [-1, 1] on `device`, moved there while still small."""
    import torch

    return torch.tensor(batch, device=device).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def to_uint8(images: "torch.Tensor") -> np.ndarray:
    """Float [B, 3, H, W] in [-1, 1] as uint8 [B, H, W, 3]; values outside are clamped."""
    rounded = ((images.detach().float() + 1) * 127.5).round().clamp(0, 255)
    return rounded.byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()


def preprocess(size_px: int) -> dict[str, Any]:
    """The rule from bytes to a model's input, as recorded in token shards and protocols."""
    return {
        "crop": "adm_center", "size": size_px, "downscale": "box_halving", "resample": "pil_bicubic", "orientation": "exif",
        "alpha": "white", "gray16": "div257", "icc": "ignored", "frame": 0, "range": [-1, 1],
    }  # fmt: skip


def _open(raw: bytes, limits: ImageLimits) -> Image.Image:
    """The picture with its header read and judged, nothing decoded yet."""
    if not raw:
        raise ImageError("empty_file", "0 bytes")
    if len(raw) > limits.max_bytes:
        raise ImageError("too_many_bytes", f"{len(raw)} bytes, allowed {limits.max_bytes}")
    if size := _webp_size(raw):  # Pillow allocates a WebP's canvas when it opens the file
        _check_size(*size, limits)
    try:
        image = Image.open(io.BytesIO(raw), formats=OPENED)
    except Image.DecompressionBombError as error:
        raise ImageError("too_many_pixels", str(error)) from None
    except Image.UnidentifiedImageError:
        raise ImageError("not_an_image", f"not one of {', '.join(OPENED)}; starts with {raw[:16]!r}") from None
    except Exception as error:  # noqa: BLE001 - decoders raise a dozen kinds, and no picture may stop a run
        raise ImageError("broken_image", _one_line(error)) from None
    _check_size(*image.size, limits)
    if image.mode == "F":
        raise ImageError("unsupported_pixels", "floating point pixels, whose range is unknown")
    return image


def _load(image: Image.Image) -> None:
    """Decode the first frame in place."""
    try:
        image.load()
    except Image.DecompressionBombError as error:
        raise ImageError("too_many_pixels", str(error)) from None
    except Exception as error:  # noqa: BLE001 - decoders raise a dozen kinds, and no picture may stop a run
        raise ImageError("broken_image", _one_line(error)) from None


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels:
        raise ImageError("too_many_pixels", f"{width}x{height}, allowed {limits.max_pixels} pixels")
    short, long = sorted((width, height))
    if short < limits.min_side:
        raise ImageError("too_small", f"{width}x{height}, shortest allowed side {limits.min_side}")
    if long > limits.max_aspect * short:
        raise ImageError("extreme_aspect", f"{width}x{height}, allowed ratio {limits.max_aspect:g}")


def _webp_size(raw: bytes) -> tuple[int, int] | None:
    """Canvas size of a WebP from its first chunk; None for other files. Layout: RFC 9649, sections 2.5 to 2.7."""
    if len(raw) < 30 or raw[:4] != b"RIFF" or raw[8:12] != b"WEBP":
        return None
    chunk = raw[12:16]
    if chunk == b"VP8X":
        return 1 + int.from_bytes(raw[24:27], "little"), 1 + int.from_bytes(raw[27:30], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(raw[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 ":
        return int.from_bytes(raw[26:28], "little") & 0x3FFF, int.from_bytes(raw[28:30], "little") & 0x3FFF
    return None


def _orientation(image: Image.Image) -> int:
    if image.format in ("JPEG", "MPO", "WEBP") and "exif" not in image.info:
        return 1  # the usual case, without the cost of an empty EXIF table
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001 - a damaged EXIF block does not make the picture unusable
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        wide = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
        wide += 128
        wide //= 257
        return Image.fromarray(wide.astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def to_png(rgb_HWC: np.ndarray) -> bytes:
    """A uint8 RGB image [H, W, 3] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(rgb_HWC).save(file, format="PNG")
    return file.getvalue()


def read_png(content: bytes) -> np.ndarray:
    """The uint8 RGB image [H, W, 3] in a PNG file that `to_png` made."""
    return np.asarray(Image.open(io.BytesIO(content), formats=["PNG"]))
