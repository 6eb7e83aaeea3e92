"""Checkpoints whose config holds settings of the training, as they were written up to commit c63be65.

Each is what that code wrote, and the numbers below are what that code gave for it.
"""

from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from flextok.model.autoencoders.autoencoder_kl import KLAutoencoder
from flextok.model.checkpoint import read_checkpoint
from flextok.model.describe import describe_checkpoint
from flextok.model.load import load_autoencoder, load_tokenizer, tokenizer_spec
from flextok.model.tokenizer import Tokenizer
from flextok.provenance import read_provenance

EARLIER = Path(__file__).parent.parent / "fixtures/checkpoints-c63be65"
GOLDEN_DIGEST = "ead76aa976f541479a995189df2e0d650a55822ce414ac0ccaad6dc725ad2397"


@pytest.fixture
def images() -> Tensor:
    return (torch.arange(2 * 3 * 16 * 16).reshape(2, 3, 16, 16) * 37 % 101) / 50 - 1


def test_an_earlier_tokenizer_is_the_same_under_its_recorded_digest(images: Tensor) -> None:
    url = str(EARLIER / "tokenizer")
    assert "keep_mode" in yaml.safe_load((EARLIER / "tokenizer/config.yaml").read_text())["config"]
    tokenizer = load_tokenizer(url)
    recorded = read_provenance(url)["digest"]
    assert tokenizer.digest == tokenizer_spec(url).digest == describe_checkpoint(url)["digest"] == recorded
    ids = tokenizer.tokenize(images)
    assert ids.tolist() == [[7, 2, 7], [5, 5, 2]]
    pixels = tokenizer.detokenize(ids, keep=2, steps=2, seed=3).flatten()[:5]
    torch.testing.assert_close(
        pixels, torch.tensor([-0.1529, -0.08799, -0.13172, 0.18739, -0.16126]), atol=2e-5, rtol=0
    )
    assert not {"keep_mode", "sigma"} & tokenizer.config.model_dump().keys()


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("vae", [-1.08012, 2.13962, 0.10603, 2.95299, 0.56956]),
        ("vae_kl", [-0.05147, -0.02679, -0.03061, -0.01467, -0.08811]),
    ],
)
def test_an_earlier_autoencoder_is_the_same(name: str, first: list[float], images: Tensor) -> None:
    url = str(EARLIER / name)
    assert describe_checkpoint(url)["digest"] == read_checkpoint(url).digest == read_provenance(url)["digest"]
    autoencoder = load_autoencoder(url)
    assert isinstance(autoencoder, KLAutoencoder) == (name == "vae_kl")
    torch.testing.assert_close(autoencoder.encode(images).flatten()[:5], torch.tensor(first), atol=2e-5, rtol=0)


def test_a_published_model_keeps_the_digest_it_had(golden: Tokenizer) -> None:
    assert golden.digest == GOLDEN_DIGEST
