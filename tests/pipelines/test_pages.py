"""The pages of assets: each shows what people look for, in small pictures; what goes wrong with one harms nothing."""

import base64
import io
import re
import shutil
from collections.abc import Iterator
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import dagster as dg
import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image
from shrunk_smoke import Built

from flextok.data.corpus.reader import Corpus
from flextok.data.images import to_png
from flextok.evaluate.results import Metric, read_evaluation, write_evaluation
from flextok.runtime.compute import ComputeConfig
from pipelines import cli, metadata, pages, staleness
from pipelines.commands.train import FileRun
from pipelines.execute import open_executor
from pipelines.recipe import load_recipe
from pipelines.stage import Made, Page, Pictures, Stage, StageRun, register
from pipelines.stages import STAGES
from pipelines.thumbnails import MAX_PICTURE_BYTES, small_file
from pipelines.workspace import Workspace

EVIL = '<script>alert("x")</script> ![x](javascript:alert(1)) <img src=x onerror=a> [a](b) www.x.org `c` \n\n# d | *e*'
ALWAYS = {"settings", "duration_s"}
OF_FILES = {*ALWAYS, "dagster/uri", "path", "dagster/size_bytes", "cpu_hours"}
SHOWN = {
    "corpus": ALWAYS,
    "image_shards": {*OF_FILES, "pictures", "images_per_s", "dagster/row_count", "shards", "rejects"},
    "latents": {*OF_FILES, "loss_curve", "train/curve", "steps", "train/loss", "train/images_per_s"},
    "tokenizer": {*OF_FILES, "loss_curve", "train/curve", "steps", "train/loss", "train/images_per_s"},
    "reconstructions": {*OF_FILES, "pictures", "metrics", "images_per_s", "mae@1", "mae@4", "mae_reduction"},
    "token_shards": {*OF_FILES, "dagster/row_count", "vocabulary_use", "bytes_per_image", "images_per_s"},
    "prior": {*OF_FILES, "loss_curve", "train/curve", "val/curve", "steps", "train/loss", "val/loss"},
    "samples": {*OF_FILES, "pictures", "images_per_s", "dagster/row_count"},
    "fid": {*OF_FILES, "metrics", "images_per_s"},
    "report": {*OF_FILES, "report", "html"},
}
KEEPS = [1, 2, 4]


@pytest.fixture(scope="module")
def materialized(built: Built) -> dict[str, dict[str, Any]]:
    """The metadata of the latest result of each stage, as Dagster's values; of a partitioned one that of train."""
    found = {}
    with open_executor(load_recipe(str(built.profile)), str(built.workspace)) as executor:
        for key in executor.graph.keys:
            partition = next(iter(executor.graph.partitions(key)))
            record: Any = staleness.latest_record(executor.instance, key, partition)
            found[key.path[-1]] = record.asset_materialization.metadata
    return found


def picture(value: Any) -> tuple[str, bytes]:
    """Media type and bytes of the one picture in a Markdown value."""
    assert isinstance(value, dg.MarkdownMetadataValue) and len(value.value) < 100_000
    ((kind, content),) = re.findall(r"!\[[a-z ]+\]\(data:([a-z+/]+);base64,([A-Za-z0-9+/=]+)\)", value.value)
    return kind, base64.b64decode(content)


@pytest.mark.parametrize("stage", SHOWN)
def test_each_stage_shows_what_people_look_for(stage: str, materialized: dict[str, dict[str, Any]]):
    found = materialized[stage]
    assert set(found) >= SHOWN[stage]
    size = found.get("dagster/size_bytes")
    assert size is None or size.value > 0
    assert list(found)[-1] == "settings"  # the longest comes last
    assert "cost" not in found


@pytest.mark.parametrize(
    ("stage", "size"), [("image_shards", (4, 4)), ("reconstructions", (5, 3)), ("samples", (3, 6))]
)
def test_pictures_are_grids_of_small_files(stage: str, size: tuple[int, int], materialized: dict[str, dict[str, Any]]):
    kind, content = picture(materialized[stage]["pictures"])
    assert kind == "image/png"
    image = Image.open(io.BytesIO(content))
    assert image.size == tuple(66 * count - 2 for count in size)
    assert np.asarray(image).std() > 1


def test_pictures_of_shards_have_their_captions(built: Built, materialized: dict[str, dict[str, Any]]):
    texts = Corpus.open(f"{built.workspace}/corpora/scenes/train").index("text")["text"].to_list()
    shown = MarkdownIt().render(materialized["image_shards"]["pictures"].value)
    assert re.findall(r"<li><code>(.*)</code></li>", shown) == texts[:16]


@pytest.mark.parametrize("stage", ["latents", "tokenizer", "prior"])
def test_curves_are_pictures_by_themselves(stage: str, materialized: dict[str, dict[str, Any]]):
    kind, content = picture(materialized[stage]["loss_curve"])
    assert kind == "image/svg+xml"
    tags = [element.tag.rpartition("}")[2] for element in ElementTree.fromstring(content).iter()]
    assert "polyline" in tags and "style" in tags and "script" not in tags
    assert materialized[stage]["steps"].value == 6


@pytest.mark.parametrize("stage", ["reconstructions", "fid"])
def test_tables_have_a_row_for_each_number_of_tokens(stage: str, materialized: dict[str, dict[str, Any]]):
    found = materialized[stage]
    table = found["metrics"]
    assert isinstance(table, dg.TableMetadataValue)
    rows = [record.data for record in table.records]
    assert [row["K"] for row in rows] == KEEPS
    result = read_evaluation(found["dagster/uri"].value)
    for name in (column.name for column in table.schema.columns if column.name != "K"):
        assert {row["K"]: row[name] for row in rows if row[name] is not None} == result.curve(name)
    assert {item["name"] for item in result.metrics if item["k"] is not None} == set(rows[0]) - {"K"}


def test_the_report_is_named_by_its_path(materialized: dict[str, dict[str, Any]]):
    target = materialized["report"]["report"]
    assert isinstance(target, dg.PathMetadataValue) and Path(target.value).is_file()
    assert isinstance(metadata.shown(Page(links={"a": "https://x.org/"}))["a"], dg.UrlMetadataValue)


def files_of(folder: Path) -> FileRun:
    return FileRun(load_recipe("smoke"), Workspace(str(folder)))


def test_a_model_that_was_taken_over_has_no_curve(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"x" * 5)
    page = pages.training("latents", files_of(tmp_path), Made("digest", str(tmp_path)))
    assert page == Page(size_bytes=5, workers=load_recipe("smoke").compute.train_workers)


def test_images_of_distances_are_counted_with_and_without_a_reference(tmp_path: Path):
    def written(*references: dict) -> Made:
        protocols = [{"distance": {"images": 30, **reference}} for reference in references]
        metrics = [Metric(f"number{index}_samples", 1.0, protocol, k=4) for index, protocol in enumerate(protocols)]
        made = write_evaluation("generation", str(tmp_path), metrics, [], [], {}, {})
        return Made(made.digest, made.url)

    # A score has no reference; samples at one K and as many of random tokens are measured all the same.
    assert pages.fid(files_of(tmp_path), written({})).images == 60
    assert pages.fid(files_of(tmp_path), written({}, {"reference": {"images": 40}})).images == 100


def spoil(corpus: Corpus, pictures: int) -> None:
    """Turn the first bytes of the first pictures into others, as a bad disk might."""
    index = corpus.index("offset", "size")
    urls = {shard.name: shard.url for shard in corpus.shards}
    for row in index.head(pictures).iter_rows(named=True):
        with open(urls[row["shard"]], "r+b") as file:
            file.seek(row["offset"])
            file.write(b"<script>")


@pytest.mark.parametrize(("spoiled", "left"), [(3, 16), (40, 8), (48, 0)])
def test_pictures_that_do_not_decode_are_passed_over(spoiled: int, left: int, built: Built, tmp_path: Path):
    shutil.copytree(built.workspace / "corpora/scenes/val", tmp_path / "val")
    corpus = Corpus.open(str(tmp_path / "val"))
    spoil(corpus, spoiled)
    page = pages.image_shards(files_of(tmp_path), Made("digest", corpus.url))
    texts = corpus.index("text")["text"].to_list()
    assert (page.pictures.captions if page.pictures else ()) == tuple(texts[spoiled : spoiled + left])


def test_captions_are_read_letter_by_letter():
    file = to_png(np.zeros((4, 4, 3), np.uint8))
    captions = (EVIL, "plain", "`` a`", " \n ")
    shown = metadata.shown(Page(pictures=Pictures(file, "Two", captions)))["pictures"].value
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(shown)
    assert set(re.findall(r"<(\w+)", html)) == {"p", "img", "ol", "li", "code"}
    found = [unescape(item) for item in re.findall(r"<li>(?:<code>(.*)</code>)?</li>", html)]
    assert found == [" ".join(caption.split()) for caption in captions]
    assert metadata.literal("a\u202e\ud800\0b") == "` a b `"


@pytest.mark.parametrize("side", [64, 300, 1500])
def test_a_picture_is_never_larger_than_a_page_takes(side: int):
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    found = small_file(to_png(noise))
    assert len(found) <= MAX_PICTURE_BYTES
    assert Image.open(io.BytesIO(found)).format == ("PNG" if side == 64 else "JPEG")


@pytest.mark.parametrize(
    ("settings", "workers", "expected"),
    [
        ({"num_cpus": 4}, 0, {"cpu_hours": 2}),
        ({"num_cpus": 4, "price_per_hour": 0.05}, 2, {"cpu_hours": 2, "cost": 0.1}),
        ({"gpus_per_worker": 1, "price_per_hour": 3}, 8, {"accelerator_hours": 4, "cost": 12}),
        ({"gpus_per_worker": 1, "num_cpus": 4, "price_per_hour": 3}, 0, {"cpu_hours": 2, "cost": 6}),
        ({"address": "auto", "threads": 2}, 3, {"cpu_hours": 3}),
        ({"address": "auto"}, 0, {}),
    ],
)
def test_hours_are_those_of_all_workers(settings: dict[str, Any], workers: int, expected: dict[str, float]):
    found = pages.spent(Page(images=90, workers=workers), ComputeConfig(**settings), duration_s=1800)
    assert found == {"images_per_s": 0.05, **expected}
    assert pages.spent(Page(images=90), ComputeConfig(), duration_s=0) == {}


def test_a_curve_fits_into_a_line():
    assert pages.sparkline([8, 4, 2, 1]) == "█▄▂▁ 8 → 1"
    assert pages.sparkline([3.0]) == "▁ 3 → 3"
    assert len(pages.sparkline(range(1000)).split()[0]) == pages.SPARK_COLUMNS


@pytest.fixture
def drawing() -> Iterator[None]:
    """A stage whose page cannot be built, and one whose page can."""

    def broken(run: StageRun, made: Made) -> Page:
        raise RuntimeError("no\nbrush")

    stage = partial(Stage, makes="a line", group="extra", kinds=(), version=1, settings=lambda recipe: {})
    register(stage("drawing", run=lambda run: Made("digest", numbers={"lines": 3}), page=broken))
    register(stage("painting", run=lambda run: Made("digest"), page=lambda run, made: Page(images=7, size_bytes=9)))
    yield
    STAGES.remove("drawing")
    STAGES.remove("painting")


def test_a_page_that_fails_is_one_line_and_nothing_else(built: Built, drawing: None, tmp_path: Path, capsys):
    other = Built(built.profile, tmp_path / "w")
    assert cli.run(["run", "--select", "drawing,painting", *other.arguments()]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "brush" in line] == [
        "warning: drawing: its page is without pictures and tables (RuntimeError: no brush)"
    ]
    (done,) = [line for line in lines if line.startswith("drawing: done")]
    assert done.endswith("s, digest digest, lines 3")
    (done,) = [line for line in lines if line.startswith("painting: done")]
    assert not [name for name in metadata.ONLY_ON_PAGES if name.removeprefix("dagster/") in done]
    assert {other.states(capsys)[name]["status"] for name in ("drawing", "painting")} == {"fresh"}
