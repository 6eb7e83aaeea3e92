"""ADM's .npz files: written and read by numpy on the other side, and refused where they are damaged or unsafe."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from given_pictures import SETTINGS, evaluate, numbers, pictures, protocols, save
from tiny_pipeline import TinyPipeline

from flextok.data import npz
from flextok.data.corpus.reader import Corpus
from flextok.errors import UsageError
from flextok.evaluate.features import load_extractor
from flextok.evaluate.images import stream_images
from flextok.evaluate.sampling import read_images
from flextok.metrics.statistics import FeatureStatistics
from pipelines import cli

COUNT = 70


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("made"), pictures(COUNT, 1, noise=30))


def stacked(seed: int, noise: int = 0) -> np.ndarray:
    return np.stack(list(pictures(COUNT, seed, noise).values()))


def statistics(images: np.ndarray, names: tuple[str, str] = ("mu", "sigma")) -> dict[str, np.ndarray]:
    features = load_extractor("random_conv")(images)
    return dict(zip(names, (features.mean(axis=0), np.cov(features, rowvar=False)), strict=True))


def test_what_numpy_writes_is_read_and_the_other_way_round(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 6, 4, 3), dtype=np.uint8)
    for number, save_arrays in enumerate((np.savez, np.savez_compressed)):
        save_arrays(tmp_path / f"{number}.npz", images, np.arange(10))
        file = npz.NpzFile(str(tmp_path / f"{number}.npz"))
        assert (file.num_pictures, file.picture_size) == (10, (4, 6))
        batches = list(file.pictures(4))
        assert [len(batch) for batch in batches] == [4, 4, 2]
        np.testing.assert_array_equal(np.concatenate(batches), images)
    npz.write_pictures(str(tmp_path / "ours.npz"), images.shape, [images[:7], images[7:]])
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as loaded:
        np.testing.assert_array_equal(loaded["arr_0"], images)


def test_arrays_give_the_numbers_of_a_folder(made: str, tmp_path: Path, capsys) -> None:
    np.savez(tmp_path / "images.npz", stacked(1, noise=30))
    np.savez_compressed(tmp_path / "reference.npz", stacked(0))
    reference = save(tmp_path / "reference", pictures(COUNT, 0))
    from_arrays = evaluate(str(tmp_path / "images.npz"), str(tmp_path / "reference.npz"), tmp_path, capsys)
    from_folders = evaluate(made, reference, tmp_path, capsys, "--no-pairs")
    # What was measured is the same to the bit, and only the files say that they are others.
    assert from_arrays == from_folders


def test_statistics_stand_for_pictures(made: str, tmp_path: Path, capsys) -> None:
    np.savez(tmp_path / "statistics.npz", **statistics(stacked(0)))
    np.savez(tmp_path / "pictures.npz", stacked(0))
    from_statistics = evaluate(made, str(tmp_path / "statistics.npz"), tmp_path, capsys)
    from_pictures = evaluate(made, str(tmp_path / "pictures.npz"), tmp_path, capsys)
    assert numbers(from_statistics)["fd_random_conv"] == pytest.approx(
        numbers(from_pictures)["fd_random_conv"], rel=1e-5
    )
    assert protocols(from_statistics)["fd_random_conv"]["distance"]["reference"]["kind"] == "given statistics"
    assert cli.run(["compare", str(from_statistics), str(from_pictures)]) == 2
    assert "distance.reference.digest" in capsys.readouterr().err


def test_a_reference_batch_uses_its_statistics_for_the_distance_and_its_pictures_for_precision(
    made: str, tmp_path: Path, capsys
) -> None:
    """ADM's batches hold statistics of the whole set beside 10,000 pictures of it."""
    batch = stacked(0)[:40]
    np.savez(tmp_path / "batch.npz", batch, **statistics(stacked(0)))
    np.savez(tmp_path / "whole.npz", **statistics(stacked(0)))
    np.savez(tmp_path / "part.npz", batch)
    both = ["--set", "evaluation.set_metrics=[frechet,precision]"]
    found = evaluate(made, str(tmp_path / "batch.npz"), tmp_path, capsys, *both)
    whole = evaluate(made, str(tmp_path / "whole.npz"), tmp_path, capsys)
    part = evaluate(made, str(tmp_path / "part.npz"), tmp_path, capsys, *both)
    assert numbers(found)["fd_random_conv"] == numbers(whole)["fd_random_conv"]
    assert numbers(found)["precision_random_conv"] == numbers(part)["precision_random_conv"]
    assert protocols(found)["precision_random_conv"]["distance"]["reference"]["images"] == 40


def test_spatial_statistics_and_metrics_without_a_reference(made: str, tmp_path: Path, capsys) -> None:
    spatial = load_extractor("random_conv", layers=("spatial",))(stacked(0))
    mean, covariance = spatial.mean(axis=0), np.cov(spatial, rowvar=False)
    np.savez(tmp_path / "adm.npz", **statistics(stacked(0)), mu_s=mean, sigma_s=covariance)
    np.savez(tmp_path / "pictures.npz", stacked(0))
    names = ["--set", "evaluation.set_metrics=[spatial_frechet,inception_score]"]
    of_statistics = evaluate(made, str(tmp_path / "adm.npz"), tmp_path, capsys, *names)
    of_pictures = evaluate(made, str(tmp_path / "pictures.npz"), tmp_path, capsys, *names)
    assert numbers(of_statistics) == pytest.approx(numbers(of_pictures), rel=1e-4)
    assert protocols(of_statistics)["sfd_random_conv"]["distance"]["reference"]["arrays"] == ["mu_s", "sigma_s"]
    assert cli.run(["compare", str(of_statistics), str(of_pictures), "--json"]) == 0
    found = {item["name"]: item["differing"] for item in json.loads(capsys.readouterr().out)["numbers"]}
    assert found["is_random_conv"] == [[]] and "distance.reference.digest" in str(found["sfd_random_conv"])


def refused(images: str, reference: Path, capsys, *more: str) -> str:
    command = ["evaluate", "--images", images, "--reference", str(reference), "--out", "nowhere", *SETTINGS, *more]
    assert cli.run(command) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def test_metrics_that_need_pictures_say_so(made: str, tmp_path: Path, capsys) -> None:
    np.savez(tmp_path / "statistics.npz", **statistics(stacked(0)))
    line = refused(made, tmp_path / "statistics.npz", capsys, "--set", "evaluation.set_metrics=[frechet,recall]")
    assert "expected pictures (arr_0)" in line and "for recall, found mu, sigma" in line
    np.savez(tmp_path / "wide.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    assert "expected statistics of 32 features for frechet, as random_conv has them, found 2048" in refused(
        made, tmp_path / "wide.npz", capsys
    )


class Unpickled(Exception):
    """That must not happen."""


class Trap:
    def __reduce__(self):
        return exec, ("raise __import__('test_npz').Unpickled",)


def test_a_pickle_inside_is_refused(made: str, tmp_path: Path, capsys) -> None:
    np.savez(tmp_path / "objects.npz", arr_0=np.array([Trap()], dtype=object))
    assert "which are never loaded" in refused(made, tmp_path / "objects.npz", capsys)
    np.savez(tmp_path / "labels.npz", stacked(0), np.array([Trap()], dtype=object))
    assert "which are never loaded" in refused(made, tmp_path / "labels.npz", capsys)
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps({"mu": [0.0]}))
    assert "damaged or cut off" in refused(made, tmp_path / "pickle.npz", capsys)


@pytest.mark.parametrize("save_arrays", [np.savez, np.savez_compressed])
def test_any_truncation_and_flipped_bytes_are_refused(save_arrays, tmp_path: Path) -> None:
    whole = io.BytesIO()
    save_arrays(whole, np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8))
    content = whole.getvalue()
    path = tmp_path / "cut.npz"
    for end in range(0, len(content), 97):
        path.write_bytes(content[:end])
        with pytest.raises(UsageError, match="damaged or cut off"):
            list(npz.NpzFile(str(path)).pictures(3))
    for place in range(200, len(content) - 200, 401):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        with pytest.raises(UsageError, match="damaged or cut off"):
            list(npz.NpzFile(str(path)).pictures(3))


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"arr_0": np.zeros((4, 3, 8, 8), np.uint8)}, "uint8 [N, H, W, 3] of at most"),
        ({"arr_0": np.zeros((4, 8, 8, 3), np.float32)}, "found float32"),
        ({"arr_0": np.zeros((1, 0, 8, 3), np.uint8)}, "uint8 [N, H, W, 3] of at most"),
        ({"mu": np.zeros(32)}, "found (32,) and None"),
        ({"mu": np.zeros(32), "sigma": np.eye(31)}, "found (32,) and (31, 31)"),
        ({"mu": np.full(32, np.nan), "sigma": np.eye(32)}, "expected finite mu and sigma"),
        ({"mu": np.zeros(32), "sigma": -np.eye(32)}, "expected sigma in"),
        ({"mu": np.zeros(32), "sigma": np.triu(np.ones((32, 32)))}, "symmetric and with no negative variance"),
        ({"mu": np.zeros(32), "sigma": np.eye(32, dtype=int)}, "floating point numbers as sigma"),
        ({"labels": np.zeros(3)}, "expected arr_0 or mu and sigma"),
    ],
)
def test_other_arrays_are_told(arrays: dict[str, np.ndarray], told: str, made: str, tmp_path: Path, capsys) -> None:
    np.savez(tmp_path / "other.npz", **arrays)
    assert told in refused(made, tmp_path / "other.npz", capsys)


def test_a_header_that_promises_more_than_there_is_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 64, 64, 3)})
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("arr_0.npy", header.getvalue() + b"0" * 100)
    with pytest.raises(UsageError, match="damaged or cut off"):
        npz.NpzFile(str(tmp_path / "bomb.npz"))


def test_samples_are_exported_as_their_pictures(pipeline: TinyPipeline, tmp_path: Path, capsys) -> None:
    dest = str(tmp_path / "samples.npz")
    assert cli.run(["export-samples", pipeline.samples.url, dest, "--keep", "2"]) == 0
    with np.load(dest, allow_pickle=False) as loaded:
        assert loaded.files == ["arr_0"]
        np.testing.assert_array_equal(
            loaded["arr_0"], read_images(pipeline.samples.url, 2, [f"{index:06d}" for index in range(32)])
        )
    for wrong, told in ((["x.npz", "--keep", "3"], "among [1, 2, 4]"), (["x.zip"], "ending in .npz")):
        assert cli.run(["export-samples", pipeline.samples.url, *wrong]) == 2
        assert told in capsys.readouterr().err


def test_samples_have_the_number_of_the_pipeline_by_every_way(pipeline: TinyPipeline, tmp_path: Path, capsys) -> None:
    """As our evaluation reads them, as a folder of their files, and as the .npz for others."""
    corpus = Corpus.open(pipeline.val)
    keys = corpus.index("key")["key"].to_list()
    originals = [batch.images_BHWC for batch in stream_images(corpus, keys, 32, 16)]
    reference = str(tmp_path / "reference.npz")
    npz.write_pictures(reference, (len(keys), 32, 32, 3), originals)
    exported = str(tmp_path / "samples.npz")
    assert cli.run(["export-samples", pipeline.samples.url, exported, "--keep", "4"]) == 0
    capsys.readouterr()
    of_folder = evaluate(f"{pipeline.samples.url}/images/k004", reference, tmp_path, capsys)
    of_file = evaluate(exported, reference, tmp_path, capsys)
    expected = {"fd_random_conv": pipeline.generation.value("fd_random_conv_samples", 4)}
    assert numbers(of_folder) == numbers(of_file) == expected


def test_statistics_are_those_of_the_sample_covariance() -> None:
    """So that ours and ADM's (numpy.cov) mean the same."""
    features = load_extractor("random_conv")(stacked(0))
    ours = FeatureStatistics.empty(features.shape[1])
    ours.add(features)
    given = statistics(stacked(0))
    np.testing.assert_allclose(ours.mean(), given["mu"], rtol=1e-10)
    np.testing.assert_allclose(ours.covariance(), given["sigma"], rtol=1e-6, atol=1e-10)
