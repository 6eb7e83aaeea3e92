"""A node that does not see the files takes no part and spends no shard; where no node sees them, the job ends at once."""

import json
import signal
from pathlib import Path

import pytest
from flextok_process import Command, wait_until
from ray_nodes import NET, host, may_hide, ray_nodes

from flextok.data.config import CorpusConfig
from flextok.data.corpus.job import shard_corpus
from flextok.data.scenes import ScenesConfig
from flextok.data.tokens import TokenStore, verify_tokens
from flextok.tokenize.job import tokenize_corpus

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.skipif(not may_hide(), reason="may not make a mount namespace here"),
]
AT_WORK = "MapWorker(Map(ShardTokenizer)).submit"
PROGRAM = """
import sys
from flextok.errors import FlextokError
from flextok.runtime.compute import ComputeConfig
from flextok.tokenize.config import TokenizeConfig
from flextok.tokenize.job import tokenize_corpus
corpus, tokenizer, dest, config, address, actors = sys.argv[1:]
compute = ComputeConfig(address=address, tokenize_actors=(int(actors), int(actors)), threads=1)
try:
    tokenize_corpus(corpus, tokenizer, dest, TokenizeConfig.model_validate_json(config), compute, progress=False)
except FlextokError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def many_shards(inputs, folder: Path) -> tuple[str, str]:
    """A corpus of 200 shards, and the digest of its tokens as this machine alone makes them."""
    scenes = CorpusConfig(name="many", scenes=ScenesConfig(train_samples=1200), shard_samples=6)
    corpus = shard_corpus(scenes, "train", f"{folder}/many", workers=1, progress=False).url
    alone = tokenize_corpus(corpus, inputs.tokenizer, f"{folder}/alone", inputs.config, inputs.compute, progress=False)
    return corpus, alone.digest


def shards_in(folder: Path) -> int:
    return len(list(folder.glob("*.parquet")))


def test_nodes_without_the_files_spend_no_shard(inputs, tmp_path: Path) -> None:
    """Two nodes, one that sees no corpus and one that has another destination; one that sees all; three of which in mid-job
    one loses the corpus' shards, one may no longer write, and one has no room left."""
    corpus, alone = many_shards(inputs, tmp_path)
    dest = tmp_path / "shared" / "tokens"
    dest.parent.mkdir()
    job = corpus, inputs.tokenizer, str(dest), json.dumps(inputs.config.model_dump(mode="json"))
    with ray_nodes() as nodes:
        address = nodes.start_head(cpus=0)
        hidden = {nodes.add(cpus=1, hidden=str(folder)): folder for folder in (Path(corpus), dest.parent)}

        command = Command(*job, address, "2", program=PROGRAM)
        assert command.finish() == 1
        assert command.told[-1].startswith(f"UsageError: node {NET}."), command.told
        assert not list(dest.glob("*.parquet"))

        failing, good = [nodes.add(cpus=1) for _ in range(3)], nodes.add(cpus=1)
        command = Command(*job, address, "6", program=PROGRAM)
        wait_until(lambda: shards_in(dest) > 0, every_s=0.005)
        nodes.signal_workers(good, signal.SIGSTOP)  # else it may have made all before the others begin
        wait_until(lambda: set(failing) <= set(nodes.where(AT_WORK)), every_s=0.005)
        nodes.hide(failing[0], f"{corpus}/shards")
        nodes.protect(failing[1], str(dest))
        nodes.fill(failing[2], str(dest))
        nodes.signal_workers(good, signal.SIGCONT)
        assert command.finish() == 0, command.told
    assert "made without: " in command.told[-1], command.told
    for number, why in zip(failing, ("No such file", "Read-only file system", "No space left"), strict=True):
        left_out = f"node {host(number)} is left out: 3 shards in a row failed there that other nodes made"
        assert left_out in command.told[-1] and why in command.told[-1], command.told
    told = [line for line in command.told if " takes no part: " in line and not line.startswith("made without: ")]
    assert len(told) == len(hidden)
    for number, folder in hidden.items():
        (line,) = [line for line in told if f"node {host(number)} takes no part: " in line]
        assert str(folder) in line and "use a shared file system or s3:// URLs" in line
    assert TokenStore.open(str(dest)).digest == alone
    assert verify_tokens(str(dest), corpus) == []
