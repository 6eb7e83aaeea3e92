"""Single pictures to tokens and back, checks against a fresh encoding, views, length policies, plans. Without Ray."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import flextok
from flextok.data import images
from flextok.data.config import CorpusConfig
from flextok.data.corpus.crops import crop_view
from flextok.data.corpus.job import shard_corpus
from flextok.data.corpus.reader import Corpus, iter_shard
from flextok.data.tokens import (
    TokenMeta,
    TokenStore,
    read_shard_footer,
    summarize_tokens,
    token_schema,
    token_table,
    verify_tokens,
    write_token_manifest,
    write_token_shard,
)
from flextok.errors import FlextokError, UsageError
from flextok.model.decoders.config import SamplerConfig
from flextok.model.load import tokenizer_spec
from flextok.provenance import artifact_input
from flextok.runtime.ahead import Prefetcher
from flextok.tokenize.actor import ShardTokenizer
from flextok.tokenize.config import TokenizeConfig
from flextok.tokenize.estimate import find_batch_size, plan_tokenization
from flextok.tokenize.files import decode_tokens, encode_images
from flextok.tokenize.lengths.threshold import ThresholdLength
from flextok.tokenize.node_faults import COMING_WITHIN_S, LEFT_OUT, NODES_FAULT, SHARDS_FAULT, UNDECIDED, NodeFaults
from flextok.tokenize.outcome import ShardOutcome
from flextok.tokenize.scheduler import task_rows
from flextok.tokenize.straggler import StragglerMonitor
from flextok.tokenize.tasks import shard_tasks, task_to_json
from flextok.tokenize.team import MOST_CRASHES
from flextok.tokenize.verify import verify_encoding

TWO_STEPS = SamplerConfig(steps=2)


@pytest.fixture(scope="module")
def pictures(inputs, tmp_path_factory) -> list[Path]:
    """Five pictures of the corpus as files with awkward names, one name twice."""
    folder = tmp_path_factory.mktemp("pictures")
    corpus = Corpus.open(inputs.corpus)
    names = ["one.png", "two words.png", "ünïcode.png", "-dash.png", "sub/one.png"]
    (folder / "sub").mkdir()
    for name, sample in zip(names, iter_shard(corpus.url, corpus.shards[0]), strict=False):
        (folder / name).write_bytes(sample.image)
    return [folder / name for name in names]


@pytest.fixture(scope="module")
def store_url(inputs, tmp_path_factory) -> str:
    """A store of the corpus made by the worker in this process."""
    dest = str(tmp_path_factory.mktemp("store"))
    spec = tokenizer_spec(inputs.tokenizer)
    tasks = shard_tasks(Corpus.open(inputs.corpus), spec, dest, inputs.config)
    worker = ShardTokenizer(spec.url, spec.digest, inputs.config.model_dump(mode="json"), 8, 1, "cpu")
    outcomes = [ShardOutcome.from_json(worker({"task": task_to_json(task)})["outcome"]) for task in tasks]
    records = [outcome.record for outcome in outcomes if outcome.record]
    made_from = [artifact_input(inputs.corpus), artifact_input(inputs.tokenizer)]
    write_token_manifest(dest, "tokens", records, tasks[0].meta, made_from, {})
    return dest


def test_encoded_files_have_the_corpus_schema_and_decode_to_safe_names(inputs, pictures, tmp_path):
    out = str(tmp_path / "tokens.parquet")
    record = encode_images([str(path) for path in pictures], inputs.tokenizer, out, TokenizeConfig(keep=4))
    store = TokenStore.open(out)
    assert (len(store), store.num_tokens, record.rows) == (5, 4, 5)
    assert len(set(store.keys())) == 5
    tokenizer = flextok.load_tokenizer(inputs.tokenizer)
    for row, path in enumerate(pictures):
        crop = images.center_crop(images.decode(path.read_bytes()).rgb, 32)
        np.testing.assert_array_equal(store[row].ids, tokenizer.tokenize(images.to_model(crop[None]))[0, :4].numpy())

    folder = tmp_path / "out"
    written = decode_tokens(out, inputs.tokenizer, str(folder), keeps=(1, 4), sampler=TWO_STEPS)
    assert len(written) == len(set(written)) == 10
    assert sorted(os.listdir(folder)) == sorted(Path(name).name for name in written)
    assert all(Path(name).name.isascii() and not Path(name).name.startswith("-") for name in written)
    with Image.open(written[0]) as picture:
        assert (picture.size, picture.mode) == ((32, 32), "RGB")
    # A picture does not depend on what else is decoded with it.
    alone = decode_tokens(out, inputs.tokenizer, str(tmp_path / "alone"), keeps=(4,), sampler=TWO_STEPS, batch_size=1)
    difference = np.asarray(Image.open(alone[3])).astype(int) - np.asarray(Image.open(written[7])).astype(int)
    assert np.abs(difference).max() <= 1


def test_hostile_keys_stay_in_the_folder(inputs, tmp_path):
    tokenizer = flextok.load_tokenizer(inputs.tokenizer)
    meta = TokenMeta(tokenizer=tokenizer.digest, vocab_size=tokenizer.vocab_size, num_tokens=tokenizer.num_tokens)
    keys = ["../../evil", "/etc/passwd", "a/b", "a_b", "A_B", "", ".", "-rf", "x" * 500, "nul\0"]
    table = token_table(token_schema(meta), np.zeros((len(keys), 8), np.int64), {"key": keys})
    write_token_shard(str(tmp_path / "t.parquet"), table.schema, [table])
    written = decode_tokens(str(tmp_path / "t.parquet"), inputs.tokenizer, str(tmp_path / "out"), sampler=TWO_STEPS)
    assert len({name.lower() for name in written}) == len(keys)
    assert {Path(name).resolve().parent for name in written} == {(tmp_path / "out").resolve()}


def test_encode_and_decode_refuse_what_cannot_be(inputs, pictures, tmp_path):
    good, out = [str(pictures[0])], str(tmp_path / "t.parquet")
    with pytest.raises(UsageError, match="nothing at"):
        encode_images([*good, str(tmp_path / "none.png")], inputs.tokenizer, out, TokenizeConfig())
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(FlextokError, match="bad"):
        encode_images([*good, str(tmp_path / "bad.png")], inputs.tokenizer, out, TokenizeConfig())
    assert not Path(out).exists()
    with pytest.raises(UsageError, match="parquet"):
        encode_images(good, inputs.tokenizer, str(tmp_path / "t.csv"), TokenizeConfig())
    encode_images(good, inputs.tokenizer, out, TokenizeConfig())
    with pytest.raises(UsageError, match=r"1\.\.8, found 9"):
        decode_tokens(out, inputs.tokenizer, str(tmp_path / "out"), keeps=(9,))


def test_verify_finds_tokens_that_are_not_their_pictures(inputs, store_url, tmp_path):
    assert verify_tokens(store_url, inputs.corpus) == []
    assert verify_encoding(store_url, rows=10) == []
    # Two rows with each other's tokens: every count and hash holds, only a fresh encoding tells.
    store = TokenStore.open(store_url)
    table = store.to_arrow().slice(0, store.shards[0].rows)
    ids = store.ids()[: table.num_rows].astype(np.int64)
    ids[[3, 4]] = ids[[4, 3]]
    columns = {name: table[name].to_pylist() for name in table.schema.names if name != "tokens"}
    url = str(tmp_path / "swapped")
    schema = token_schema(store.shards[0].meta)
    record = write_token_shard(f"{url}/000000.parquet", schema, [token_table(schema, ids, columns)])
    write_token_manifest(url, "tokens", [record], store.meta, [], {})
    assert verify_tokens(url) == []
    problems = verify_encoding(url, 20, inputs.corpus, inputs.tokenizer)
    assert {line.partition(":")[0] for line in problems} == {columns["key"][3], columns["key"][4]}


def test_verify_finds_rows_that_are_not_the_corpus(inputs, store_url, tmp_path):
    """A row lost and one doubled, with the manifest in agreement."""
    store = TokenStore.open(store_url)
    url = str(tmp_path / "t")
    records = []
    for number, shard in enumerate(store.shards):
        table = store.to_arrow().slice(20 * number, 20)
        if number == 2:
            table = table.take([0, 1, 1, *range(3, 20)])
        records.append(write_token_shard(f"{url}/{shard.name}.parquet", token_schema(shard.meta), [table]))
    write_token_manifest(url, "tokens", records, store.meta, [], {})
    assert any("1 keys occur more than once" in line for line in verify_tokens(url))


def test_summary_counts(inputs, store_url):
    summary = summarize_tokens(store_url)
    ids = TokenStore.open(store_url).ids()
    assert (summary["rows"], summary["shards"], summary["tokens"]) == (120, 6, 960)
    assert summary["bits_per_image"] == pytest.approx(8 * np.log2(320))
    assert summary["codebook_usage"] == len(np.unique(ids)) / 320
    shares = np.unique(ids, return_counts=True)[1] / ids.size
    assert summary["entropy_bits_per_token"] == pytest.approx(-(shares * np.log2(shares)).sum())


def test_views_are_the_crops_they_say():
    rgb = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    np.testing.assert_array_equal(crop_view(Image.fromarray(rgb), 32, "center"), images.center_crop(rgb, 32))
    np.testing.assert_array_equal(crop_view(Image.fromarray(rgb), 32, "start"), rgb[:, :32])
    np.testing.assert_array_equal(crop_view(Image.fromarray(rgb), 32, "end"), rgb[:, 16:])
    np.testing.assert_array_equal(crop_view(Image.fromarray(rgb), 32, "end_flip"), rgb[:, 16:][:, ::-1])
    with pytest.raises(ValueError, match="differ"):
        TokenizeConfig(views=("center", "center"))


def test_threshold_length_is_the_shortest_good_prefix(inputs, store_url):
    """Against trying every length of every image."""
    tokenizer = flextok.load_tokenizer(inputs.tokenizer)
    corpus = Corpus.open(inputs.corpus)
    samples = [sample for sample, _ in zip(iter_shard(corpus.url, corpus.shards[0]), range(12), strict=False)]
    pixels = np.stack([images.center_crop(images.decode(sample.image).rgb, 32) for sample in samples])
    ids = torch.from_numpy(TokenStore.open(store_url).ids()[:12].astype(np.int64))
    names = [sample.key for sample in samples]
    policy = ThresholdLength(metric="mse", eps=1.0, steps=1)
    curve = np.stack([policy.measure(tokenizer, pixels, ids, np.full(12, keep), names) for keep in range(1, 9)])
    policy = policy.model_copy(update={"eps": float(np.median(curve))})
    good = curve <= policy.eps
    falling = (np.diff(curve[[0, 1, 3, 7]], axis=0) <= 0).all(axis=0)
    monotone = (np.diff(curve, axis=0) <= 0).all(axis=0)
    expected = np.where(good.any(axis=0), good.argmax(axis=0) + 1, 8)
    found = policy.lengths(tokenizer, pixels, ids, names)
    exact = monotone | ~falling
    assert exact.any()
    np.testing.assert_array_equal(found[exact], expected[exact])
    assert len(set(found.tolist())) > 1


def test_plan_tells_what_a_job_would_do(inputs, store_url, tmp_path):
    dest = str(tmp_path / "t")
    plan = plan_tokenization(inputs.corpus, inputs.tokenizer, dest, inputs.config, inputs.compute)
    assert (plan.shards, plan.finished_shards, plan.images, plan.tokens_per_image) == (6, 0, 120, 8)
    assert plan.images_per_s > 0
    assert plan.seconds == pytest.approx(120 / plan.images_per_s)
    assert not Path(dest).exists()
    stored = sum(shard.bytes for shard in TokenStore.open(store_url).shards)
    assert plan.output_bytes < stored
    done = plan_tokenization(inputs.corpus, inputs.tokenizer, store_url, inputs.config, inputs.compute)
    assert (done.finished_shards, done.images) == (6, 0)


def test_batch_size_is_found(inputs):
    assert find_batch_size(flextok.load_tokenizer(inputs.tokenizer)) in (8, 16, 32, 64, 128, 256, 512)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_shard(inputs, pictures, tmp_path):
    """A shard of 0.8 GB, large pictures all of it, takes an actor no more than one of 0.1 MB."""
    small, huge = tmp_path / "small", tmp_path / "huge"
    for folder, padding, count in ((small, 0, 8), (huge, 24 * 2**20, 32)):
        folder.mkdir()
        for number in range(count):
            with (folder / f"{number}.png").open("wb") as file:
                file.write(pictures[0].read_bytes())
                file.write(bytes(padding))  # a decoder leaves alone what follows the end of a picture
    peaks = []
    for folder, rows in ((small, 8), (huge, 32)):
        config = CorpusConfig(name="big", source=str(folder), format="folder", shard_bytes=2**31)
        corpus = shard_corpus(config, "all", f"{folder}-corpus", workers=1, progress=False)
        assert corpus.shards == 1
        command = [sys.executable, str(Path(__file__).with_name("memory_process.py"))]
        done = subprocess.run(
            [*command, corpus.url, inputs.tokenizer, f"{folder}-tokens"],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            text=True, stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
        counted, peak_mib = done.stdout.split()
        assert int(counted) == rows
        peaks.append(float(peak_mib))
    assert peaks[1] < peaks[0] + 64, peaks


def test_shard_that_kills_its_actor_is_given_up(inputs, ray_session, tmp_path):
    import ray

    spec = tokenizer_spec(inputs.tokenizer)
    task = shard_tasks(Corpus.open(inputs.corpus), spec, str(tmp_path), inputs.config)[0]
    monitor = ray.remote(StragglerMonitor).options(num_cpus=0).remote({task.name: task_to_json(task)}, 60)
    arguments = (spec.url, spec.digest, inputs.config.model_dump(mode="json"), 8, 1, "cpu", monitor)
    actor = ray.remote(ShardTokenizer).options(num_cpus=0).remote(*arguments)

    def call() -> ShardOutcome:
        Path(task.dest).unlink(missing_ok=True)  # it would be found finished
        row = ray.get(actor.__call__.remote({"task": task_to_json(task)}))
        outcome = ShardOutcome.from_json(row["outcome"])
        assert outcome.error or read_shard_footer(task.dest).rows == 20
        return outcome

    # Each call but the last stands for one whose actor died.
    outcomes = [call() for _ in range(MOST_CRASHES + 2)]
    assert [outcome.error == "" for outcome in outcomes] == [True] * (MOST_CRASHES + 1) + [False]
    assert "its actor died 6 times" in outcomes[-1].error


def test_small_shards_share_rows_while_every_actor_has_many(inputs):
    corpus, spec = Corpus.open(inputs.corpus), tokenizer_spec(inputs.tokenizer)
    tasks = shard_tasks(corpus, spec, "t", inputs.config) * 32  # 192 shards of 20 images
    lines = [task_to_json(task) for task in tasks]
    for actors, in_a_row in ((1, 12), (4, 3), (12, 1), (64, 1)):
        rows = [row.split("\n") for row in task_rows(tasks, actors)]
        assert [line for row in rows for line in row] == lines
        assert {len(row) for row in rows} == {in_a_row}
    large = [dataclasses.replace(task, source=dataclasses.replace(task.source, samples=1000)) for task in tasks]
    for actors, in_a_row in ((1, 3), (4, 1)):
        assert {row.count("\n") + 1 for row in task_rows(large, actors)} == {in_a_row}
    assert task_rows([], 1) == []


def test_monitor_finds_stragglers_and_counts_images():
    now = [0.0]
    monitor = StragglerMonitor({shard: f"task {shard}" for shard in "abcd"}, straggler_s=10.0, clock=lambda: now[0])
    assert [monitor.begin(shard, "slow", "node", b"slow") for shard in "ab"] == [0, 0]
    now[0] = 30.0
    assert monitor.straggler("fast") == ""  # nobody knows yet how long a shard takes
    assert monitor.begin("c", "fast", "node", b"fast") == 0
    monitor.advance("c", 8)
    monitor.advance("a", 5)
    assert monitor.images() == 13
    now[0] = 35.0
    monitor.end("c", "node", made=True, images=20)
    assert monitor.images() == 25
    assert monitor.straggler("slow") == ""  # its own
    assert {monitor.straggler("fast"), monitor.straggler("fast")} == {"task a", "task b"}
    assert monitor.straggler("fast") == ""  # d may be on its way to an actor still, and c's outcome to the driver
    now[0] = 46.0
    assert {monitor.straggler("fast"), monitor.straggler("fast")} == {"task c", "task d"}
    monitor.end("a", "node", made=True, images=20)
    monitor.settle(["a"])
    assert monitor.begin("b", "another", "node", b"another") == 1
    assert monitor.close() == [b"slow", b"fast", b"another"]
    assert monitor.straggler("fast") is None


def test_a_failure_is_the_shards_where_every_node_has_it_and_else_the_nodes():
    now = [0.0]
    faults = NodeFaults(patience=lambda: 60.0, clock=lambda: now[0])
    nodes = ["good", "bad", "gone"]
    for node in nodes:
        faults.fit(node)

    # One that all nodes fail.
    assert faults.failed("b", "bad", ["good", "bad"], "why") == UNDECIDED
    assert (faults.wanted("bad"), faults.wanted("good"), faults.wanted("good")) == ("", "b", "")
    faults.tried("b", "good", made=False)
    assert faults.failed("b", "bad", ["good", "bad"], "why") == SHARDS_FAULT

    # Those that only one fails: at the third in a row it is left out, but a shard that it makes starts the count anew.
    def fails_alone(shard: str) -> str:
        assert faults.failed(shard, "bad", ["good", "bad"], "why") == UNDECIDED
        assert faults.wanted("good") == shard
        faults.tried(shard, "good", made=True)
        return faults.failed(shard, "bad", ["good", "bad"], f"why {shard}")

    assert [fails_alone(shard) for shard in "cd"] == [NODES_FAULT] * 2
    faults.tried("e", "bad", made=True)
    assert [fails_alone(shard) for shard in "fgh"] == [NODES_FAULT, NODES_FAULT, LEFT_OUT]
    assert faults.lines() == ["why h"]

    # The last node is never left out, and nobody waits for one that is, or longer than the patience.
    assert faults.failed("i", "good", ["good", "bad"], "why") == SHARDS_FAULT
    assert faults.failed("j", "good", nodes, "why") == UNDECIDED
    assert faults.wanted("bad") == ""
    now[0] += 61.0
    assert faults.failed("j", "good", nodes, "why") == SHARDS_FAULT


def test_the_first_node_that_is_ready_waits_for_others_before_it_gives_a_shard_up():
    now = [0.0]
    faults = NodeFaults(patience=lambda: 10.0, clock=lambda: now[0])
    faults.fit("bad")
    assert faults.failed("a", "bad", ["bad"], "why") == SHARDS_FAULT
    assert faults.failed("a", "bad", ["bad", "starting"], "why") == UNDECIDED
    now[0] = COMING_WITHIN_S
    assert faults.failed("a", "bad", ["bad", "starting"], "why") == SHARDS_FAULT
    faults.unfit("starting")
    now[0] = 0.0
    assert faults.failed("a", "bad", ["bad", "starting"], "why") == SHARDS_FAULT


def test_prefetcher_passes_errors_and_stops_with_its_consumer():
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            if number == 50:
                raise OSError("broken")
            yield number

    with Prefetcher(items(), depth=2) as ahead, pytest.raises(OSError, match="broken"):
        list(ahead)
    taken.clear()
    with Prefetcher(items(), depth=2) as ahead:
        for number in ahead:
            if number == 5:
                break
    assert max(taken) <= 9
