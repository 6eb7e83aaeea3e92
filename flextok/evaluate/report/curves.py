"""Which charts the pages have."""

from collections.abc import Sequence

from flextok.data.codecs import CODECS
from flextok.evaluate.coded import ENTROPY, PRIOR
from flextok.evaluate.comparison import ComparedNumber
from flextok.evaluate.rate import BY_BYTES, TOKENS
from flextok.evaluate.report.charts import COLOURS, Chart, Level, Line
from flextok.evaluate.report.numbers import RANDOM_TOKENS, Numbers
from flextok.evaluate.results import EvaluationResult
from flextok.metrics.base import IMAGE_METRICS, INCEPTION, SET_METRICS

K_AXIS = "tokens kept, K"
CODED = {ENTROPY: "tokens, by entropy", PRIOR: "tokens, by the prior"}


def quality_charts(numbers: Numbers) -> list[Chart]:
    """Each metric that was measured, over the number of tokens."""
    stored = numbers.stored

    def curve(name: str, label: str, colour: int) -> Line:
        values = stored.curve(name)
        return Line(label, list(values), list(values.values()), colour, ends=numbers.ends(name))

    charts = [
        Chart(
            metric.title,
            K_AXIS,
            [curve(metric.name, "reconstructions", 1)],
            [Level("limit of the latents", stored.value(f"latents_{metric.name}"))],
            f"{metric.better} is better",
            log2_x=True,
            from_zero=metric.better == "lower",
        )
        for metric in numbers.image_metrics()
        if metric.in_summary
    ]
    charts += [
        Chart(
            name,
            K_AXIS,
            [curve(name, "reconstructions", 1), curve(f"{name}_samples", "samples of the prior", 2)],
            [Level(f"random tokens, K={k}", value, 4) for k, value in stored.curve(f"{name}{RANDOM_TOKENS}").items()],
            f"{metric.hint}; {metric.reading}",
            log2_x=True,
            from_zero=metric.better == "lower",
        )
        for name, metric in numbers.set_metrics().items()
    ]
    return charts


def comparison_charts(numbers: Sequence[ComparedNumber], labels: Sequence[str]) -> list[Chart]:
    """Each number that evaluations have by K, a line for each of these."""
    charts = []
    for name in dict.fromkeys(number.name for number in numbers if number.k is not None):
        by_k = [number for number in numbers if number.name == name and number.k is not None]
        lines = (_line_of(label, by_k, index) for index, label in enumerate(labels))
        better = _better(name)
        note = f"{better} is better" if better else ""
        charts.append(Chart(name, K_AXIS, [line for line in lines if line.x], note=note, log2_x=True))
    return charts


def _better(name: str) -> str:
    """Which numbers of that name are better, as its metric says; "" where there is none."""
    if name in IMAGE_METRICS.names():
        return IMAGE_METRICS[name].better
    number = name.removesuffix("_samples")
    parts = number.split("_")
    extractors = [INCEPTION, *("_".join(parts[place:]) for place in range(1, len(parts)))]
    named = (metric.better for metric in SET_METRICS if any(metric.number_name(each) == number for each in extractors))
    return next(named, "")


def _line_of(label: str, by_k: Sequence[ComparedNumber], index: int) -> Line:
    """Those of the evaluation `index`, with their intervals if all have one."""
    found = [(number.k, number.values[index], number.intervals[index]) for number in by_k]
    points = [(k, value, ends) for k, value, ends in found if k is not None and value is not None]
    ends = [ends for *_, ends in points if ends is not None]
    values = [value for _, value, _ in points]
    colour = index % COLOURS + 1
    return Line(label, [k for k, *_ in points], values, colour, ends=ends if len(ends) == len(points) else ())


def rate_charts(numbers: Numbers) -> list[Chart]:
    """Each metric over the bytes of an image, of tokens as they are and coded, and of the codecs that were measured; none
    without codecs."""
    series = {item["name"]: item for item in numbers.stored.series}
    charts = []
    for metric in filter(lambda metric: metric.in_summary, numbers.image_metrics()):
        if f"{TOKENS}_{metric.name}{BY_BYTES}" not in series:
            continue
        names = (TOKENS, *CODECS.names(), ENTROPY, PRIOR)
        named = ((name, series.get(f"{name}_{metric.name}{BY_BYTES}")) for name in names)
        lines = [
            Line(CODED.get(name, name), item["at"], item["values"], colour)
            for colour, (name, item) in enumerate(named, 1)
            if item
        ]
        note = f"{metric.better} is better; files of codecs with their headers"
        charts.append(Chart(f"{metric.title}, by bytes", "bytes of an image", lines, note=note, log2_x=True))
    return charts


def token_charts(numbers: EvaluationResult) -> list[Chart]:
    """What ids cost and how much of the codebook is in use, by position and by K."""
    axis = "position in the sequence"
    series = {item["name"]: item for item in numbers.series}

    def line(name: str, label: str, colour: int) -> Line:
        return Line(label, series[name]["at"], series[name]["values"], colour, markers=len(series[name]["at"]) <= 32)

    entropies = [
        line("train_entropy_by_position", "entropy of train ids", 3),
        line("val_entropy_by_position", "entropy of held-out ids", 4),
        line("prior_loss_by_position", "prior's held-out loss", 2),
    ]
    usage = [line("codebook_usage_by_position", "distinct ids / vocabulary", 1)]
    rates = [
        Line(label, list(curve), list(curve.values()), colour)
        for colour, label, name in (
            (3, "plain: log2 of the vocabulary", "bits_per_image"),
            (1, "entropy of the train ids", "entropy_bits_per_image"),
        )
        for curve in [numbers.curve(name)]
    ]
    coded = numbers.curve("prior_bytes_per_image")
    rates.append(Line("code by the prior, held out", list(coded), [8 * size for size in coded.values()], 2))
    return [
        Chart("Bits a token", axis, entropies, note="the gap is what the prior has learned", from_zero=True),
        Chart("Codebook usage", axis, usage, note="on train tokens", from_zero=True),
        Chart("Bits an image", "tokens kept, K", rates, note="each position coded alone", log2_x=True, from_zero=True),
    ]
