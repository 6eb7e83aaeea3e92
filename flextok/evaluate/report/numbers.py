"""The numbers of a report, ready to show, and which registered metrics they are of."""

import json
from typing import Any

from flextok.evaluate.results import EvaluationResult, Metric
from flextok.evaluate.slices import SLICE
from flextok.metrics.base import CONTENT_METRICS, IMAGE_METRICS, SET_METRICS, STATISTICS, ImageMetric, SetMetric

RANDOM_TOKENS = "_random_tokens"


class Numbers:
    """All numbers of a report; each has a row in the page's table, whose anchor the other places link to."""

    def __init__(self, stored: EvaluationResult):
        self.stored = stored
        self.rows = [_row(index, item) for index, item in enumerate(stored.metrics)]
        self._by_place = {(row["name"], row["k"]): row for row in reversed(self.rows)}

    def __contains__(self, name: str) -> bool:
        return (name, None) in self._by_place

    def pick(self, name: str, k: int | None = None) -> dict[str, Any]:
        """The row of the number `name`, at `k` tokens where it depends on them; raises KeyError."""
        return self._by_place[name, k]

    def protocol(self, name: str, k: int | None = None) -> dict[str, Any]:
        """How that number was measured; raises KeyError."""
        return self.pick(name, k)["raw"]["protocol"]

    def curve(self, name: str) -> dict[int, float]:
        """The numbers called `name` by K, ascending; empty when there are none."""
        return self.stored.curve(name)

    def ends(self, name: str) -> list[tuple[float, float]]:
        """Those of the 95 % intervals of its curve; none unless each number has one."""
        found = [Metric.from_json(self.pick(name, k)["raw"]).ends for k in self.curve(name)]
        return [each for each in found if each is not None] if all(found) else []

    def keeps(self) -> list[int]:
        """The token counts of the reconstructions, ascending."""
        paired = [item for item in self.stored.metrics if "data" in item["protocol"]]
        return sorted({item["k"] for item in paired if item["k"] is not None})

    def series(self) -> list[dict[str, Any]]:
        """A row for each curve: its name, axis, number of points and protocol."""
        return [
            {
                "name": item["name"],
                "axis": item["axis"],
                "points": len(item["at"]),
                "protocol": json.dumps(item["protocol"], indent=2, sort_keys=True),
            }
            for item in self.stored.series
        ]

    def image_metrics(self) -> list[ImageMetric]:
        """The registered metrics of images that were measured at each K, in their order."""
        known = IMAGE_METRICS.names()
        return [IMAGE_METRICS[name] for name in self._names() if name in known and self.curve(name)]

    def set_metrics(self) -> dict[str, SetMetric]:
        """The registered metrics of sets by what their numbers are called, in their order."""
        found: dict[str, SetMetric] = {}
        for item in self.stored.metrics:
            if not item["name"].endswith(RANDOM_TOKENS):
                continue
            name, features = item["name"].removesuffix(RANDOM_TOKENS), item["protocol"]["distance"]["extractor"]["name"]
            for metric in SET_METRICS:
                if metric.number_name(features) == name:
                    found[name] = metric
        return found

    def random_keep(self) -> int:
        """At how many tokens random ones were decoded."""
        return next(item["k"] for item in self.stored.metrics if item["name"].endswith(RANDOM_TOKENS))

    def has_small_sample(self) -> bool:
        """Whether a number is marked as one of too few images."""
        return any(row["small_sample"] for row in self.rows)

    def _names(self) -> list[str]:
        return list(dict.fromkeys(item["name"] for item in self.stored.metrics))


def _row(index: int, item: dict[str, Any]) -> dict[str, Any]:
    return {
        "anchor": f"number-{index}",
        "name": item["name"],
        "k": item["k"],
        "value": item["value"],
        "text": _shown(item),
        "error": item.get("standard_error"),
        "interval": item.get("interval"),
        "protocol": json.dumps(item["protocol"], indent=2, sort_keys=True),
        "small_sample": item["protocol"].get("distance", item["protocol"]).get("small_sample", False),
        "raw": item,
    }


def _shown(item: dict[str, Any]) -> str:
    """A number for reading; metrics.json and the table's `value` attribute have all its digits."""
    value, name = item["value"], item["protocol"].get(SLICE, {}).get("of", item["name"])
    metric = item["protocol"].get("metric")
    units = [register[name].unit for register in (STATISTICS, IMAGE_METRICS) if name in register.names()]
    units += [CONTENT_METRICS[metric].unit] if metric in CONTENT_METRICS.names() else []
    if "fraction" in units:
        return f"{value:.1%}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
