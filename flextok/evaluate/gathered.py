"""What is gathered of a set of images: its features or their statistics, which merge and are stored as a part of a set."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from flextok import storage
from flextok.errors import IntegrityError
from flextok.metrics.statistics import FeatureRows, FeatureStatistics

Kept = Mapping[str, frozenset[str]]
"""By what gives features: "statistics", "features", or both, as the metrics need them."""


class Gathered:
    """Of one set of images, by what gave the features. Sets of other images merge into it, in the order of their images."""

    def __init__(self, kept: Kept):
        self._kept = kept
        self.images = 0
        self._found: dict[tuple[str, str], FeatureStatistics | FeatureRows] = {}

    def add(self, images: int, features: Mapping[str, np.ndarray]) -> None:
        """Take in a batch of `images`, with their features [B, D] by source."""
        self.images += images
        for source, rows in features.items():
            for kept in self._kept.get(source, ()):
                empty = FeatureStatistics.empty(rows.shape[1]) if kept == "statistics" else FeatureRows()
                self._found.setdefault((source, kept), empty).add(rows)

    def merge(self, other: "Gathered") -> None:
        """Take in what was gathered of other images, which come after these."""
        self.images += other.images
        for place, theirs in other._found.items():
            mine = self._found.get(place)
            if isinstance(mine, FeatureStatistics) and isinstance(theirs, FeatureStatistics):
                self._found[place] = mine.merge(theirs)
            elif isinstance(theirs, FeatureRows):
                self._found.setdefault(place, FeatureRows()).add(theirs.stack())
            else:
                self._found[place] = theirs

    def of(self, source: str, kept: str) -> FeatureStatistics | np.ndarray:
        """The statistics, or all features float64 [N, D] (one array, as long as nothing is added)."""
        found = self._found[source, kept]
        return found.stack() if isinstance(found, FeatureRows) else found

    def widths(self) -> dict[str, int]:
        """Width of the features by source."""
        found = ((source, self.of(source, kept)) for source, kept in self._found)
        return {source: each.shape[1] if isinstance(each, np.ndarray) else each.width for source, each in found}

    def to_bytes(self) -> bytes:
        """A safetensors file, float64."""
        arrays: dict[str, np.ndarray] = {"images": np.array(self.images)}
        for (source, kept), found in self._found.items():
            arrays |= {f"{source}/{kept}/{name}": array for name, array in _arrays(found).items()}
        return save(arrays)

    @classmethod
    def read(cls, url: str, kept: Kept) -> "Gathered":
        """What `to_bytes` gave, stored at `url`, as far as `kept` asks for it; raises IntegrityError for another file."""
        gathered = cls(kept)
        try:
            with storage.as_local_file(url) as path, safe_open(path, "numpy") as file:
                gathered.images = int(file.get_tensor("images"))
                for source in kept:
                    for each in kept[source]:
                        names = ("count", "total", "outer") if each == "statistics" else ("rows",)
                        arrays = [file.get_tensor(f"{source}/{each}/{name}") for name in names]
                        gathered._found[source, each] = _made_of(arrays)
        except SafetensorError as error:
            raise IntegrityError(
                f"expected a part of a set in {url}, found: {error}; remove it and run again"
            ) from None
        return gathered


def _arrays(found: FeatureStatistics | FeatureRows) -> dict[str, Any]:
    if isinstance(found, FeatureRows):
        return {"rows": found.stack()}
    return {"count": np.array(found.count), "total": found.total_D, "outer": found.outer_DD}


def _made_of(arrays: list[np.ndarray]) -> FeatureStatistics | FeatureRows:
    if len(arrays) > 1:
        count, total_D, outer_DD = arrays
        return FeatureStatistics(int(count), total_D, outer_DD)
    rows = FeatureRows()
    rows.add(arrays[0])
    return rows
