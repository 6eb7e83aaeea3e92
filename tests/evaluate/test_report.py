"""The report's page: self-contained, safe, and saying nothing that metrics.json does not."""

import base64
import hashlib
import html.parser
import io
import itertools
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_pipeline import EVALUATION, TinyPipeline

from flextok.data.images import read_png, to_png
from flextok.data.tokens import TokenStore
from flextok.evaluate.config import ReportConfig
from flextok.evaluate.extremes import EACH, EXTREMES
from flextok.evaluate.generation import evaluate_generation
from flextok.evaluate.reconstruction import evaluate_reconstruction
from flextok.evaluate.report import ReportResult, write_report
from flextok.evaluate.report.charts import Chart, Line
from flextok.evaluate.report.heatmaps import MOST_CELLS, codebook_map, position_map
from flextok.evaluate.report.pictures import ENCODINGS, Album
from flextok.evaluate.report.ticks import log_ticks, nice_ticks
from flextok.evaluate.sampling import sample_images
from flextok.metrics.base import IMAGE_METRICS
from flextok.provenance import lineage

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>'


class Page(html.parser.HTMLParser):
    """Tags, attributes, contents of scripts and styles, and the numbers in <data value=...> elements."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.numbers: list[float] = []
        self.texts: list[tuple[str, str]] = []
        """Tag (with type, of a script) and content of scripts and styles."""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.attributes += found.items()
        self.elements.append((tag, found))
        if tag == "data":
            self.numbers.append(float(found["value"]))

    def handle_data(self, data: str) -> None:
        tag, attributes = self.elements[-1] if self.elements else ("", {})
        if tag in ("script", "style"):
            self.texts.append((f"{tag} {attributes.get('type', '')}".strip(), data))

    def handle_endtag(self, tag: str) -> None:
        self.elements.append((f"/{tag}", {}))


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
    assert all(target.startswith(("data:image/", "#")) for target in targets)
    assert not {"link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert not re.search(r"url\s*\(|@import|https?://", text)


def test_only_its_own_script_and_style_may_work(text: str):
    page = Page(text)
    (policy,) = [
        found["content"] for tag, found in page.elements if found.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    contents = dict(page.texts)
    assert list(contents) == ["style", "script application/json", "script"]
    for name in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(contents[name].encode()).digest()).decode()
        assert rules[f"{name}-src"] == f"'sha256-{digest}'"
    assert rules == {
        **rules,
        "default-src": "'none'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    # Neither would work under that policy.
    assert not [name for name, _ in page.attributes if name == "style" or name.startswith("on")]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", contents["script"])


def test_pictures_say_what_they_are(text: str):
    images = [found for tag, found in Page(text).elements if tag == "img" and "src" in found]
    assert len(images) > 100
    assert all(found["alt"] for found in images)
    assert {"red disk, original", "red disk, K = 4", "red disk, latents"} & {found["alt"] for found in images}


def test_all_is_there_without_javascript(text: str):
    page = Page(text)
    hidden = [found for _, found in page.elements if "hidden" in found]
    # What only the script can serve, and the empty place for what it makes.
    assert all("js-only" in found["class"].split() for found in hidden)
    rows = [found for tag, found in page.elements if tag == "tr" and "data-caption" in found]
    assert len(rows) == EVALUATION.grid_images + 16
    charts = [found for tag, found in page.elements if tag == "svg"]
    assert len(charts) > 10 and all(", over " in found["aria-label"] for found in charts)


def test_heat_maps_are_the_counts(pipeline: TinyPipeline, report: ReportResult, text: str):
    written = json.loads(Path(report.url, "report/heatmaps.json").read_text())
    (shown,) = [content for tag, content in Page(text).texts if tag == "script application/json"]
    assert json.loads(shown) == written
    ids = TokenStore.open(pipeline.train_tokens).ids()
    codebook, by_position = written
    cells = [value for row in codebook["values"] for value in row if value is not None]
    assert cells == pytest.approx([np.mean(ids == each) * 16 for each in range(16)], rel=1e-2)
    for position, row in enumerate(by_position["values"]):
        assert row == pytest.approx([np.mean(ids[:, position] == each) * 16 for each in range(16)], rel=1e-2)


def test_heat_maps_of_large_vocabularies_are_binned():
    counts_LV = np.random.default_rng(0).integers(0, 9, (200, 10_007))
    codebook, by_position = (codebook_map(counts_LV.sum(axis=0)), position_map(counts_LV))
    assert codebook.values_RC.size <= 2 * MOST_CELLS and by_position.values_RC.shape == (50, 127)
    # Cells tell of as many ids as they hold, the last one of fewer: uniform use is 1 everywhere.
    uniform = position_map(np.ones((200, 10_007), np.int64))
    assert uniform.values_RC == pytest.approx(1)
    row = counts_LV[4:8].sum(axis=0)
    assert by_position.values_RC[1, 2] == pytest.approx(row[158:237].sum() / row.sum() * 10_007 / 79)


def test_the_ends_of_a_metric_are_those_of_all_images(pipeline: TinyPipeline):
    values = pq.read_table(f"{pipeline.reconstruction.url}/images.parquet").to_pylist()
    ends = pq.read_table(f"{pipeline.reconstruction.url}/extremes.parquet").to_pylist()
    for name, lower in (("mae", True), ("psnr", False)):
        ranked = sorted((row[name], row["key"]) for row in values if row["k"] == 4)
        for end in ("best", "worst"):
            expected = ranked[:EACH] if lower == (end == "best") else ranked[::-1][:EACH]
            found = [row for row in ends if row["metric"] == name and row["end"] == end]
            assert [(row["value"], row["key"]) for row in found] == expected
    for row in ends:
        images, originals = read_png(row["png"])[None], read_png(row["original"])[None]
        assert IMAGE_METRICS[row["metric"]](images, originals)[0] == pytest.approx(row["value"])


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
        "Stage 0 (latents)", "Loss by tokens kept and by noise", "Prior, nats a token", "fd_random_conv_samples", "how it was measured",
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


def test_pictures_are_lossless_where_that_is_small_enough():
    noise = np.random.default_rng(0).integers(0, 256, (70, 128, 128, 3), np.uint8)
    few, many = Album(), Album()
    for image in noise:
        many.add(to_png(image))
    numbers = [few.add(to_png(image)) for image in noise[[0, 1, 0]]]
    assert numbers == [0, 1, 0]
    encoding, uris = few.written()
    assert encoding == ENCODINGS[0] and len(uris) == 2
    for uri, image in zip(uris, noise, strict=False):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))), image)
    chosen, uris = many.written()
    assert chosen == next(each for each in ENCODINGS if each.quality is not None)
    assert sum(map(len, uris)) < 4_000_000
    for number in [0, 1] * 40:
        assert few.add(to_png(noise[number])) == number
    encoding, uris = few.written()
    assert encoding != ENCODINGS[0] and len(uris) == 2  # on the page they stand each time that they are shown


def test_evaluations_without_pictures_have_a_page(pipeline: TinyPipeline, tmp_path: Path):
    config = EVALUATION.model_copy(update={"grid_images": 0, "max_images": 8})
    bare = evaluate_reconstruction(pipeline.tokenizer, pipeline.val, str(tmp_path), config)
    assert not Path(bare.url, EXTREMES).exists()
    inputs = type(pipeline.report_inputs())(**{**vars(pipeline.report_inputs()), "reconstruction_url": bare.url})
    page = Page(Path(write_report(inputs, str(tmp_path), ReportConfig()).html_path).read_text())
    places = {found["id"] for _, found in page.elements if "id" in found}
    assert {"reconstructions", "samples"} <= places and not {"keep", "extremes"} & places


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


@pytest.mark.parametrize(
    ("low", "high"), [(1e-6, 3.0), (0.02, 0.9), (0.17, 0.26), (0.9, 1.1), (5, 5), (1, 10), (30, 4e5)]
)
def test_logarithmic_ticks_span_their_range(low: float, high: float):
    ticks = log_ticks(low, high)
    assert 3 <= len(ticks) <= 10
    assert 0 < ticks[0] <= low and ticks[-1] >= high
    assert ticks == sorted(set(ticks))


def test_a_logarithmic_chart_has_its_points_at_equal_ratios():
    chart = Chart("loss", "step", [Line("train", [1, 2, 3], [1.0, 10.0, 100.0])])
    assert chart.has_log and not Chart("loss", "step", [Line("train", [1, 2], [0.0, 1.0])]).has_log
    (points,) = re.findall(r'points="([^"]*)"', chart.svg(log_y=True))
    bottom, middle, top = (float(pair.split(",")[1]) for pair in points.split())
    assert bottom - middle == pytest.approx(middle - top)
    # The values are told once, and those of x where they change.
    lines = [Line("a", [1, 2], [1, 2]), Line("b", [1, 2], [2, 3]), Line("c", [2, 3], [3, 1])]
    assert re.findall(r'data-x="([^"]*)"', Chart("loss", "step", lines).svg()) == ["1 2", "2 3"]
    assert "data-y" not in chart.svg(log_y=True)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.17, 0.26), (-3, 8), (5, 5), (0, 0), (1e-9, 2e-9), (120, 9000)])
def test_ticks_span_their_range(low: float, high: float):
    ticks = nice_ticks(low, high)
    assert 3 <= len(ticks) <= 9
    assert ticks[0] <= low and ticks[-1] >= high
    assert len({round(b - a, 12) for a, b in itertools.pairwise(ticks)}) <= 2
