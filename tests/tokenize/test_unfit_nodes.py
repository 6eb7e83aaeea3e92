"""A node that does not see the files takes no part and spends no shard; where no node sees them, the job ends at once."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from flextok_process import Command
from ray_nodes import RayNodes, may_hide, ray_nodes

from flextok.data.tokens import TokenStore, verify_tokens

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not may_hide(), reason="may not make a mount namespace here")]
TWO_ACTORS = """
import json, sys
from flextok.errors import FlextokError
from flextok.runtime.compute import ComputeConfig
from flextok.tokenize.config import TokenizeConfig
from flextok.tokenize.job import tokenize_corpus
corpus, tokenizer, dest, config, address = sys.argv[1:]
compute = ComputeConfig(address=address, tokenize_actors=(2, 2), threads=1)
try:
    tokenize_corpus(corpus, tokenizer, dest, TokenizeConfig.model_validate_json(config), compute, progress=False)
except FlextokError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def nodes() -> Iterator[RayNodes]:
    with ray_nodes() as nodes:
        nodes.start_head(cpus=0)
        yield nodes


def start(inputs, dest: Path, address: str) -> Command:
    config = json.dumps(inputs.config.model_dump(mode="json"))
    return Command(inputs.corpus, inputs.tokenizer, str(dest), config, address, program=TWO_ACTORS)


@pytest.mark.parametrize("hidden", ["inputs", "destination"])
def test_a_node_without_the_files_spends_no_shard(
    inputs, undisturbed, nodes: RayNodes, tmp_path: Path, hidden: str
) -> None:
    dest = tmp_path / "shared" / "tokens"
    dest.parent.mkdir()
    folder = dest.parent if hidden == "destination" else Path(inputs.corpus).parents[2]
    blind = nodes.add(cpus=1, hidden=str(folder))
    nodes.add(cpus=1)
    command = start(inputs, dest, nodes.address)
    assert command.finish() == 0, command.told
    (told,) = [line for line in command.told if "takes no part" in line]
    assert f"node 127.0.0.{blind} takes no part: " in told and str(folder) in told
    assert "use a shared file system or s3:// URLs" in told
    assert TokenStore.open(str(dest)).digest == undisturbed[1]
    assert verify_tokens(str(dest), inputs.corpus) == []


def test_where_no_node_sees_them_the_job_ends_at_once(inputs, nodes: RayNodes, tmp_path: Path) -> None:
    folder = Path(inputs.corpus).parents[2]
    for _ in range(2):
        nodes.add(cpus=1, hidden=str(folder))
    command = start(inputs, tmp_path / "tokens", nodes.address)
    assert command.finish() == 1
    assert command.told[-1].startswith("UsageError: node 127.0.0."), command.told
    assert not list((tmp_path / "tokens").glob("*.parquet"))
