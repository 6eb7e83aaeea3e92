"""Bulk tokenization where things go wrong. After each fault the store verifies and equals that of an undisturbed run."""

import errno
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from job_process import at_work
from tokenize_helpers import IMAGES, SHARDS, processes_below

from flextok.data.corpus.reader import Corpus
from flextok.data.corpus.verify import verify_corpus
from flextok.data.tokens import TokenStore, read_manifest, verify_tokens
from flextok.errors import FlextokError, UsageError
from flextok.model.load import tokenizer_spec
from flextok.runtime.lock import locked
from flextok.tokenize import scheduler
from flextok.tokenize.actor import ShardTokenizer
from flextok.tokenize.job import tokenize_corpus
from flextok.tokenize.outcome import ShardOutcome
from flextok.tokenize.tasks import shard_tasks, task_to_json

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("job_process.py")
ROOT = Path(__file__).parents[2]


def run(inputs, dest, corpus=None, **changes):
    config = inputs.config.model_copy(update=changes)
    return tokenize_corpus(corpus or inputs.corpus, inputs.tokenizer, str(dest), config, inputs.compute, progress=False)


def start_process(inputs, dest: Path) -> subprocess.Popen:
    arguments = [inputs.corpus, inputs.tokenizer, str(dest), inputs.config.model_dump_json()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_at_work(dest: Path, alive) -> None:
    while not at_work(str(dest), finished=1):
        assert alive(), "the job ended before the fault"
        time.sleep(0.002)


def at_work_on(pid: int, dest: Path) -> bool:
    """Whether a process has an unfinished file of `dest` open."""
    try:
        return any(os.readlink(link).startswith(f"{dest}/.tmp-") for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def corrupt_picture(tar: Path, member: int) -> None:
    """Turn some bytes in the middle of one picture of a shard."""
    with tarfile.open(tar) as archive:
        picture = [item for item in archive.getmembers() if item.name.endswith(".png")][member]
    content = bytearray(tar.read_bytes())
    middle = picture.offset_data + picture.size // 2
    content[middle : middle + 20] = bytes(byte ^ 0xFF for byte in content[middle : middle + 20])
    tar.write_bytes(content)


@pytest.mark.parametrize(
    ("names", "rows"),
    [(("ShardTokenizer",), 1), (("ShardTokenizer", "StragglerMonitor"), SHARDS)],
    ids=["actor, all shards in a row", "both, a row for each shard"],
)
def test_actor_killed_in_mid_shard(names, rows, inputs, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "ROWS_FOR_AN_ACTOR", rows)
    dest, results = tmp_path / "t", []
    job = threading.Thread(target=lambda: results.append(run(inputs, dest)))
    job.start()
    wait_until_at_work(dest, job.is_alive)
    commands = processes_below(os.getpid())
    actors = [
        pid
        for pid, command in commands.items()
        if command.startswith("ray::") and any(name in command for name in names)
    ]
    for pid in actors:
        os.kill(pid, signal.SIGKILL)
    job.join()
    assert len(actors) == len(names)
    assert results[0].digest == undisturbed[1]
    assert verify_tokens(str(dest), inputs.corpus) == []


def test_actor_that_hangs_is_helped_and_ended(inputs, undisturbed, tmp_path, caplog, monkeypatch):
    """A stopped process answers nothing and does not end: the other actor makes its shards, then it is killed."""
    monkeypatch.setattr(scheduler, "STRAGGLER_S", 3.0)
    dest, results = tmp_path / "t", []
    compute = inputs.compute.model_copy(update={"tokenize_actors": (2, 2), "threads": 1})
    job = threading.Thread(
        target=lambda: results.append(
            tokenize_corpus(inputs.corpus, inputs.tokenizer, str(dest), inputs.config, compute, progress=False)
        )
    )
    job.start()
    while not (writing := {pid for pid in processes_below(os.getpid()) if at_work_on(pid, dest)}):
        assert job.is_alive(), "the job ended before the fault"
        time.sleep(0.002)
    stopped = writing.pop()
    os.kill(stopped, signal.SIGSTOP)
    job.join()
    assert results[0].digest == undisturbed[1]
    assert "made by another actor, since slow where they were begun: shards 00000" in caplog.text
    assert verify_tokens(str(dest), inputs.corpus) == []
    deadline = time.monotonic() + 30
    while stopped in processes_below(os.getpid()):
        assert time.monotonic() < deadline, "the process that hangs was left behind"
        time.sleep(0.1)


def test_decoding_process_killed_in_mid_shard(inputs, undisturbed, tmp_path):
    dest, results = tmp_path / "t", []
    job = threading.Thread(target=lambda: results.append(run(inputs, dest)))
    job.start()
    wait_until_at_work(dest, job.is_alive)
    (actor,) = [pid for pid, command in processes_below(os.getpid()).items() if "ShardTokenizer" in command]
    decoders = [pid for pid, command in processes_below(actor).items() if "spawn_main" in command]
    for pid in decoders:
        os.kill(pid, signal.SIGKILL)
    job.join()
    assert decoders
    assert results[0].digest == undisturbed[1]
    assert verify_tokens(str(dest), inputs.corpus) == []


def test_driver_killed_then_the_same_command_again(inputs, undisturbed, tmp_path):
    dest = tmp_path / "t"
    driver = start_process(inputs, dest)
    wait_until_at_work(dest, lambda: driver.poll() is None)
    driver.kill()
    driver.wait()
    assert not (dest / "manifest.json").exists()
    with pytest.raises(UsageError, match="run it again to finish"):
        TokenStore.open(str(dest))
    summary = run(inputs, dest)
    assert 1 <= summary.skipped < SHARDS
    assert summary.digest == undisturbed[1]
    assert verify_tokens(str(dest), inputs.corpus) == []
    assert not [name for name in os.listdir(dest) if name.startswith(".")]


def test_damaged_shards_are_named_and_the_others_kept(inputs, undisturbed, corpus_copy, tmp_path):
    """Missing, cut between members, cut within one: the job does the rest, fails at its end, and is mended by a rerun."""
    shards, dest = Path(corpus_copy) / "shards", tmp_path / "t"
    (shards / "000001.tar").unlink()
    with tarfile.open(shards / "000002.tar") as archive:
        header = [member for member in archive.getmembers() if member.name.endswith(".png")][10].offset
    (shards / "000002.tar").write_bytes((shards / "000002.tar").read_bytes()[:header] + bytes(1024))
    (shards / "000003.tar").write_bytes((shards / "000003.tar").read_bytes()[: header + 700])
    with pytest.raises(FlextokError) as failure:
        run(inputs, dest, corpus=corpus_copy)
    message = str(failure.value)
    assert "found 3 that could not" in message
    assert all(name in message for name in ("000001", "000002", "000003"))
    assert "\n" not in message
    assert sorted(os.listdir(dest)) == ["000000.parquet", "000004.parquet", "000005.parquet"]
    for name in ("000001.tar", "000002.tar", "000003.tar"):
        shutil.copy(Path(inputs.corpus) / "shards" / name, shards / name)
    summary = run(inputs, dest, corpus=corpus_copy)
    assert (summary.skipped, summary.digest) == (3, undisturbed[1])
    assert verify_tokens(str(dest), corpus_copy) == []


def test_corrupt_picture_is_listed_and_its_shard_made_again_when_mended(
    inputs, undisturbed, corpus_copy, tmp_path, caplog
):
    tar, dest = Path(corpus_copy) / "shards" / "000004.tar", tmp_path / "t"
    corrupt_picture(tar, member=7)
    summary = run(inputs, dest, corpus=corpus_copy)
    assert (summary.rows, summary.rejects) == (IMAGES - 1, 1)
    manifest = read_manifest(str(dest))
    expected = TokenStore.open(undisturbed[0]).keys()[4 * IMAGES // SHARDS + 7]
    assert [reject["source"] for reject in manifest["rejects"]] == [expected]
    assert [entry["rejects"] for entry in manifest["shards"]] == [0, 0, 0, 0, 1, 0]
    assert "shard 000004" in caplog.text
    assert verify_tokens(str(dest)) == []
    assert any("other bytes" in line for line in verify_tokens(str(dest), corpus_copy))

    corrupt_picture(tar, member=8)
    with pytest.raises(FlextokError, match=r"at most 1\.0% undecodable images, found 2 of 120"):
        run(inputs, dest, corpus=corpus_copy, max_reject_fraction=0.01)
    assert not (dest / "manifest.json").exists()

    shutil.copy(Path(inputs.corpus) / "shards" / tar.name, tar)
    summary = run(inputs, dest, corpus=corpus_copy)
    assert (summary.skipped, summary.digest) == (SHARDS - 1, undisturbed[1])
    assert verify_tokens(str(dest), corpus_copy) == []


def test_s3_that_fails_one_request_in_ten(inputs, undisturbed, s3, ray_session):
    """Corpus and store both on S3."""
    fs = fsspec.filesystem("s3")
    fs.mkdir("token-stores")  # moto keeps the buckets of the whole process
    fs.put(inputs.corpus, "token-stores/corpus", recursive=True)
    s3.faulty = True
    try:
        summary = run(inputs, "s3://token-stores/tokens", corpus="s3://token-stores/corpus")
        with locked("s3://token-stores/tokens"), pytest.raises(FlextokError, match="another run"):
            run(inputs, "s3://token-stores/tokens", corpus="s3://token-stores/corpus")
    finally:
        s3.faulty = False
    assert s3.failed >= 5
    assert s3.cut >= 1
    assert summary.digest == undisturbed[1]
    assert verify_tokens("s3://token-stores/tokens", "s3://token-stores/corpus") == []
    assert TokenStore.open("s3://token-stores/tokens").ids().shape == (IMAGES, 8)


def test_full_disk(inputs, undisturbed, small_disk):
    disk, resize = small_disk
    with pytest.raises(FlextokError, match=os.strerror(errno.ENOSPC)) as failure:
        run(inputs, disk)
    assert "\n" not in str(failure.value)
    kept = [path.name for path in disk.iterdir()]
    assert 1 <= len(kept) < SHARDS
    assert all(name.endswith(".parquet") for name in kept)
    resize("4m")
    summary = run(inputs, disk)
    assert (summary.skipped, summary.digest) == (len(kept), undisturbed[1])
    assert verify_tokens(str(disk), inputs.corpus) == []


def test_writer_that_may_write_no_more(inputs, tmp_path):
    """It tells so in one line, and leaves nothing."""
    spec = tokenizer_spec(inputs.tokenizer)
    task = shard_tasks(Corpus.open(inputs.corpus), spec, str(tmp_path / "t"), inputs.config)[0]
    worker = ShardTokenizer(spec.url, spec.digest, inputs.config.model_dump(mode="json"), 8, 1, "cpu")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        outcome = ShardOutcome.from_json(worker({"task": task_to_json(task)})["outcome"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert outcome.record is None
    assert os.strerror(errno.EFBIG) in outcome.error
    assert list((tmp_path / "t").iterdir()) == []
    again = ShardOutcome.from_json(worker({"task": task_to_json(task)})["outcome"])
    assert again.record is not None
    assert again.record.rows == IMAGES // SHARDS


def test_read_only_destination_is_refused_at_once(inputs):
    if os.geteuid() != 0:
        pytest.skip("needs root, to act as a user who may not write")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        corpus, tokenizer = f"{folder}/corpus", f"{folder}/tokenizer"
        shutil.copytree(inputs.corpus, corpus)
        shutil.copytree(inputs.tokenizer, tokenizer)
        os.seteuid(65534)
        try:
            with pytest.raises(UsageError, match="can be written"):
                tokenize_corpus(corpus, tokenizer, f"{folder}/tokens", inputs.config, inputs.compute, progress=False)
        finally:
            os.seteuid(0)
        assert not os.path.exists(f"{folder}/tokens")


def outcome_of_first_shard(inputs, corpus: str, dest: Path) -> ShardOutcome:
    spec = tokenizer_spec(inputs.tokenizer)
    task = shard_tasks(Corpus.open(corpus), spec, str(dest), inputs.config)[0]
    worker = ShardTokenizer(spec.url, spec.digest, inputs.config.model_dump(mode="json"), 8, 1, "cpu")
    return ShardOutcome.from_json(worker({"task": task_to_json(task)})["outcome"])


def test_labels_and_captions_are_those_of_the_manifests_index(inputs, undisturbed, corpus_copy, tmp_path):
    """Another caption in the tar reaches no row; an index that is not the manifest's is refused."""
    tar, index = Path(corpus_copy) / "shards" / "000000.tar", Path(corpus_copy) / "index" / "000000.parquet"
    with tarfile.open(tar) as archive:
        member = next(item for item in archive.getmembers() if item.name.endswith(".txt"))
    content = bytearray(tar.read_bytes())
    content[member.offset_data] ^= 1
    tar.write_bytes(content)
    outcome = outcome_of_first_shard(inputs, corpus_copy, tmp_path / "t")
    assert outcome.record is not None
    assert outcome.record.content_sha256 == read_manifest(undisturbed[0])["shards"][0]["content_sha256"]
    assert verify_corpus(corpus_copy) != []

    table = pq.read_table(index)
    place = table.schema.get_field_index("label")
    labels = pa.array([0] * table.num_rows, table.schema.field("label").type)
    pq.write_table(table.set_column(place, table.schema.field("label"), labels), index)
    outcome = outcome_of_first_shard(inputs, corpus_copy, tmp_path / "u")
    assert outcome.record is None
    assert "expected the index of" in outcome.error
    assert list((tmp_path / "u").iterdir()) == []


def test_shard_whose_end_was_never_written_has_its_pictures_listed(inputs, corpus_copy, tmp_path):
    """A file of the right size that ends in zeros, as a machine that lost power leaves one."""
    tar = Path(corpus_copy) / "shards" / "000000.tar"
    content = tar.read_bytes()
    with tarfile.open(tar) as archive:
        pictures = [item for item in archive.getmembers() if item.name.endswith(".png")]
    written = pictures[15].offset
    tar.write_bytes(content[:written] + bytes(len(content) - written))
    outcome = outcome_of_first_shard(inputs, corpus_copy, tmp_path / "t")
    assert outcome.record is not None
    assert outcome.record.rows == 15
    assert [reject.source for reject in outcome.rejects] == [Path(item.name).stem for item in pictures[15:]]
    assert outcome.record.source_sha256 == hashlib.sha256(tar.read_bytes()).hexdigest()
    assert "are not the corpus manifest's" in outcome.warning
