"""Tables of docs/results.md from a report: every metric over K, and rate and distortion beside the codecs.

    python -m flextok.bench.results workspace/evaluation/DIGEST

DIGEST is a report's: it has the numbers of reconstructions and samples.
"""

import argparse
from collections.abc import Iterator, Sequence

from flextok.data.codecs import CODECS
from flextok.evaluate.rate import BY_BYTES, TOKENS
from flextok.evaluate.report.numbers import Numbers
from flextok.evaluate.results import OF_LATENTS, EvaluationResult, read_evaluation


def metric_rows(numbers: Numbers) -> Iterator[list[str]]:
    """A row for each metric, reconstructions and samples apart, with half of its 95 % interval where that is known."""
    keeps = numbers.keeps()
    yield ["", *(f"K = {keep}" for keep in keeps), "latents"]
    images = [metric.name for metric in numbers.image_metrics()]
    sets = [name for each in numbers.set_metrics() for name in (each, f"{each}_samples")]
    for name in (*images, *sets):
        curve, ends = numbers.curve(name), dict(zip(numbers.curve(name), numbers.ends(name), strict=False))
        cells = [_cell(curve.get(keep), ends.get(keep)) for keep in keeps]
        latents = f"{OF_LATENTS}{name}"
        yield [f"`{name}`", *cells, _cell(numbers.stored.value(latents)) if latents in numbers else ""]


def rate_rows(result: EvaluationResult, metric: str) -> Iterator[list[str]]:
    """Tokens and codecs as rows, bytes of an image as columns; empty where not every image has a file so small."""
    series = {item["name"]: dict(zip(item["at"], item["values"], strict=True)) for item in result.series}
    found = {name: series.get(f"{name}_{metric}{BY_BYTES}", {}) for name in (TOKENS, *CODECS.names())}
    sizes = sorted({size for curve in found.values() for size in curve})
    yield [f"`{metric}`, bytes", *map(str, sizes)]
    for name, curve in found.items():
        if curve:
            yield [name, *(_cell(curve.get(size)) for size in sizes)]


def _cell(value: float | None, ends: tuple[float, float] | None = None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if ends is None else f"{value:.3g} ± {(ends[1] - ends[0]) / 2:.2g}"


def _table(rows: Iterator[Sequence[str]]) -> str:
    head, *rest = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rest))


def main() -> None:
    """Print the tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("report")
    result = read_evaluation(parser.parse_args().report)
    numbers = Numbers(result)
    print(_table(metric_rows(numbers)))
    for metric in numbers.image_metrics():
        if any(item["name"] == f"{TOKENS}_{metric.name}{BY_BYTES}" for item in result.series):
            print(f"\n{_table(rate_rows(result, metric.name))}")


if __name__ == "__main__":
    main()
