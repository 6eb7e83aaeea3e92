"""What a stage made as Dagster's metadata: what people look at first, then numbers, then what staleness reads."""

import base64
import json
import re
from collections.abc import Sequence
from typing import Any

import dagster as dg

from pipelines.recipe import Recipe
from pipelines.stage import Made, Page, Pictures, Stage, TableRow
from pipelines.workspace import Workspace

SIZE = "dagster/size_bytes"
DURATION = "duration_s"
ONLY_ON_PAGES = frozenset({
    SIZE, DURATION, "accelerator_hours", "cpu_hours", "cost", "steps", "bytes_per_image", "vocabulary_use",
    "vocabulary_use_rows", "published_step", "training_device_hours",
})  # fmt: skip
"""Numbers that would only lengthen the line which a command prints of a stage."""


def recorded(stage: Stage, recipe: Recipe, workspace: Workspace, made: Made) -> dict[str, Any]:
    """Its own numbers, where it lies, and the settings that made it."""
    metadata: dict[str, Any] = dict(made.numbers)
    if made.url is not None:
        metadata |= {"dagster/uri": made.url, "path": workspace.relative(made.url)}
    return {**metadata, "settings": json.dumps(stage.content(recipe), sort_keys=True)}


def shown(page: Page) -> dict[str, Any]:
    """What is on its page beside that."""
    found: dict[str, Any] = {}
    if page.pictures is not None:
        found["pictures"] = dg.MetadataValue.md(_pictures(page.pictures))
    if page.curve is not None:
        found["loss_curve"] = dg.MetadataValue.md(_image("loss curve", page.curve))
    if page.table:
        found["metrics"] = _table(page.table)
    found |= {name: _link(target) for name, target in page.links.items()}
    found |= {**page.texts, **{name: _number(value) for name, value in page.numbers.items()}}
    if page.size_bytes is not None:
        found[SIZE] = page.size_bytes
    return found


def literal(text: str) -> str:
    """Any text in Markdown such that it is read letter by letter on one line; what cannot be seen is left out.

    A code span: with backslashes alone, Dagster's pages make links of addresses.
    """
    visible = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", visible)), default=0))
    return f"{fence} {visible} {fence}" if visible else ""


def _pictures(pictures: Pictures) -> str:
    captions = [f"{place}. {literal(text)}" for place, text in enumerate(pictures.captions, 1)]
    return "\n\n".join([_image("pictures", pictures.file), pictures.title, "\n".join(captions)])


def _image(name: str, file: bytes) -> str:
    return f"![{name}](data:{_media_type(file)};base64,{base64.b64encode(file).decode()})"


def _media_type(file: bytes) -> str:
    if file.startswith(b"<svg"):
        return "image/svg+xml"
    return "image/png" if file.startswith(b"\x89PNG") else "image/jpeg"


def _table(rows: Sequence[TableRow]) -> dg.TableMetadataValue:
    columns = [dg.TableColumn(name, "int" if name == "K" else "float") for name in rows[0]]
    records = [dg.TableRecord(data=row) for row in rows]
    return dg.MetadataValue.table(records, dg.TableSchema(columns))


def _number(value: float) -> dg.MetadataValue:
    """As one of Dagster's, whatever library the number is of."""
    return dg.MetadataValue.int(value) if isinstance(value, int) else dg.MetadataValue.float(float(value))


def _link(target: str) -> dg.MetadataValue:
    """A browser opens web addresses only; other places are there to be copied."""
    return dg.MetadataValue.url(target) if target.startswith(("https://", "http://")) else dg.MetadataValue.path(target)
