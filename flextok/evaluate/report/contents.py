"""Charts of what recognisers make of images, and of the parts of a corpus beside each other."""

from collections.abc import Iterator
from typing import Any

from flextok.evaluate.contents import OF_ORIGINALS
from flextok.evaluate.report.charts import COLOURS, Chart, Level, Line
from flextok.evaluate.report.curves import K_AXIS
from flextok.evaluate.report.numbers import Numbers
from flextok.evaluate.results import OF_LATENTS
from flextok.evaluate.slices import BY, SLICE
from flextok.metrics.base import CONTENT_METRICS, Quantity


def content_charts(numbers: Numbers) -> list[Chart]:
    """Each number of a recogniser over the tokens kept, beside the originals' and the latents'."""
    charts = []
    for name, metric in _contents(numbers).items():
        curve = numbers.curve(name)
        levels = [
            Level(label, numbers.pick(place)["value"], colour)
            for label, place, colour in (
                ("originals", f"{name}{OF_ORIGINALS}", 4),
                ("limit of the latents", f"{OF_LATENTS}{name}", 3),
            )
            if place in numbers
        ]
        line = Line("reconstructions", list(curve), list(curve.values()), 1, ends=numbers.ends(name))
        note = f"{metric.hint}; {metric.better} is better"
        charts.append(Chart(_title(metric, name), K_AXIS, [line], levels, note, log2_x=True, from_zero=True))
    return charts


def slice_charts(numbers: Numbers) -> list[Chart]:
    """Each metric of images and contents by slice: over the slices where these are numbers, else over K with a line for each."""
    charts = []
    metrics = {metric.name: metric for metric in numbers.image_metrics() if metric.in_summary}
    for name, metric in {**metrics, **_contents(numbers)}.items():
        for column in _columns(numbers, name):
            over_values = _over_values(numbers, name, column)
            lines, axis = (over_values, column) if over_values else (_over_k(numbers, name, column), K_AXIS)
            if not over_values and len(lines) < 2:
                continue  # all that have the number are of one slice
            note = f"{metric.better} is better"
            from_zero = metric.better == "lower" or name not in metrics
            title = f"{_title(metric, name)}, by {column}"
            charts.append(Chart(title, axis, lines, note=note, log2_x=axis == K_AXIS, from_zero=from_zero))
    return charts


def _contents(numbers: Numbers) -> dict[str, Quantity]:
    """The metrics of contents by what their numbers are called."""
    found: dict[str, Quantity] = {}
    for item in numbers.stored.metrics:
        protocol = item["protocol"]
        if "recogniser" in protocol and SLICE not in protocol and item["k"] is not None:
            found[item["name"]] = CONTENT_METRICS[protocol["metric"]]
    return found


def _title(metric: Quantity, name: str) -> str:
    recogniser = name.removeprefix(metric.name).strip("_")
    return f"{metric.title} ({recogniser})" if recogniser else metric.title


def _of(numbers: Numbers, name: str) -> Iterator[dict[str, Any]]:
    """The numbers of slices of the number `name`."""
    return (item for item in numbers.stored.metrics if item["protocol"].get(SLICE, {}).get("of") == name)


def _columns(numbers: Numbers, name: str) -> list[str]:
    return list(dict.fromkeys(item["protocol"][SLICE]["by"] for item in _of(numbers, name)))


def _series(numbers: Numbers, name: str, column: str) -> list[dict[str, Any]]:
    return [item for item in numbers.stored.series if item["name"] == f"{name}{BY}{column}"]


def _over_values(numbers: Numbers, name: str, column: str) -> list[Line]:
    """A line for each K, of as many as there are colours for, and the originals."""
    curves = _series(numbers, name, column)
    originals = _series(numbers, f"{name}{OF_ORIGINALS}", column)
    most = COLOURS - len(originals)
    chosen = sorted({round(place * (len(curves) - 1) / max(most - 1, 1)) for place in range(most)}) if curves else []
    labelled = [(f"K={curves[place]['protocol']['keep']}", curves[place]) for place in chosen]
    labelled += [("originals", item) for item in originals]
    return [Line(label, item["at"], item["values"], colour) for colour, (label, item) in enumerate(labelled, 1)]


def _over_k(numbers: Numbers, name: str, column: str) -> list[Line]:
    """A line for each slice, of as many as there are colours for."""
    curves: dict[str, dict[int, float]] = {}
    for item in _of(numbers, name):
        if item["protocol"][SLICE]["by"] == column:
            curves.setdefault(str(item["protocol"][SLICE]["value"]), {})[item["k"]] = item["value"]
    first = list(curves.items())[:COLOURS]
    return [Line(label, list(curve), list(curve.values()), colour) for colour, (label, curve) in enumerate(first, 1)]
