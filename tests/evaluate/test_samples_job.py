"""Many samples by a sharded job: the same by any actors, batches and kills; pictures only where asked for; bounded memory."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from job_process import at_work
from sample_models import SAMPLES, SHARDS, Models, make_models, run, settings
from tiny_pipeline import EVALUATION, TinyPipeline
from tokenize_helpers import processes_below

from flextok.data.tokens import TokenStore
from flextok.errors import UsageError
from flextok.evaluate.config import SamplesConfig, SetComparisonConfig
from flextok.evaluate.export import export_samples
from flextok.evaluate.generation import evaluate_generation
from flextok.evaluate.samples.drawing import Sampler
from flextok.evaluate.samples.verify import verify_samples
from flextok.evaluate.sampling import open_samples, sample_images
from flextok.model.load import load_prior
from flextok.model.priors.base import Prior
from flextok.runtime.cluster import stop_ray

SCRIPT = Path(__file__).with_name("sample_models.py")
ROOT = Path(__file__).parents[2]
FEATURES = SetComparisonConfig(extractor="random_conv", set_metrics=("frechet",))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def undisturbed(models: Models, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and digest of samples drawn in one process that nothing went wrong in."""
    dest = tmp_path_factory.mktemp("undisturbed") / "samples"
    made = run(models, dest)
    assert (made.num, made.pictures, len(list(dest.glob("*.parquet")))) == (SAMPLES, 0, SHARDS)
    return dest, made.digest


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    stop_ray()
    yield
    stop_ray()


def test_samples_are_those_of_the_prior_by_their_numbers(models: Models, undisturbed: tuple[Path, str]) -> None:
    store = TokenStore.open(str(undisturbed[0]))
    expected = load_prior(models.prior).generate(labels=[row % 10 for row in range(SAMPLES)], guidance=1.5)
    assert len(np.unique(store.ids())) > 50
    assert (store.ids() == expected.numpy()).mean() > 0.99  # other batches may round a draw the other way
    assert store.keys() == [f"{row:06d}" for row in range(SAMPLES)]
    assert store.labels().tolist() == [row % 10 for row in range(SAMPLES)]
    assert verify_samples(str(undisturbed[0])) == []
    assert not (undisturbed[0] / "images").exists()


@pytest.mark.slow
def test_the_digest_is_that_of_any_actors_and_batches(
    models: Models, undisturbed: tuple[Path, str], ray_here: None, tmp_path: Path
) -> None:
    digests = {run(models, tmp_path / "one", actors=1).digest, run(models, tmp_path / "three", actors=3).digest}
    digests |= {run(models, tmp_path / f"{size}", config=settings(batch_size=size)).digest for size in (3, 16)}
    assert digests == {undisturbed[1]}


@pytest.mark.slow
def test_an_actor_that_is_killed_costs_nothing(
    models: Models, undisturbed: tuple[Path, str], ray_here: None, tmp_path: Path
) -> None:
    dest, made = tmp_path / "t", []
    job = threading.Thread(target=lambda: made.append(run(models, dest, actors=1)))
    job.start()
    wait_until_at_work(dest, job.is_alive)
    actors = [pid for pid, command in processes_below(os.getpid()).items() if "SampleDrawer" in command]
    for pid in actors:
        os.kill(pid, signal.SIGKILL)
    job.join()
    assert len(actors) == 1
    assert made[0].digest == undisturbed[1]
    assert verify_samples(str(dest)) == []


def test_a_job_that_is_killed_resumes_with_what_is_missing(
    models: Models, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    dest = tmp_path / "t"
    arguments = [sys.executable, str(SCRIPT), models.prior, models.tokenizer, str(dest)]
    process = subprocess.Popen(arguments, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    wait_until_at_work(dest, lambda: process.poll() is None)
    process.kill()
    process.wait()
    there = written(dest)
    assert 1 <= len(there) < SHARDS and not (dest / "manifest.json").exists()
    assert run(models, dest).digest == undisturbed[1]
    assert {name: written(dest)[name] for name in there} == there
    assert not list(dest.glob(".tmp-*"))
    assert verify_samples(str(dest)) == []


def test_a_shard_that_was_cut_is_made_again_and_the_others_are_not(
    models: Models, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    dest = Path(shutil.copytree(undisturbed[0], tmp_path / "t"))
    before = written(dest)
    assert run(models, dest).digest == undisturbed[1]
    manifest = (dest / "manifest.json").read_bytes()
    cut = dest / "000002.parquet"
    cut.write_bytes(cut.read_bytes()[:500])
    assert verify_samples(str(dest))
    assert run(models, dest).digest == undisturbed[1]
    assert {name for name, at in written(dest).items() if at != before[name]} == {"000002.parquet"}
    assert manifest == (undisturbed[0] / "manifest.json").read_bytes()  # nothing to do changes nothing
    assert verify_samples(str(dest)) == []


def test_another_jobs_folder_is_refused(models: Models, undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    dest = Path(shutil.copytree(undisturbed[0], tmp_path / "t"))
    for changes in ({"config": settings(num=SAMPLES + 1)}, {"label": 3}, {"keep": 4, "config": settings(keep=(4,))}):
        with pytest.raises(UsageError, match="give another folder"):
            run(models, dest, **changes)
    assert verify_samples(str(dest)) == []


def test_fewer_tokens_are_a_prefix_and_a_class_may_be_named(
    models: Models, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    made = run(models, tmp_path / "t", config=settings(num=20, keep=(3,)), keep=3)
    short, whole = TokenStore.open(made.url), TokenStore.open(str(undisturbed[0]))
    np.testing.assert_array_equal(short.ids(), whole.ids(keep=3)[:20])
    of_class = run(models, tmp_path / "c", config=settings(num=20), label=7)
    assert set(TokenStore.open(of_class.url).labels().tolist()) == {7}
    with pytest.raises(UsageError, match=r"expected --label within 0..9, found 10"):
        run(models, tmp_path / "d", label=10)


def test_pictures_are_there_where_asked_for_and_lost_ones_are_made_again(models: Models, tmp_path: Path) -> None:
    """Of 20 samples, so that the second shard has 4; features of all samples beside them."""
    dest = tmp_path / "t"
    made = run(models, dest, config=settings(pictures=20), sets=FEATURES)
    names = {path.relative_to(dest).as_posix() for path in dest.rglob("*.png")}
    assert names == {f"images/k{keep:03d}/{row:06d}.png" for keep in (2, 8) for row in range(20)}
    assert (open_samples(str(dest))[0].pictures, verify_samples(str(dest))) == (20, [])
    before = {path: path.stat().st_mtime_ns for path in [*dest.rglob("*.png"), *dest.rglob("*.safetensors")]}
    assert len(before) == 40 + 2 * SHARDS

    lost, cut = dest / "images" / "k002" / "000017.png", dest / "features" / "k008" / "000003.safetensors"
    content = lost.read_bytes()
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-9])
    assert len(verify_samples(str(dest))) == 2
    assert run(models, dest, config=settings(pictures=20), sets=FEATURES).digest == made.digest
    again = {path.relative_to(dest).as_posix() for path, at in before.items() if path.stat().st_mtime_ns != at}
    assert {name for name in again if name.endswith(".png")} == {
        f"images/k{keep:03d}/{row:06d}.png" for keep in (2, 8) for row in range(16, 20)
    }
    assert lost.read_bytes() == content and verify_samples(str(dest)) == []


def test_samples_without_pictures_are_measured_as_those_with(pipeline: TinyPipeline, tmp_path: Path) -> None:
    """By features gathered in several shards; what needs pictures says so in a line."""

    def evaluated(samples_url: str) -> dict[tuple[str, int | None], float]:
        made = evaluate_generation(samples_url, pipeline.val, pipeline.tokenizer, str(tmp_path / "e"), EVALUATION)
        return {(item["name"], item["k"]): item["value"] for item in made.metrics}

    few = EVALUATION.model_copy(update={"samples": SamplesConfig(num=32, pictures=0, shard_samples=20)})
    arguments = (pipeline.prior, pipeline.tokenizer, str(tmp_path / "s"), few)
    made = sample_images(*arguments, sets=few.part(SetComparisonConfig))
    assert not list(Path(made.url).rglob("*.png")) and not list((tmp_path / "s" / ".parts").iterdir())
    assert np.array_equal(TokenStore.open(made.url).ids(), TokenStore.open(pipeline.samples.url).ids())
    numbers, expected = evaluated(made.url), evaluated(pipeline.samples.url)
    assert numbers.keys() == expected.keys()
    np.testing.assert_allclose(list(numbers.values()), list(expected.values()), rtol=1e-6)

    with pytest.raises(UsageError, match="expected pictures of 32 samples for the export, found those of 0"):
        export_samples(made.url, str(tmp_path / "a.npz"))
    without = sample_images(*arguments)
    with pytest.raises(UsageError, match="found features of 0 samples: none; draw the samples again"):
        evaluated(without.url)


def test_a_resumed_asset_draws_only_what_is_missing(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in the fourth shard: what was drawn before is kept until the samples have their digest and folder."""
    drawn: list[range] = []
    draw = Sampler.__call__

    def failing(self: Sampler, rows: range) -> np.ndarray:
        if len(drawn) == 13:
            raise KeyboardInterrupt
        drawn.append(rows)
        return draw(self, rows)

    config, arguments = settings(pictures=3), (models.prior, models.tokenizer)
    whole = sample_images(*arguments, str(tmp_path / "whole"), config)
    monkeypatch.setattr(Sampler, "__call__", failing)
    with pytest.raises(KeyboardInterrupt):
        sample_images(*arguments, str(tmp_path / "s"), config)
    drawn.clear()
    monkeypatch.setattr(Sampler, "__call__", lambda self, rows: drawn.append(rows) or draw(self, rows))
    assert sample_images(*arguments, str(tmp_path / "s"), config).digest == whole.digest
    assert drawn[0].start == 48 and sum(map(len, drawn)) == SAMPLES - 48
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == [".parts", whole.digest]


def test_memory_does_not_grow_with_the_number_of_samples(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the ids of a thousand samples in one shard, no more than two batches are there at a time."""
    made: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def counted(self: Prior, num: int, sample_ids: range, **_: object) -> torch.Tensor:
        nonlocal most
        most = max(most, sum(ref() is not None for ref in made))
        ids = torch.randint(0, 320, (num, 8))
        made.append(weakref.ref(ids))
        return ids

    monkeypatch.setattr(Prior, "generate", counted)
    run(models, tmp_path / "t", config=settings(num=1000, shard_samples=1000, batch_size=50))
    assert len(made) == 20 and most <= 2


def wait_until_at_work(dest: Path, alive) -> None:
    while not at_work(str(dest), finished=1):
        assert alive(), "the job ended before the fault"
        time.sleep(0.002)


def written(dest: Path) -> dict[str, int]:
    """When each shard of tokens was."""
    return {path.name: path.stat().st_mtime_ns for path in dest.glob("*.parquet")}
