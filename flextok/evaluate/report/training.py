"""What the page shows of the trainings: charts of their histories in groups, and the alarms that were told."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from flextok.evaluate.report.charts import COLOURS, SHADES, Chart, Line, Mark
from flextok.evaluate.report.histories import TrainingHistory
from flextok.metrics.frechet import distance_name

TITLES = {"latents": "Stage 0", "tokenizer": "Tokenizer", "prior": "Prior"}
LOSSES = {**TITLES, "latents": "Stage 0 (latents)", "prior": "Prior, nats a token"}
SKIPPED, STALLED = "skipped_step", "data_stalled"
VALIDATION_DISTANCE = distance_name("efficientnet_lite0")
WIDE = 10
"""From this ratio of its largest to its least value a chart is on a logarithmic scale first."""
DETAIL_POINTS = 80
MOST_MODULES = 2 * COLOURS
MOST_STEPS_TOLD = 4
SPEED = "train/images_per_s"
ORDER = "Orange: few tokens, little noise; blue: all of them. 0 tokens: decoded from none; noise 1.0: from noise alone."

Make = Callable[[TrainingHistory], Chart | None]


@dataclass(frozen=True)
class Group:
    """Charts below a heading, folded where not `is_open`."""

    title: str
    charts: list[Chart]
    note: str = ""
    is_open: bool = True


def training_groups(histories: Sequence[TrainingHistory]) -> list[Group]:
    """Those that have charts."""

    def each(*makes: Make) -> list[Chart]:
        return [chart for make in makes for history in histories for chart in [make(history)] if chart is not None]

    groups = [
        Group("Loss", each(loss_chart)),
        Group("Loss by tokens kept and by noise", each(_by("train", "keep"), _by("train", "noise")), ORDER),
        Group("Codebook", each(_usage, _perplexity, _entropy), "Of the ids since the row before."),
        Group(
            "By tokens kept and by noise, held out",
            each(_by("val", "keep"), _by("val", "noise"), _distance),
            ORDER,
            False,
        ),
        Group("Parts of the losses", each(_parts), "Each without its weight.", False),
        Group(
            "Optimizer: learning rates, gradients, updates",
            each(_learning_rate, _gradients, _gradients_by_module, _updates_by_module),
            "An update is usually about 1e-3 of its weights; at 1e-5 they hardly learn, 1e-1 is not far from divergence.",
            False,
        ),
        Group("Machine: speed, waiting, MFU, memory", list(_machine(histories)), is_open=False),
    ]
    return [group for group in groups if group.charts]


def told_alarms(histories: Sequence[TrainingHistory]) -> list[str]:
    """A line for each alarm of each training, in words."""
    return [
        f"{TITLES[history.what]}, step {_listed(steps)}: {_words(name)}"
        for history in histories
        for name, steps in history.alarms().items()
    ]


def loss_chart(history: TrainingHistory) -> Chart | None:
    """The losses of a training, in it and held out; None where nothing was recorded."""
    curves = {"training": history.curves.get("train/loss"), "held out": history.curves.get("val/loss")}
    lines = [
        _line(label, curve, colour, markers=label == "held out")
        for colour, (label, curve) in enumerate(curves.items(), 1)
        if curve
    ]
    alarms = [name for name in history.alarms() if name != STALLED]
    return _chart(LOSSES[history.what], lines, history, alarms, note=_took(history))


def _parts(history: TrainingHistory) -> Chart | None:
    parts = enumerate(history.below("train/loss").items())
    lines = [_line(name, curve, index % COLOURS + 1) for index, (name, curve) in parts]
    return _chart(TITLES[history.what], lines, history)


def _by(split: str, kind: str) -> Make:
    """Makes the chart of the loss by groups of samples, in their order."""
    by = {"keep": "tokens kept", "noise": "noise"}[kind]

    return lambda history: _in_order(f"{split}/loss_by_{kind}", f"By {by}", history)


def _entropy(history: TrainingHistory) -> Chart | None:
    return _in_order("train/entropy_by_position", "Entropy by position, bits", history)


def _distance(history: TrainingHistory) -> Chart | None:
    return _in_order(f"val/{VALIDATION_DISTANCE}", f"{VALIDATION_DISTANCE} by tokens kept", history)


def _in_order(name: str, title: str, history: TrainingHistory) -> Chart | None:
    """The curves below `name`, by the numbers that they are called by, in shades from the first to the last."""
    curves = history.below(name)
    names = sorted(curves, key=lambda each: float(each.partition("-")[0]))
    step = (SHADES - 1) / max(len(names) - 1, 1)
    lines = [_line(each, curves[each], shade=round(step * index)) for index, each in enumerate(names)]
    return _chart(title, lines, history)


def _usage(history: TrainingHistory) -> Chart | None:
    return _one("train/codebook_usage", "Distinct ids / vocabulary", history, ["codebook_collapse"], from_zero=True)


def _perplexity(history: TrainingHistory) -> Chart | None:
    return _one("train/codebook_perplexity", "Perplexity", history, ["codebook_collapse"], from_zero=True)


def _learning_rate(history: TrainingHistory) -> Chart | None:
    return _one("train/lr", f"{TITLES[history.what]}, learning rate", history, [], from_zero=True)


def _gradients(history: TrainingHistory) -> Chart | None:
    title = f"{TITLES[history.what]}, gradient norm"
    return _one("train/grad_norm", title, history, ["gradient_spike", SKIPPED])


def _gradients_by_module(history: TrainingHistory) -> Chart | None:
    return _by_module("train/grad_norm", f"{TITLES[history.what]}, gradients by module", history)


def _updates_by_module(history: TrainingHistory) -> Chart | None:
    return _by_module("train/update_ratio", f"{TITLES[history.what]}, updates by module", history)


def _by_module(name: str, title: str, history: TrainingHistory) -> Chart | None:
    """Lines of positive values: weights that are all zero have neither a gradient's share nor a ratio to tell of."""
    found = {part: [each for each in curve if each[1] > 0] for part, curve in history.below(name).items()}
    curves = {part: curve for part, curve in found.items() if curve}
    largest = sorted(curves, key=lambda part: -statistics.median(value for _, value in curves[part]))[:MOST_MODULES]
    shown = [part for part in curves if part in largest]
    lines = [
        _line(part, curves[part], index % COLOURS + 1, is_dashed=index >= COLOURS) for index, part in enumerate(shown)
    ]
    note = f"the {len(shown)} largest of {len(curves)}" if len(shown) < len(curves) else ""
    return _chart(title, lines, history, note=note)


def _machine(histories: Sequence[TrainingHistory]) -> Iterator[Chart]:
    """A chart for each measure, a line for each training."""
    axis = "part of the training, %"
    for name, title in (
        (SPEED, "Images a second"),
        ("machine/data_wait", "Waiting for data / time"),
        ("machine/mfu", "MFU, part of the devices' peak"),
        ("machine/memory_gib", "Memory, GiB"),
    ):
        lines, stalls = [], []
        for colour, history in enumerate(histories, 1):
            if curve := history.curves.get(name):
                last = curve[-1][0]
                shares = [(round(100 * step / last, 1), value) for step, value in curve]
                lines.append(_line(TITLES[history.what], shares, colour))
                stalls += [100 * step / last for step in history.alarms().get(STALLED, [])]
        marks = [Mark(_words(STALLED), stalls)] if stalls and name == "machine/data_wait" else []
        if lines:
            yield Chart(title, axis, lines, log_first=name == SPEED and _is_wide(lines), from_zero=True, marks=marks)


def _one(
    name: str, title: str, history: TrainingHistory, alarms: Sequence[str], from_zero: bool = False
) -> Chart | None:
    curve = history.curves.get(name)
    return _chart(title, [_line("", curve)] if curve else [], history, alarms, from_zero)


def _chart(
    title: str,
    lines: Sequence[Line],
    history: TrainingHistory,
    alarms: Sequence[str] = (),
    from_zero: bool = False,
    note: str = "",
) -> Chart | None:
    if not lines:
        return None
    told = history.alarms()
    marks = [Mark(_words(name), told[name], is_short=name == SKIPPED) for name in alarms if name in told]
    log_first = _is_wide(lines) and not from_zero
    return Chart(title, "step", lines, note=note, from_zero=from_zero, log_first=log_first, marks=marks)


def _line(
    label: str,
    curve: Sequence[tuple[float, float]],
    colour: int = 1,
    markers: bool = False,
    shade: int | None = None,
    is_dashed: bool = False,
) -> Line:
    steps, values = zip(*curve, strict=True)
    return Line(label, steps, values, colour, markers, shade=shade, is_dashed=is_dashed, most_points=DETAIL_POINTS)


def _is_wide(lines: Sequence[Line]) -> bool:
    values = [value for line in lines for value in line.y]
    return min(values) > 0 and max(values) >= WIDE * min(values)


def _took(history: TrainingHistory) -> str:
    """How long the training was."""
    steps = max((curve[-1][0] for curve in history.curves.values()), default=0)
    hours = history.curves.get("machine/device_hours")
    return f"{steps:,} steps" + (f", {hours[-1][1]:.2g} device hours" if hours else "")


def _words(alarm: str) -> str:
    return alarm.replace("_", " ")


def _listed(steps: Sequence[int]) -> str:
    """The first of them, and how many there are."""
    first = ", ".join(f"{step:,}" for step in steps[:MOST_STEPS_TOLD])
    return first if len(steps) <= MOST_STEPS_TOLD else f"{first}, ... ({len(steps)} in all)"
