"""Training and tokenization on a Ray cluster of two nodes, against the same work in one process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from flextok.data.config import CorpusConfig
from flextok.data.corpus.job import shard_corpus
from flextok.data.scenes import ScenesConfig
from flextok.data.tokens import TokenStore, verify_tokens
from flextok.model.autoencoders.config import ConvAutoencoderConfig
from flextok.model.checkpoint import read_checkpoint
from flextok.model.config import TokenizerModelConfig
from flextok.model.decoders.config import FlowDecoderConfig
from flextok.model.nn.config import TrunkConfig
from flextok.model.quantizers.config import FSQConfig
from flextok.runtime.cluster import stop_ray
from flextok.runtime.compute import ComputeConfig
from flextok.tokenize.config import TokenizeConfig
from flextok.tokenize.job import tokenize_corpus
from flextok.train.autoencoder import train_autoencoder
from flextok.train.config import AutoencoderRecipe, AutoencoderTrainConfig, TokenizerRecipe, TokenizerTrainConfig
from flextok.train.tokenizer import train_tokenizer

NODE = {"num_cpus": 1, "object_store_memory": 150 * 2**20}
TRUNK = TrunkConfig(width=32, depth=1, head_dim=16)
TWO_STEPS: dict[str, Any] = {"steps": 2, "batch_size": 8, "precision": "float32"}
HERE = ComputeConfig(train_workers=0)


@pytest.fixture
def two_nodes() -> Iterator[str]:
    """Address of a cluster with one CPU on each of two nodes: two workers must lie on both."""
    stop_ray()
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
def test_two_nodes_train_and_tokenize_as_one_process_does(two_nodes: str, tmp_path: Path) -> None:
    corpus = CorpusConfig(name="scenes", scenes=ScenesConfig(train_samples=60), shard_samples=20)
    images = shard_corpus(corpus, "train", f"{tmp_path}/corpus", workers=1, progress=False)
    autoencoder = AutoencoderRecipe(
        model=ConvAutoencoderConfig(channels=8, blocks=0), train=AutoencoderTrainConfig(**TWO_STEPS)
    )
    latents = train_autoencoder(autoencoder, images.url, 32, f"{tmp_path}/vae", HERE)
    model = TokenizerModelConfig(
        registers=4, encoder=TRUNK, quantizer=FSQConfig(levels=(4, 4)), decoder=FlowDecoderConfig(trunk=TRUNK)
    )
    recipe = TokenizerRecipe(model=model, train=TokenizerTrainConfig(**TWO_STEPS))
    on_both = ComputeConfig(address=two_nodes, train_workers=2, tokenize_actors=(2, 2), threads=1)

    alone = train_tokenizer(recipe, latents.url, images.url, 32, f"{tmp_path}/alone", HERE)
    together = train_tokenizer(recipe, latents.url, images.url, 32, f"{tmp_path}/together", on_both)

    expected = read_checkpoint(alone.url).state
    for name, tensor in read_checkpoint(together.url).state.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-4, msg=name)

    tokens = tokenize_corpus(
        images.url, together.url, f"{tmp_path}/tokens", TokenizeConfig(batch_size=8), on_both, progress=False
    )
    assert (tokens.rows, tokens.shards) == (60, 3)
    assert verify_tokens(tokens.url, images.url) == []
    assert TokenStore.open(tokens.url).tokenizer == together.digest
