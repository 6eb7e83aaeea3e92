"""The training section of the page: what of the histories is shown, where, and how much of it."""

from collections.abc import Mapping

import pytest
from tiny_pipeline import TinyPipeline

from flextok.evaluate.report.charts import Line
from flextok.evaluate.report.histories import Curve, TrainingHistory, read_history
from flextok.evaluate.report.training import MOST_MODULES, Group, told_alarms, training_groups

STEPS = range(10, 110, 10)


def flat(*names: str, value: float = 1.0) -> dict[str, Curve]:
    return {name: [(step, value) for step in STEPS] for name in names}


def groups_of(curves: Mapping[str, Curve], what: str = "tokenizer") -> dict[str, Group]:
    return {group.title: group for group in training_groups([TrainingHistory(what, "0" * 64, curves)])}


def test_all_that_a_training_recorded_has_a_place(pipeline: TinyPipeline):
    trained = {"latents": pipeline.latents, "tokenizer": pipeline.tokenizer, "prior": pipeline.prior}
    histories = [read_history(what, url) for what, url in trained.items()]
    groups = training_groups(histories)
    shown = {tuple(line.y) for group in groups for chart in group.charts for line in chart.lines}
    for history in histories:
        for name, curve in history.curves.items():
            values = tuple(value for _, value in curve)
            positive = tuple(value for value in values if value > 0)  # of modules
            assert {values, positive} & shown or name.startswith("alarm/") or name == "machine/device_hours", name
    assert [group.title for group in groups if group.is_open] == [
        "Loss",
        "Loss by tokens kept and by noise",
        "Codebook",
    ]
    assert [chart.title for chart in groups[0].charts] == ["Stage 0 (latents)", "Tokenizer", "Prior, nats a token"]


def test_groups_of_samples_stand_in_their_order():
    names = ["17-32", "0", "3-4", "2", "1", "9-16", "5-8"]
    (chart,) = groups_of(flat(*(f"train/loss_by_keep/{name}" for name in names)))[
        "Loss by tokens kept and by noise"
    ].charts
    assert [line.label for line in chart.lines] == ["0", "1", "2", "3-4", "5-8", "9-16", "17-32"]
    assert chart.lines[0].style == "s0" and chart.lines[-1].style == "s9"


def test_alarms_and_skipped_steps_are_marked_where_they_matter():
    curves = flat("train/loss", "train/grad_norm", "train/codebook_perplexity", "machine/data_wait")
    skipped = [(step, -1.0) for step in range(3, 20)]
    alarms = {"alarm/codebook_collapse": [(50, 1.0)], "alarm/data_stalled": [(20, 1.0)], "alarm/skipped_step": skipped}
    groups = groups_of({**curves, **alarms})
    marks = {
        chart.title: {mark.label: list(mark.x) for mark in chart.marks}
        for group in groups.values()
        for chart in group.charts
    }
    steps = list(range(3, 20))
    assert marks["Tokenizer"] == {"codebook collapse": [50], "skipped step": steps}
    assert marks["Perplexity"] == {"codebook collapse": [50]}
    assert marks["Tokenizer, gradient norm"] == {"skipped step": steps}
    assert marks["Waiting for data / time"] == {"data stalled": [20]}
    assert told_alarms([TrainingHistory("tokenizer", "", alarms)]) == [
        "Tokenizer, step 50: codebook collapse",
        "Tokenizer, step 20: data stalled",
        "Tokenizer, step 3, 4, 5, 6, ... (17 in all): skipped step",
    ]
    # The first of them came before the first row: the axis begins there.
    svg = groups["Loss"].charts[0].svg()
    assert 'd="M48.0 186V200' in svg and svg.count('class="mark"') == 2


def test_only_the_largest_of_many_modules_are_drawn():
    curves: dict[str, Curve] = {}
    for index in range(MOST_MODULES + 3):
        curves |= flat(f"train/update_ratio/m{index}", value=1e-3 * (index + 1))
    (chart,) = next(iter(groups_of(curves).values())).charts
    assert [line.label for line in chart.lines] == [f"m{index}" for index in range(3, MOST_MODULES + 3)]
    assert chart.note == f"the {MOST_MODULES} largest of {MOST_MODULES + 3}"
    assert len({line.style for line in chart.lines}) == MOST_MODULES


def test_a_module_without_gradients_has_no_line():
    curves = flat("train/grad_norm/head") | flat("train/grad_norm/zeros", value=0.0)
    (chart,) = next(iter(groups_of(curves).values())).charts
    assert [line.label for line in chart.lines] == ["head"] and chart.has_log


@pytest.mark.parametrize("rows", [1, 80, 81, 10_000])
def test_what_stands_out_is_drawn_however_many_rows_there_are(rows: int):
    values = [1.0] * rows
    values[rows // 2] = 9.0
    drawn = Line("loss", range(rows), values, most_points=80).drawn()
    assert len(drawn) <= 82
    assert (rows // 2, 9.0) in drawn and drawn[0][0] == 0 and drawn[-1][0] == rows - 1
    assert drawn == sorted(drawn)
