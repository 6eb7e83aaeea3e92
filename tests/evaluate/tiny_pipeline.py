"""A tiny real pipeline, trained for a few steps: every artifact that evaluations read."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flextok.data.config import CorpusConfig
from flextok.data.corpus.job import shard_corpus
from flextok.data.corpus.reader import Corpus, iter_shard
from flextok.data.images import center_crop, decode, preprocess, to_model
from flextok.data.scenes import ScenesConfig
from flextok.data.tokens import TokenMeta, token_schema, token_table, write_token_manifest, write_token_shard
from flextok.evaluate.config import EvaluationConfig, SamplesConfig
from flextok.evaluate.generation import evaluate_generation
from flextok.evaluate.reconstruction import evaluate_reconstruction
from flextok.evaluate.report import ReportInputs
from flextok.evaluate.results import EvaluationResult
from flextok.evaluate.sampling import SamplesResult, sample_images
from flextok.model.load import load_tokenizer
from flextok.provenance import artifact_input
from flextok.runtime.compute import ComputeConfig
from flextok.train.autoencoder import train_autoencoder
from flextok.train.config import AutoencoderRecipe, PriorRecipe, TokenizerRecipe
from flextok.train.prior import train_prior
from flextok.train.tokenizer import train_tokenizer

SIZE_PX = 32
IN_PROCESS = ComputeConfig(train_workers=0)
TRAIN = {"batch_size": 8, "log_every": 1, "optimizer": {"warmup_steps": 1}, "precision": "float32"}
LATENTS = AutoencoderRecipe.model_validate(
    {"model": {"kind": "conv", "channels": 8, "blocks": 1}, "train": {"steps": 12, **TRAIN}}
)
TRUNK = {"width": 32, "depth": 1, "head_dim": 16}
TOKENIZER = TokenizerRecipe.model_validate(
    {
        "model": {"registers": 4, "encoder": TRUNK, "decoder": {"trunk": TRUNK}, "quantizer": {"levels": [4, 4]}},
        "train": {"steps": 12, **TRAIN},
    }
)
PRIOR = PriorRecipe.model_validate({"model": {**TRUNK, "condition": "class"}, "train": {"steps": 12, **TRAIN}})
EVALUATION = EvaluationConfig(
    steps=2, guidance=2.0, extractor="random_conv", batch_size=16, grid_images=4, samples=SamplesConfig(num=32)
)


@dataclass(frozen=True)
class TinyPipeline:
    """Folders of the artifacts, and what came of evaluating them."""

    root: Path
    train: str
    val: str
    latents: str
    tokenizer: str
    prior: str
    train_tokens: str
    val_tokens: str
    reconstruction: EvaluationResult
    samples: SamplesResult
    generation: EvaluationResult

    @property
    def evaluations(self) -> str:
        return str(self.root / "evaluation")

    def report_inputs(self) -> ReportInputs:
        return ReportInputs(
            reconstruction_url=self.reconstruction.url,
            generation_url=self.generation.url,
            samples_url=self.samples.url,
            tokenizer_url=self.tokenizer,
            prior_url=self.prior,
            train_tokens_url=self.train_tokens,
            val_tokens_url=self.val_tokens,
            train_url=self.train,
            val_url=self.val,
            latents_url=self.latents,
        )


def build(root: Path) -> TinyPipeline:
    """Everything, in order, under `root`."""
    scenes = ScenesConfig(train_samples=64, val_samples=48, image_px=SIZE_PX)
    corpus = CorpusConfig(name="tiny", source="scenes", scenes=scenes, shard_samples=20)
    splits = {split: str(root / "corpora" / split) for split in ("train", "val")}
    for split, url in splits.items():
        shard_corpus(corpus, split, url, workers=1, progress=False)
    latents = train_autoencoder(LATENTS, splits["train"], SIZE_PX, str(root / "vae"), IN_PROCESS).url
    tokenizer = train_tokenizer(TOKENIZER, latents, splits["train"], SIZE_PX, str(root / "tok"), IN_PROCESS).url
    tokens = {split: str(root / "tokens" / split) for split in splits}
    for split, url in tokens.items():
        tokenize(splits[split], tokenizer, url)
    prior = train_prior(PRIOR, tokens["train"], None, str(root / "prior"), IN_PROCESS).url
    evaluations = str(root / "evaluation")
    reconstruction = evaluate_reconstruction(tokenizer, splits["val"], evaluations, EVALUATION)
    classes = Corpus.open(splits["train"]).classes
    samples = sample_images(prior, tokenizer, str(root / "samples"), EVALUATION, classes)
    generation = evaluate_generation(samples.url, splits["val"], tokenizer, evaluations, EVALUATION)
    return TinyPipeline(
        root, splits["train"], splits["val"], latents, tokenizer, prior, tokens["train"], tokens["val"],
        reconstruction, samples, generation,
    )  # fmt: skip


def tokenize(corpus_url: str, tokenizer_url: str, dest: str) -> None:
    """The tokens of a corpus as one shard, without Ray: what the bulk job would give, in this process."""
    corpus, tokenizer = Corpus.open(corpus_url), load_tokenizer(tokenizer_url)
    found = [sample for shard in corpus.shards for sample in iter_shard(corpus.url, shard)]
    crops = [center_crop(decode(sample.image).rgb, SIZE_PX)[None] for sample in found]
    ids = [tokenizer.tokenize(to_model(crop)).numpy()[0] for crop in crops]
    meta = TokenMeta(tokenizer.digest, tokenizer.vocab_size, tokenizer.num_tokens, preprocess=preprocess(SIZE_PX))
    columns = {name: [getattr(sample, name) for sample in found] for name in ("key", "label", "text")}
    table = token_table(token_schema(meta), np.stack(ids), columns)
    record = write_token_shard(f"{dest}/000000.parquet", table.schema, [table])
    inputs = [artifact_input(corpus_url), artifact_input(tokenizer_url)]
    write_token_manifest(dest, "tokens", [record], meta, inputs, {})
