"""The report's page at work in headless Chromium: what moves, what filters, and that all can use it."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import NAMED, PROGRAMS, Browser, Page, browser, find_chromium
from tiny_pipeline import TinyPipeline

from flextok.evaluate.comparison import compare_evaluations
from flextok.evaluate.config import ReportConfig
from flextok.evaluate.report import write_report
from flextok.evaluate.report.comparison import write_comparison

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason=f"no browser: none of {', '.join(PROGRAMS)} on PATH, and {NAMED} names none"
)
SEEN = "[...document.querySelectorAll(`{}`)].filter(each => each.checkVisibility({{visibilityProperty: true}}))"


@pytest.fixture(scope="module")
def html(pipeline: TinyPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page about a tokenizer in whose training a step was left out and an alarm was told."""
    tokenizer = shutil.copytree(pipeline.tokenizer, tmp_path_factory.mktemp("alarmed") / "tokenizer")
    history = pq.read_table(tokenizer / "history.parquet")
    told = {"step": [3, 8], "name": ["alarm/skipped_step", "alarm/codebook_collapse"], "value": [7.0, 1.0]}
    pq.write_table(pa.concat_tables([history, pa.table(told, schema=history.schema)]), tokenizer / "history.parquet")
    inputs = replace(pipeline.report_inputs(), tokenizer_url=str(tokenizer))
    return Path(write_report(inputs, pipeline.evaluations, ReportConfig()).html_path)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser(find_chromium() or "") as found:
        yield found


@pytest.fixture(scope="module")
def page(chromium: Browser, html: Path) -> Page:
    return chromium.open(html)


def seen(page: Page, selector: str, of_each: str = "each.alt") -> list:
    """Of each element that can be seen, what `of_each` gives."""
    return page.js(f"{SEEN.format(selector)}.map(each => {of_each})")


def tell(page: Page, key: str, selector: str) -> str:
    """What a range input says of its value after a key."""
    page.js(f"document.querySelector('{selector}').focus()")
    page.press(key)
    return page.js(f"document.querySelector('{selector}').getAttribute('aria-valuetext')")


def test_the_slider_moves_all_reconstructions(page: Page):
    def shown() -> list[str]:
        return page.js(f"{SEEN.format('#gallery .stack img')}.map(each => each.src)")

    def stored(label: str) -> list[str]:
        return page.js(
            f"[...document.querySelectorAll('#reconstruction-table img[data-label=\"{label}\"]')].map(i => i.src)"
        )

    assert tell(page, "Home", "#keep").startswith("K = 1, 4 bits")
    assert shown() == stored("K = 1")
    assert tell(page, "ArrowRight", "#keep").startswith("K = 2, 8 bits")
    assert shown() == stored("K = 2") != stored("K = 1")
    assert tell(page, "End", "#keep") == "latents, no tokens"
    assert shown() == stored("latents")


def test_difference_and_table_are_views_of_the_same(page: Page):
    page.js("document.querySelector('input[value=difference]').click()")
    assert seen(page, "#gallery .under", "getComputedStyle(each.nextSibling).mixBlendMode") == ["difference"] * 4
    page.js("document.querySelector('input[value=table]').click()")
    assert not seen(page, "#gallery img") and len(seen(page, "#reconstruction-table img")) == 4 * 5
    page.js("document.querySelector('input[value=pictures]').click()")
    assert not seen(page, "#gallery .under") and not seen(page, "#reconstruction-table img")


def test_a_picture_is_enlarged_beside_its_original(page: Page):
    page.js("document.querySelector('#gallery button').click()")
    assert len(seen(page, "#zoom .pane")) == 3
    assert tell(page, "Home", "#zoom-keep") == "K = 1"
    assert seen(page, "#zoom-label", "each.textContent") == ["K = 1"]
    widths = [seen(page, "#zoom .canvas", "each.clientWidth")]
    page.js("document.querySelector('#zoom-factor').focus()")
    page.press("End")
    widths.append(seen(page, "#zoom .canvas", "each.clientWidth"))
    assert all(after == pytest.approx(8 * before, rel=0.2) for before, after in zip(*widths, strict=True))
    page.js("document.querySelector('#zoom-stage .pane').scrollTo(50, 30)")
    page.js("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.js("document.querySelector('#zoom-original .pane').scrollLeft") == 50
    page.press("Escape")
    assert not seen(page, "#zoom .pane")


def test_samples_are_filtered_by_class(page: Page):
    page.js("document.querySelector('#sample-filter').focus()")
    page.type("BLUE")
    rows = seen(page, "#sample-table tbody tr", "each.dataset.name")
    assert len(rows) == 4 and all("blue" in row for row in rows)
    assert page.js("document.querySelector('#sample-filter-count').textContent") == "4 of 16"


def test_the_ends_of_one_metric_are_shown(page: Page):
    assert seen(page, ".extremes", "each.getAttribute('aria-label')") == ["By Pixel error (MAE)"]
    page.js(
        "Object.assign(document.querySelector('#extremes-by'), {selectedIndex: 1}).dispatchEvent(new Event('change'))"
    )
    assert len(seen(page, ".extremes")) == 1
    assert seen(page, ".extremes", "each.getAttribute('aria-label')") != ["By Pixel error (MAE)"]


def test_a_chart_becomes_logarithmic(page: Page):
    drawn = "svg[aria-label^='Pixel error (MAE)']"
    assert seen(page, drawn, "each.classList[0]") == ["linear"]
    page.js("document.querySelector('.log-switch').click()")
    assert seen(page, drawn, "each.classList[0]") == ["log"]
    page.js("document.querySelector('.log-switch').click()")


def test_values_are_told_by_pointer_and_by_keys(page: Page):
    page.js("document.querySelector('.chart').scrollIntoView({block: 'center'})")
    box = page.js("JSON.parse(JSON.stringify(document.querySelector('.chart svg').getBoundingClientRect()))")
    page.mouse("mouseMoved", box["x"] + box["width"] - 20, box["y"] + 50)
    (told,) = seen(page, ".tip", "each.textContent")
    values = page.js("document.querySelector('.chart polyline').dataset.y").split(" ")
    first, *_, last = (f"{float(value):.4g}" for value in values)
    assert (
        told.startswith("tokens kept, K: 4") and f"reconstructions {last} [" in told and "limit of the latents" in told
    )
    page.mouse("mouseMoved", 1, 1)
    assert not seen(page, ".tip")
    words = tell(page, "Home", ".chart .reader")
    assert words.startswith(f"tokens kept, K: 1, reconstructions {first} [")
    assert seen(page, ".tip .head", "each.textContent") == ["tokens kept, K: 1"]


def test_trainings_are_told_with_their_alarms(page: Page):
    groups = seen(page, "#training ~ h3, #training ~ .group summary", "each.textContent")
    assert groups[:3] == ["Loss", "Loss by tokens kept and by noise", "Codebook"]
    assert seen(page, "ul.note li", "each.textContent") == [
        "Tokenizer, step 3: skipped step",
        "Tokenizer, step 8: codebook collapse",
    ]
    loss = "#training ~ .charts .chart:nth-child(2)"
    page.js(f"document.querySelector('{loss} .reader').value = 6")
    assert tell(page, "ArrowRight", f"{loss} .reader").endswith("codebook collapse at 8")
    page.js("document.activeElement.blur()")


def test_folded_charts_open_by_the_keyboard(page: Page):
    folded = "[...document.querySelectorAll('.group')].find(each => each.textContent.includes('Optimizer'))"
    assert not page.js(f"{folded}.querySelector('.chart').checkVisibility()")
    page.js(f"{folded}.querySelector('summary').focus()")
    page.press("Enter")
    assert page.js(f"{folded}.querySelector('.chart').checkVisibility()")
    assert serious_faults(page, ".group[open]") == []
    # Modules differ by orders: their charts begin on the logarithmic scale, here those which end the group.
    shown = f"[...{folded}.querySelectorAll('.chart:last-child svg')].filter(each => each.checkVisibility())"
    assert page.js(f"{shown}.map(each => each.classList[0])") == ["log"]


def test_cells_of_a_heat_map_are_told(page: Page):
    assert re.fullmatch(r"id 15, [\d.]+ × uniform use", tell(page, "End", ".heat .reader"))
    assert re.fullmatch(r"position 1, id 0, [\d.]+ × uniform use", tell(page, "Home", ".heat:last-child .reader"))
    page.js("document.activeElement.blur()")
    assert not seen(page, ".tip")


def serious_faults(page: Page, within: str = "body") -> list[tuple[str, str]]:
    """What axe-core calls serious or critical in what is seen of the page: rule and element."""
    if page.js("typeof axe") == "undefined":
        page.js(files("axe_core_python").joinpath("axe.min.js").read_text("utf-8") + ";0")
    faults = page.js(f"axe.run({within!r}).then(found => found.violations)")
    serious = [fault for fault in faults if fault["impact"] in ("serious", "critical")]
    return [(fault["id"], node["html"][:200]) for fault in serious for node in fault["nodes"]]


def test_axe_finds_no_serious_fault(chromium: Browser, html: Path):
    page = chromium.open(html)
    assert serious_faults(page) == []
    page.js("document.querySelector('#gallery button').click()")
    assert serious_faults(page, "#zoom") == []


def test_axe_finds_none_on_a_phone_in_the_dark(chromium: Browser, html: Path):
    assert serious_faults(chromium.open(html, width=390, height=844, dark=True)) == []


@pytest.mark.parametrize("width", [1200, 390])
def test_nothing_is_wider_than_the_window(chromium: Browser, html: Path, width: int):
    assert chromium.open(html, width=width).js("document.documentElement.scrollWidth") == width


def test_a_comparison_is_read_as_the_report_is(chromium: Browser, pipeline: TinyPipeline, tmp_path: Path):
    urls = [pipeline.reconstruction.url] * 2
    path = tmp_path / "comparison.html"
    write_comparison(str(path), compare_evaluations(urls), ["before", "after"], urls)
    page = chromium.open(path, width=390)
    said = tell(page, "End", ".chart .reader")
    assert re.fullmatch(r"tokens kept, K: 4, before ([\d.]+ \[[^]]+\]), after \1", said)
    assert page.js("document.documentElement.scrollWidth") == 390
    assert serious_faults(page) == [] and page.complaints() == [] and page.asked_for() == [path.as_uri()]
    page.js("document.querySelector('.chart label').remove(); document.querySelector('.reader').ariaLabel = ''")
    assert {rule for rule, _ in serious_faults(page)} == {"label"}  # it finds what is there


def test_without_script_all_pictures_are_seen(chromium: Browser, html: Path):
    page = chromium.open(html, script=False)
    page.call("Emulation.setScriptExecutionDisabled", value=False)
    assert len(seen(page, "#reconstruction-table img")) == 4 * 5
    assert len(seen(page, ".extremes")) == 3 and len(seen(page, "#sample-table tbody tr")) == 16
    assert not seen(page, ".controls")


def test_a_page_in_use_complains_of_nothing_and_asks_for_nothing(page: Page, html: Path):
    """After all of the above."""
    assert page.complaints() == []
    assert page.asked_for() == [html.as_uri()]
