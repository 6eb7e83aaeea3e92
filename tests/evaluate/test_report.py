"""The report's page: self-contained, safe, and saying nothing that metrics.json does not."""

import html.parser
import itertools
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tiny_pipeline import EVALUATION, TinyPipeline

from flextok.evaluate.config import ReportConfig
from flextok.evaluate.generation import evaluate_generation
from flextok.evaluate.report import ReportResult, write_report
from flextok.evaluate.report.charts import Chart, Line, nice_ticks
from flextok.evaluate.sampling import sample_images
from flextok.provenance import lineage

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>'


class Page(html.parser.HTMLParser):
    """Tags, attributes and the numbers in <data value=...> elements."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.numbers: list[float] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "data":
            self.numbers.append(float(dict(attrs)["value"] or "nan"))


@pytest.fixture(scope="module")
def report(pipeline: TinyPipeline) -> ReportResult:
    """A report on samples whose class names are an attack."""
    hostile = sample_images(pipeline.prior, pipeline.tokenizer, str(pipeline.root / "samples"), EVALUATION, [EVIL] * 16)
    generation = evaluate_generation(hostile.url, pipeline.val, pipeline.tokenizer, pipeline.evaluations, EVALUATION)
    inputs = pipeline.report_inputs()
    inputs = type(inputs)(**{**vars(inputs), "samples_url": hostile.url, "generation_url": generation.url})
    return write_report(inputs, pipeline.evaluations, ReportConfig(title=f"Report {EVIL}"))


@pytest.fixture(scope="module")
def text(report: ReportResult) -> str:
    return Path(report.html_path).read_text()


def test_page_asks_for_nothing_from_outside(text: str):
    page = Page(text)
    targets = [value for name, value in page.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert targets
    assert all(target.startswith(("data:image/png;base64,", "#")) for target in targets)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert not re.search(r"url\s*\(|@import|https?://", text)


def test_captions_and_title_are_escaped(text: str):
    assert EVIL not in text
    assert "&lt;script&gt;alert(" in text
    assert not [name for name, _ in Page(text).attributes if name.startswith("on")]


def test_every_number_on_the_page_is_in_metrics_json(report: ReportResult, text: str):
    document = json.loads(Path(report.url, "metrics.json").read_text())
    known = {item[field] for item in document["metrics"] for field in ("value", "standard_error") if field in item}
    numbers = Page(text).numbers
    assert len(numbers) > len(document["metrics"])
    assert set(numbers) <= known
    assert {item["value"] for item in document["metrics"]} <= set(numbers)
    assert all(item["protocol"] for item in document["metrics"])


def test_page_shows_what_the_issue_asks_for(text: str):
    for wanted in (
        "K = 1", "K = 2", "K = 4", "original", "latents", "random tokens", "small sample", "Codebook usage",
        "Stage 0 (latents)", "Tokenizer, flow loss", "Prior, nats a token", "fd_random_conv_samples", "how it was measured",
    ):  # fmt: skip
        assert wanted in text, wanted


def test_links_lead_somewhere(text: str):
    page = Page(text)
    places = {value for name, value in page.attributes if name == "id"}
    assert {value[1:] for name, value in page.attributes if name == "href"} <= places


def test_digest_is_reproducible_and_follows_the_title(pipeline: TinyPipeline):
    first, again, other = (
        write_report(pipeline.report_inputs(), pipeline.evaluations, ReportConfig(title=title))
        for title in ("one", "one", "two")
    )
    assert first.digest == again.digest
    assert first.digest != other.digest


def test_lineage_names_every_stage(report: ReportResult):
    def kinds(node: dict) -> set[str]:
        return {node["kind"]}.union(*(kinds(child) for child in node["inputs"]))

    assert kinds(lineage(report.url)) >= {
        "report", "reconstructions", "generation", "samples", "prior", "tokens", "tokenizer", "vae", "corpus",
    }  # fmt: skip


def test_charts_escape_their_texts_and_stay_inside():
    svg = Chart(EVIL, "K", [Line(EVIL, [1, 2, 4], [0.3, 0.2, 0.1])], log2_x=True).svg()
    assert "<script" not in svg and "<img" not in svg
    points = re.search(r'points="([^"]*)"', svg)
    assert points
    assert [float(x) for x in re.findall(r"([\d.]+),", points[1])] == [48.0, 198.0, 348.0]


def test_a_chart_is_a_file_of_its_own():
    chart = Chart(
        EVIL, "step", [Line(EVIL, [1, 2], [3.0, 2.0], markers=False), Line("once", [2], [2.5], markers=False)]
    )
    elements = list(ElementTree.fromstring(chart.file()).iter())
    tags = [element.tag.removeprefix("{http://www.w3.org/2000/svg}") for element in elements]
    assert set(tags) == {"svg", "style", "text", "line", "polyline", "circle", "title"}
    assert tags.count("circle") == 1  # a line through one point would not be seen
    assert [element.text for element in elements].count(EVIL) == 2


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.17, 0.26), (-3, 8), (5, 5), (0, 0), (1e-9, 2e-9), (120, 9000)])
def test_ticks_span_their_range(low: float, high: float):
    ticks = nice_ticks(low, high)
    assert 3 <= len(ticks) <= 9
    assert ticks[0] <= low and ticks[-1] >= high
    assert len({round(b - a, 12) for a, b in itertools.pairwise(ticks)}) <= 2
