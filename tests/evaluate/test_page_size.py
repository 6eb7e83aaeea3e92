"""The page's size with 64 photographs, all of it: through training, evaluation and report, at 256 px."""

import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_pipeline import IN_PROCESS, LATENTS, tokenize

from flextok.data.config import CorpusConfig
from flextok.data.corpus.job import shard_corpus
from flextok.data.corpus.reader import Corpus
from flextok.evaluate.config import EvaluationConfig, ReportConfig, SamplesConfig
from flextok.evaluate.generation import evaluate_generation
from flextok.evaluate.reconstruction import evaluate_reconstruction
from flextok.evaluate.report import ReportInputs, write_report
from flextok.evaluate.report.pictures import MOST_BYTES
from flextok.evaluate.sampling import sample_images
from flextok.train.autoencoder import train_autoencoder
from flextok.train.config import PriorRecipe, TokenizerRecipe
from flextok.train.prior import train_prior
from flextok.train.tokenizer import train_tokenizer

SIZE_PX = 256
PHOTOGRAPHS = 64
MOST_BYTES_OF_PAGE = 5_000_000
ROWS = 10_000
"""Of a long training's history."""
TRAIN = {"steps": 3, "batch_size": 4, "log_every": 1, "precision": "float32"}
TRUNK = {"width": 32, "depth": 1, "head_dim": 16}
TOKENIZER = TokenizerRecipe.model_validate(
    {
        "model": {
            "registers": 256, "encoder": TRUNK, "decoder": {"trunk": TRUNK}, "quantizer": {"levels": [8, 8, 8, 8]},
        },
        "train": {**TRAIN, "validate_every": 1},
    }
)  # fmt: skip
PRIOR = PriorRecipe.model_validate({"model": {**TRUNK, "condition": "class"}, "train": {**TRAIN, "validate_every": 1}})
EVALUATION = EvaluationConfig(
    set_metrics=("frechet", "precision", "recall", "density", "coverage"),
    bootstrap=40,
    codecs=("jpeg",),
    extractor="random_conv",
    steps=1,
    grid_images=PHOTOGRAPHS,
    samples=SamplesConfig(num=96, keep=(1, 16, 256)),
)


@pytest.fixture(scope="module")
def inputs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> ReportInputs:
    """All artifacts of a corpus of photographs."""
    root = tmp_path_factory.mktemp("photographs")
    source = _linked(shared / "data" / "imagenet_mini", root / "source")
    labels = {"label_csv": "coarse_labels.csv", "label_key": "synset", "label_id": "coarse_id", "label_name": "coarse"}
    corpus = CorpusConfig.model_validate({"name": "photographs", "source": str(source), **labels})
    train, val = (str(root / "corpora" / split) for split in ("train", "val"))
    for split, url in (("train", train), ("val", val)):
        shard_corpus(corpus, split, url, workers=1, progress=False)
    recipe = LATENTS.model_copy(update={"train": LATENTS.train.model_copy(update={"steps": 3, "batch_size": 4})})
    latents = train_autoencoder(recipe, train, SIZE_PX, str(root / "vae"), IN_PROCESS).url
    tokenizer = train_tokenizer(TOKENIZER, latents, train, SIZE_PX, str(root / "tok"), IN_PROCESS, val).url
    tokens = {split: str(root / "tokens" / split) for split in ("train", "val")}
    tokenize(train, tokenizer, tokens["train"])
    tokenize(val, tokenizer, tokens["val"])
    prior = train_prior(PRIOR, tokens["train"], tokens["val"], str(root / "prior"), IN_PROCESS).url
    for checkpoint in (latents, tokenizer, prior):
        _lengthen(Path(checkpoint) / "history.parquet")
    made = str(root / "evaluation")
    reconstruction = evaluate_reconstruction(tokenizer, val, made, EVALUATION)
    samples = sample_images(prior, tokenizer, str(root / "samples"), EVALUATION, Corpus.open(train).classes)
    generation = evaluate_generation(samples.url, val, tokenizer, made, EVALUATION)
    return ReportInputs(
        reconstruction.url, generation.url, samples.url, tokenizer, prior, tokens["train"], tokens["val"], train, val, latents
    )  # fmt: skip


def _linked(photographs: Path, to: Path) -> Path:
    """A source of links: 64 photographs to train on, all that are held out."""
    for split, most in (("train", PHOTOGRAPHS), ("val", None)):
        for path in sorted((photographs / split).glob("*/*"))[:most]:
            link = to / path.relative_to(photographs)
            link.parent.mkdir(parents=True)
            os.symlink(path, link)
    os.symlink(photographs / "coarse_labels.csv", to / "coarse_labels.csv")
    return to


def _lengthen(history: Path) -> None:
    """As many rows of each curve as a long training records, about the values of the short one."""
    table = pq.read_table(history)
    values: dict[str, float] = {row["name"]: row["value"] for row in table.to_pylist()}
    noise = np.random.default_rng(0).normal(1, 0.1, (len(values), ROWS))
    columns = {
        "step": np.tile(np.arange(1, ROWS + 1) * 50, len(values)),
        "name": np.repeat(list(values), ROWS),
        "value": (np.array(list(values.values()))[:, None] * noise).ravel(),
    }
    pq.write_table(pa.table(columns, schema=table.schema), history)


@pytest.mark.slow
def test_a_page_with_64_photographs_is_below_5_mb(inputs: ReportInputs, tmp_path: Path):
    html = Path(write_report(inputs, str(tmp_path), ReportConfig()).html_path)
    text = html.read_text()
    rows = re.findall(r'<tr data-caption="[^"]*"><th scope="row">[^<]*</th><td><img .*?</tr>', text, re.DOTALL)
    assert len(rows) == PHOTOGRAPHS
    assert all(row.count("<img ") == 1 + len((1, 2, 4, 8, 16, 32, 64, 128, 256)) + 1 for row in rows)
    for section in ("extremes", "samples", "quality", "tokens", "training", "numbers"):
        assert f'<h2 id="{section}">' in text
    assert ", by bytes" in text and text.count('class="heat"') == 2 and "Optimizer: " in text
    assert html.stat().st_size <= MOST_BYTES_OF_PAGE
    # Pictures of a tokenizer trained for three steps are flat. With as many bytes of them as there may be it is below, too.
    rest = re.sub(r'src="data:image/webp[^"]*"', "", text)
    assert len(rest.encode()) + MOST_BYTES * 4 / 3 <= MOST_BYTES_OF_PAGE
