"""Text encoders: their features are those of transformers, whatever the batch, and what cannot be is one line."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flextok.errors import UsageError
from flextok.model.checkpoint import save_checkpoint
from flextok.model.load import load_prior
from flextok.model.priors.base import Prior
from flextok.model.priors.config import PriorConfig
from flextok.model.text import text_encoder
from flextok.runtime import torchvision_compat  # noqa: F401  (transformers imports torchvision)

CPU = torch.device("cpu")
CAPTIONS = ["a red ring above the middle", "grass", "", "🙂 שלום", "ring " * 10_000]
WORDS = ["[PAD]", "</s>", "[UNK]", "a", "red", "ring", "above", "the", "middle", "on", "grass"]
TEXT = {"condition": "text", "context_width": 16}
TINY = {"width": 32, "depth": 2, "head_dim": 16, "num_tokens": 6, "vocab_size": 11, **TEXT}


def tokenizer_of(words: list[str]):
    """A tokenizer of whole words that ends each text with `</s>`, as T5's and CLIP's do."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="[PAD]", eos_token="</s>", unk_token="[UNK]")


def tiny_t5(folder: Path, seed: int = 0) -> None:
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(seed)
    config = T5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder)
    tokenizer_of(WORDS).save_pretrained(folder)


def tiny_clip(folder: Path, seed: int = 0) -> None:
    """Both towers, as they are published."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    torch.manual_seed(seed)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=len(WORDS), max_position_embeddings=7, eos_token_id=1, **size)
    vision = CLIPVisionConfig(image_size=8, patch_size=4, **size)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    tokenizer_of(WORDS).save_pretrained(folder)


MODELS: dict[str, tuple[Callable[..., None], str]] = {
    "t5": (tiny_t5, "T5EncoderModel"),
    "clip": (tiny_clip, "CLIPTextModel"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("encoders")
    for name, (make, _) in MODELS.items():
        make(root / name)
    return {name: root / name for name in MODELS}


@pytest.mark.parametrize("name", MODELS)
def test_features_are_those_of_transformers_alone(folders: dict[str, Path], name: str) -> None:
    import transformers

    encoder = text_encoder(f"{name}:{folders[name]}", CPU)
    features = encoder.encode(CAPTIONS)
    assert features.values.shape[2] == encoder.width == 16 and features.values.dtype == torch.float32
    limit = 7 if name == "clip" else 120
    assert features.mask.sum(1).tolist() == [min(7, limit), 2, 1, 3, limit]
    assert encoder.encode(["\ud83d grass"]).mask.all()
    model = getattr(transformers, MODELS[name][1]).from_pretrained(folders[name])
    words = tokenizer_of(WORDS)
    for row, caption in enumerate(CAPTIONS):
        ids = words(caption).input_ids
        alone = torch.tensor([ids if len(ids) <= limit else [*ids[: limit - 1], 1]])
        with torch.no_grad():
            expected = model(input_ids=alone).last_hidden_state[0]
        assert torch.allclose(features.values[row][features.mask[row]], expected, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_digest_is_of_the_weights_and_words_not_of_the_folder(
    folders: dict[str, Path], name: str, tmp_path: Path
) -> None:
    make, _ = MODELS[name]
    make(tmp_path / "same")
    make(tmp_path / "other", seed=1)
    found = text_encoder(f"{name}:{folders[name]}", CPU)
    before = found.digest
    found.encode(CAPTIONS)
    assert text_encoder(f"{name}:{tmp_path}/same", CPU).digest == before
    assert text_encoder(f"{name}:{tmp_path}/other", CPU).digest != before
    tokenizer_of([*WORDS[:-2], "grass", "on"]).save_pretrained(tmp_path / "same")
    assert text_encoder(f"{name}:{tmp_path}/same", CPU).digest != before


def test_a_prior_refuses_an_encoder_with_other_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    name = f"t5:{tmp_path}/t5"
    tiny_t5(tmp_path / "t5")
    config = PriorConfig(**TINY, text_encoder=name, text_encoder_digest=text_encoder(name, CPU).digest)
    prior = Prior.create(config, seed=0)
    saved = save_checkpoint(str(tmp_path), "prior", prior.state_dict(), config, [], {})
    ids = load_prior(saved.url).generate(text=["a red ring"])
    assert torch.equal(ids, prior.generate(text=["a red ring"]))
    tiny_t5(tmp_path / "t5", seed=1)
    with pytest.raises(UsageError, match=f"trained with, {config.text_encoder_digest[:12]}, found"):
        load_prior(saved.url).generate(text=["a red ring"])


def test_a_prior_refuses_an_encoder_of_another_width(folders: dict[str, Path]) -> None:
    config = PriorConfig(**{**TINY, "context_width": 64}, text_encoder=f"clip:{folders['clip']}")
    with pytest.raises(UsageError, match="expected context_width 16, the width of clip:"):
        Prior.create(config, seed=0).generate(text=["a red ring"])


def test_what_is_no_such_model_is_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for name, told in {
        f"t5:{folders['clip']}": "found one of type clip", f"t5:{tmp_path}/none": "expected a t5 model",
        "t5": "expected a folder or Hub id", "minilm:x": "minilm alone", "t6:x": "the nearest is 't5'",
    }.items():  # fmt: skip
        with pytest.raises(UsageError, match=told) as error:
            text_encoder(name, CPU)
        assert "\n" not in str(error.value)
    tiny_t5(tmp_path / "holed")
    weights = load_file(tmp_path / "holed" / "model.safetensors")
    lost = next(key for key in weights if key.endswith("wo.weight"))
    save_file({key: value for key, value in weights.items() if key != lost}, tmp_path / "holed" / "model.safetensors")
    with pytest.raises(UsageError, match="found no weights for encoder"):
        text_encoder(f"t5:{tmp_path}/holed", CPU)
    (tmp_path / "holed" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UsageError, match=r"expected a t5 model with its tokenizer in .*holed, found:"):
        text_encoder(f"t5:{tmp_path}/holed", CPU)


@pytest.mark.skipif(importlib.util.find_spec("all_minilm_l6_v2") is None, reason="its package is asked for by hand")
def test_minilm_knows_paraphrases_and_is_not_imported() -> None:
    import sys

    encoder = text_encoder("minilm", CPU)
    features = encoder.encode([*CAPTIONS, "a scarlet hoop over the centre", "stock markets fell on Monday"])
    assert encoder.width == 384 and encoder.digest.startswith("798847de482f")
    assert features.mask.sum(1).tolist()[:5] == [8, 3, 2, 7, 120]
    mask = features.mask[..., None]
    means = torch.nn.functional.normalize((features.values * mask).sum(1) / mask.sum(1), dim=1)
    assert means[0] @ means[5] > 0.5 and means[0] @ means[6] < 0.2
    assert torch.allclose(encoder.encode(CAPTIONS[1:2]).values[0], features.values[1, :3], atol=1e-5)
    assert "all_minilm_l6_v2" not in sys.modules


def test_without_its_package_each_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in ("t5:x", "clip:x", "minilm"):
        with pytest.raises(UsageError, match="expected the package transformers for the text encoder"):
            text_encoder(name, CPU)


def test_checkpoints_of_encoders_without_weights_are_as_before() -> None:
    values = PriorConfig(**{**TINY, "context_width": 64}).model_dump(mode="json")
    assert "text_encoder_digest" not in values and json.loads(json.dumps(values)) == values
    assert "text_encoder_digest" in PriorConfig(**TINY, text_encoder_digest="12").model_dump()
