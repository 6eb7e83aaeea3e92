"""Heat maps of the codebook: how often ids are used, over all positions and at each."""

import base64
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from flextok.evaluate.tokens import TokenStatistics

MOST_CELLS, MOST_ROWS, MOST_COLUMNS = 4096, 64, 128
DOUBLINGS = 3
"""The colours span uniform use / 2^3 .. uniform use * 2^3."""
# Viridis: as dark to light for those who do not see all colours, and readable on light and dark pages.
STOPS = ("440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725")
NOTHING = 255
"""Palette index of a place without a cell."""


@dataclass(frozen=True)
class HeatMap:
    """Use of ids relative to uniform use: `values_RC` float [R, C], 1 is uniform, NaN no cell.

    `row_at` and `column_at` say what rows and columns begin with; the id of a cell follows from `id_of`.
    """

    title: str
    note: str
    row_label: str
    """What a row stands for; "" where it is only a part of the ids."""
    row_at: list[int]
    column_at: list[int]
    ids_a_cell: int
    values_RC: np.ndarray

    def uri(self) -> str:
        """A pixel a cell, as a data URI."""
        doubled = np.log2(np.maximum(self.values_RC, 2.0**-DOUBLINGS))
        shares = np.clip((doubled + DOUBLINGS) / (2 * DOUBLINGS), 0, 1)
        levels = np.where(np.isnan(shares), NOTHING, np.nan_to_num(shares) * (NOTHING - 1)).round()
        return _palette_png(levels.astype(np.uint8))

    def described(self) -> str:
        """In words: how much of it is in use."""
        cells = self.values_RC[~np.isnan(self.values_RC)]
        return f"{np.count_nonzero(cells)} of {cells.size} cells are in use, the most used {cells.max():.3g} times uniform use"

    def to_json(self) -> dict[str, Any]:
        """Plain values; null where there is no cell."""
        values = [[None if math.isnan(each) else float(f"{each:.3g}") for each in row] for row in self.values_RC]
        return {
            "title": self.title, "row": self.row_label, "rows": self.row_at, "columns": self.column_at,
            "ids": self.ids_a_cell, "values": values,
        }  # fmt: skip


def heat_maps(tokens: TokenStatistics) -> list[HeatMap]:
    """The codebook as a whole, and its ids at each position."""
    store = tokens.store
    counts_LV = tokens.counts_NV.reshape(store.num_tokens, store.codebooks, store.vocab_size).sum(axis=1)
    return [codebook_map(counts_LV.sum(axis=0)), position_map(counts_LV)]


def codebook_map(counts_V: np.ndarray) -> HeatMap:
    cells, ids = _binned(counts_V[None], MOST_CELLS)
    columns = math.ceil(math.sqrt(2 * cells.shape[1]))
    rows = math.ceil(cells.shape[1] / columns)
    values = np.full(rows * columns, np.nan)
    values[: cells.shape[1]] = cells[0]
    starts = [row * columns * ids for row in range(rows)]
    return HeatMap(
        "Codebook", f"{_per_cell(ids)}, in the order of the ids, all positions together", "",
        starts, [column * ids for column in range(columns)], ids, values.reshape(rows, columns),
    )  # fmt: skip


def position_map(counts_LV: np.ndarray) -> HeatMap:
    stride = math.ceil(len(counts_LV) / MOST_ROWS)
    starts = np.arange(0, len(counts_LV), stride)
    values, ids = _binned(np.add.reduceat(counts_LV, starts, axis=0), MOST_COLUMNS)
    rows = f"{stride} positions a row" if stride > 1 else "a row for each position, the first on top"
    return HeatMap(
        "Ids by position", f"{rows}; {_per_cell(ids)}", "position",
        (starts + 1).tolist(), [column * ids for column in range(values.shape[1])], ids, values,
    )  # fmt: skip


def _binned(counts_RV: np.ndarray, most: int) -> tuple[np.ndarray, int]:
    """Each row's use of the ids relative to uniform use, in at most `most` cells of so many consecutive ids."""
    vocabulary = counts_RV.shape[1]
    ids = math.ceil(vocabulary / most)
    starts = np.arange(0, vocabulary, ids)
    sizes = np.diff(np.append(starts, vocabulary))
    shares = np.add.reduceat(counts_RV, starts, axis=1) / np.maximum(counts_RV.sum(axis=1, keepdims=True), 1)
    return shares * vocabulary / sizes, ids


def _per_cell(ids: int) -> str:
    return "a cell for each id" if ids == 1 else f"{ids} ids a cell"


def legend_uri() -> str:
    """The colours from the least to the most used, as a data URI."""
    return _palette_png(np.arange(NOTHING, dtype=np.uint8)[None])


def _palette_png(levels_HW: np.ndarray) -> str:
    stops = np.array([[int(stop[at : at + 2], 16) for at in (0, 2, 4)] for stop in STOPS])
    places = np.linspace(0, len(stops) - 1, NOTHING)
    palette = np.stack([np.interp(places, range(len(stops)), channel) for channel in stops.T], axis=1).round()
    image = Image.fromarray(levels_HW, mode="P")
    image.putpalette([*palette.astype(np.uint8).flatten().tolist(), 0, 0, 0])
    file = io.BytesIO()
    image.save(file, format="PNG", transparency=NOTHING, optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
