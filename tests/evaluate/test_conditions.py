"""Samples by what they were to show: beside the extractor's own classes, real photographs, and transformers' own CLIP."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipeline import EVALUATION, TinyPipeline

from flextok.config import parse_config
from flextok.data.corpus.reader import Corpus
from flextok.data.images import center_crop
from flextok.data.tokens import TokenStore
from flextok.errors import UsageError
from flextok.evaluate.conditions import Part, _sampled, condition_numbers
from flextok.evaluate.config import EvaluationConfig, GenerationConfig
from flextok.evaluate.features import load_extractor
from flextok.evaluate.generation import evaluate_generation
from flextok.evaluate.sampling import read_images
from flextok.metrics.base import SAMPLE_METRICS, SampleMetric
from flextok.metrics.conditions import class_accuracy
from flextok.metrics.synsets import SYNSETS
from flextok.metrics.weights import WeightsConfig, with_weights


def test_accuracy_is_that_of_the_extractors_classes() -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 40, 48, 3), dtype=np.uint8)
    scores = load_extractor("efficientnet_lite0", layers=("classes",))(images)
    order = np.argsort(-scores, axis=1)
    names = [SYNSETS[order[row, rank]] for row, rank in enumerate((0, 1, 4, 5, 0, 999))]
    assert class_accuracy(images, names, best=1).tolist() == [1, 0, 0, 0, 1, 0]
    assert class_accuracy(images, names, best=5).tolist() == [1, 1, 1, 0, 1, 0]
    with pytest.raises(UsageError, match="found 'fish'"):
        class_accuracy(images[:1], ["fish"], best=1)


def test_photographs_are_of_their_classes(shared: Path) -> None:
    files = sorted((shared / "data" / "imagenet_mini" / "val").glob("*/*"))[::5]
    images = np.stack([center_crop(Image.open(file).convert("RGB"), 224) for file in files])
    names = [file.parent.name for file in files]
    assert class_accuracy(images, names, best=1).mean() > 0.65
    assert class_accuracy(images, names[1:] + names[:1], best=1).mean() < 0.2


def test_numbers_are_means_over_images_by_k(pipeline: TinyPipeline) -> None:
    """By a toy: the brightness of an image, where the name of its class has an even number of letters."""

    def bright(images: np.ndarray, names) -> np.ndarray:
        even = [len(name) % 2 == 0 for name in names]
        return images.mean(axis=(1, 2, 3)) * np.array(even)

    SAMPLE_METRICS.register(SampleMetric("bright", "toy", "", "", bright, "class", record=lambda: {"toy": True}))
    try:
        config = EVALUATION.model_copy(update={"sample_metrics": ("bright",), "batch_size": 7})
        made = evaluate_generation(pipeline.samples.url, pipeline.val, pipeline.tokenizer, pipeline.evaluations, config)
    finally:
        SAMPLE_METRICS.remove("bright")
    store, classes = TokenStore.open(pipeline.samples.url), Corpus.open(pipeline.val).classes or []
    names = [classes[label] for label in store.labels()]
    for keep in (1, 2, 4):
        values = bright(read_images(pipeline.samples.url, keep, store.keys()), names)
        assert made.value("bright_samples", keep) == pytest.approx(values.mean(), rel=1e-5)
    item = next(item for item in made.metrics if item["name"] == "bright_samples" and item["k"] == 4)
    assert item["standard_error"] == pytest.approx(values.std(ddof=1) / len(values) ** 0.5, rel=1e-5)
    assert item["protocol"]["toy"] and item["protocol"]["images"] == 32 and "prior" in item["protocol"]
    assert made.value("bright_originals") > 0
    assert made.curve("fd_random_conv_samples") == pipeline.generation.curve("fd_random_conv_samples")


def test_classes_that_are_not_imagenets_end_the_evaluation(pipeline: TinyPipeline) -> None:
    config = EVALUATION.model_copy(update={"sample_metrics": ("class_accuracy",)})
    corpus = Corpus.open(pipeline.val)
    with pytest.raises(UsageError, match="expected classes named by ImageNet's synsets"):
        keys = TokenStore.open(pipeline.samples.url).keys()
        condition_numbers(pipeline.samples, corpus, keys, [], config, 32, {}, {}, None)
    assert "sample_metrics" not in EvaluationConfig().part(GenerationConfig).content()
    assert all(isinstance(part, Part) for part in _sampled(pipeline.samples, keys[:3], 2))
    with pytest.raises(UsageError, match="sample_weights: expected those of clip_score, found none"):
        parse_config(EvaluationConfig, {"sample_metrics": ["clip_score"]}, "profile")


def test_clip_score_is_that_of_transformers(tmp_path: Path) -> None:
    load_extractor("random_conv")  # makes torchvision importable
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    torch.manual_seed(0)
    words = {word: index for index, word in enumerate(["<s>", "</s>", "<pad>", "<unk>", "a", "red", "fish", "dog"])}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    plain.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision, text = {**small, "image_size": 28, "patch_size": 14}, {**small, "vocab_size": 8, "eos_token_id": 1}
    network = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    ).eval()
    prepare = transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    for part in (network, prepare, tokenizer):
        part.save_pretrained(tmp_path)
    sha256 = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    weights = WeightsConfig(metric="clip_score", path=str(tmp_path), sha256=sha256)
    metric = with_weights(SAMPLE_METRICS["clip_score"], [weights])
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    texts = ["a red fish", "dog", "a dog a fish"]
    inputs = {
        **tokenizer(texts, return_tensors="pt", padding=True),
        **prepare(images=list(images), return_tensors="pt"),
    }
    inputs.pop("token_type_ids", None)
    logits = network(**inputs).logits_per_image / network.logit_scale.exp()
    expected = 100 * logits.diagonal().clamp(min=0).detach().numpy()
    np.testing.assert_allclose(metric.compute(images, texts), expected, rtol=1e-4, atol=1e-4)
    assert (expected > 0).any()
