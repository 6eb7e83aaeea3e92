"""The texts beside a picture: its JSON, caption and class, read into what a sample has."""

import json
from collections.abc import Mapping
from typing import Any

from flextok.data.sources.base import InputError, RawInput

LARGEST_TEXT = {"json": 1 << 20, "txt": 1 << 20, "cls": 1 << 10}
"""Bytes allowed for a sample's texts; they are held in memory and copied into its JSON."""
OWN_FIELDS = frozenset({"source", "sha256", "width", "height", "label", "label_name", "caption", "captions", "text"})
"""Fields of a sample's JSON that are written anew; the rest is carried along as `metadata`."""


def check_text_sizes(sizes: Mapping[str, int]) -> None:
    """Raises InputError when a text (size by kind) is too large to be one."""
    for kind, size in sizes.items():
        if size > LARGEST_TEXT[kind]:
            raise InputError("bad_metadata", f"{kind} of {size} bytes, allowed {LARGEST_TEXT[kind]}")


def with_texts(image: bytes, texts: Mapping[str, bytes], keys: tuple[str, ...], view: str = "") -> RawInput:
    """A picture with what its texts (content by kind) say; a class in `cls` goes before the given label `keys`.

    Raises InputError when a text cannot be parsed.
    """
    try:
        meta: Any = json.loads(texts["json"]) if "json" in texts else {}
        text = texts["txt"].decode() if "txt" in texts else None
        cls = texts["cls"].decode().strip() if "cls" in texts else ""
    except ValueError as error:
        raise InputError("bad_metadata", f"json, txt or cls: {error}") from None
    if not isinstance(meta, dict):
        raise InputError("bad_metadata", f"json: expected an object, found {type(meta).__name__}")
    captions = [text, meta.get("caption"), meta.get("text"), *_as_list(meta.get("captions"))]
    found = [caption.strip() for caption in captions if isinstance(caption, str)]
    label: int | str | None = int(cls) if cls.lstrip("-").isdecimal() else cls or None
    if label is None and isinstance(meta.get("label"), int):
        label = meta["label"]
    if isinstance(label, int) and label < 0:
        label = None
    extra = {name: value for name, value in meta.items() if name not in OWN_FIELDS}
    keys = (*([cls] if cls else []), *keys)
    return RawInput(image, label, keys, tuple(dict.fromkeys(found)), extra, view)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
