"""A cluster without a worker until somebody asks for one: each kind of job is a demand that its autoscaler sees."""

import shutil
from pathlib import Path

import pytest
from flextok_process import SMALL, Command
from ray_nodes import ray_nodes

from flextok.data.config import CorpusConfig
from flextok.data.corpus.job import shard_corpus
from flextok.data.corpus.reader import Corpus
from flextok.data.tokens import TokenStore

pytestmark = pytest.mark.slow


def test_jobs_bring_the_nodes_that_they_need(inputs, undisturbed, tmp_path: Path) -> None:
    source = f"{inputs.corpus}/shards"
    alone = shard_corpus(CorpusConfig(source=source, shard_samples=10), "all", f"{tmp_path}/alone", progress=False)
    shards, tokens = str(tmp_path / "shards"), str(tmp_path / "tokens")
    with ray_nodes() as nodes:
        address = nodes.start_autoscaling_head({"CPU": 1, "seat": 1}, {"CPU": 2, "desk": 1}, {"CPU": 1, "stage": 1})
        at = "--address", address, "--resource"
        finish("shard", source, shards, "--shard-samples", "10", *at, "seat=1")
        assert Corpus.open(shards).digest == alone.digest

        finish("tokenize", inputs.corpus, tokens, "--tokenizer", inputs.tokenizer, "--batch-size", "8", *at, "desk=1")
        assert TokenStore.open(tokens).digest == undisturbed[1]

        workspace = tmp_path / "workspace"
        for split in ("train", "val"):
            shutil.copytree(inputs.corpus, workspace / "corpora" / "scenes" / split)
        sets = *SMALL, f"compute.address={address}", "compute.resources={stage: 1}"
        finish("train", "vae", "--profile", "smoke", "--workspace", str(workspace), sets=sets)


def finish(*arguments: str, sets: tuple[str, ...] = ()) -> None:
    command = Command(*arguments, sets=sets)
    assert command.finish() == 0, command.told
    assert any(line.startswith("node ") and line.endswith(" joined") for line in command.told), command.told
