"""`flextok shard --address`: workers on the nodes of a cluster make the shards that processes of one machine make."""

import signal
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from flextok_process import Command, wait_until
from ray_nodes import host, may_hide, ray_nodes

from flextok import storage
from flextok.data.config import CorpusConfig
from flextok.data.corpus.job import shard_corpus
from flextok.data.corpus.reader import Corpus
from flextok.data.corpus.verify import verify_corpus

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not may_hide(), reason="may not make a mount namespace here")]
PICTURES = 2400
SMALL_SHARDS = {"shard_samples": 8}


def test_nodes_make_the_shards_of_one_machine(
    make_picture: Callable[..., bytes], s3_folder: str, tmp_path: Path
) -> None:
    """A node without the source, one that loses it in mid-job, one that is killed, one that comes; then all of it on an
    object store."""
    rows, source = [make_picture(number) for number in range(PICTURES // 8)], tmp_path / "source"
    for number in range(PICTURES):
        path = source / f"{number % 7}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rows[number % len(rows)] if number % 100 else b"no picture")
    table = f"{s3_folder}/source/pictures.parquet"
    with storage.atomic_write(table) as file:
        pq.write_table(pa.table({"image": [{"bytes": row, "path": None} for row in rows]}), file)
    alone = {
        str(source): digest_of_one_machine(str(source), f"{tmp_path}/alone"),
        table: digest_of_one_machine(table, f"{tmp_path}/alone-table"),
    }
    dest = tmp_path / "shards"
    with ray_nodes() as nodes:
        address = nodes.start_head(cpus=0)
        blind, failing = nodes.add(1, hidden=str(source)), nodes.add(1)
        job = "shard", str(source), str(dest), "--shard-samples", "8", "--address", address

        command = Command(*job)
        wait_until(lambda: shards_in(dest) > 0, every_s=0.005)
        nodes.hide(failing, str(source))
        assert command.finish() == 2, command.told  # no node is left that sees the source
        assert f"node {host(failing)} takes no part: expected to read" in command.told[-1], command.told

        lost, made = nodes.add(1), shards_in(dest)
        command = Command(*job)
        wait_until(lambda: shards_in(dest) > made, every_s=0.005)
        command.process.send_signal(signal.SIGSTOP)  # that there is work left when the node is gone
        nodes.kill(lost)
        command.process.send_signal(signal.SIGCONT)
        command.wait_for(f"lost node {host(lost)}: ")
        nodes.add(1)
        assert command.finish() == 0, command.told
        for number in (blind, failing):
            told = [line for line in command.told if f"node {host(number)} takes no part: " in line]
            assert len(told) == 2 and "use a shared file system or s3:// URLs" in told[0], command.told
        others = [line for line in command.told if not line.startswith("node ")]  # which may join as late as it likes
        assert others[-2].startswith("warning: made without: "), command.told
        assert Corpus.open(str(dest)).digest == alone[str(source)]
        assert verify_corpus(str(dest)) == []

        remote = f"{s3_folder}/shards"
        command = Command("shard", table, remote, "--shard-samples", "8", "--address", address)
        assert command.finish() == 0, command.told
        assert Corpus.open(remote).digest == alone[table]
        assert not s3fs.S3FileSystem().exists(f"{remote}/.staging")

        command = Command("shard", "/nowhere", remote, "--resource", "seat=1", "--address", address)
        assert command.finish() == 2 and command.told[-1].startswith("error: expected pictures in /nowhere"), (
            command.told
        )


def shards_in(corpus: Path) -> int:
    return len(list(corpus.glob("shards/*.tar")))


def digest_of_one_machine(source: str, dest: str) -> str:
    config = CorpusConfig.model_validate({"source": source, **SMALL_SHARDS})
    return shard_corpus(config, "all", dest, progress=False).digest
