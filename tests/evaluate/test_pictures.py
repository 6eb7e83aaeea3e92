"""Our numbers for anybody's pictures, by the command, against torch-fidelity and scikit-image on the same files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from given_pictures import SETTINGS, evaluate, numbers, pictures, protocols, save
from PIL import Image
from ray_nodes import ray_nodes
from skimage.metrics import peak_signal_noise_ratio

from flextok.data.images import center_crop
from flextok.evaluate.features import load_extractor
from flextok.provenance import lineage
from pipelines import cli

COUNT = 40


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("reference"), pictures(COUNT, 0))


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("noisy"), pictures(COUNT, 1, noise=30))


def test_numbers_are_those_of_others_on_the_same_files(noisy: str, reference: str, tmp_path: Path, capsys) -> None:
    """The distances by torch-fidelity's own reading of both folders, PSNR by scikit-image."""
    found = numbers(evaluate(noisy, reference, tmp_path, capsys, "--set", "evaluation.set_metrics=[frechet,precision]"))
    load_extractor("random_conv")
    from torch_fidelity import calculate_metrics

    expected = calculate_metrics(
        input1=noisy, input2=reference, fid=True, prc=True, feature_extractor="random_conv", cuda=False, cache=False,
        save_cpu_ram=True, verbose=False,
    )  # fmt: skip
    assert found["fd_random_conv"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-5)
    assert found["precision_random_conv"] == pytest.approx(expected["precision"], abs=0.03)
    pairs = [
        [np.asarray(Image.open(Path(folder, f"{index:03d}.png"))) for folder in (reference, noisy)]
        for index in range(COUNT)
    ]
    assert found["psnr"] == pytest.approx(np.mean([peak_signal_noise_ratio(*pair) for pair in pairs]), rel=1e-5)


def test_pairs_are_those_of_equal_names(reference: str, tmp_path: Path, capsys) -> None:
    lossy = save(tmp_path / "lossy", pictures(COUNT, 1, noise=10), "jpg")
    made = evaluate(lossy, reference, tmp_path, capsys)
    rows = pq.read_table(made / "images.parquet").to_pylist()
    originals = pictures(COUNT, 0)
    expected = {
        name: np.abs(np.asarray(Image.open(f"{lossy}/{name}.jpg")).astype(float) - image).mean() / 255
        for name, image in originals.items()
    }
    assert {row["key"]: row["mae"] for row in rows} == pytest.approx(expected)
    assert protocols(made)["mae"]["file_format"] == "jpg"
    alone = evaluate(lossy, reference, tmp_path, capsys, "--no-pairs")
    assert set(numbers(alone)) == {"fd_random_conv"} and not (alone / "images.parquet").exists()
    Path(lossy, "007.jpg").unlink()
    assert set(numbers(evaluate(lossy, reference, tmp_path, capsys))) == {"fd_random_conv"}
    command = ["evaluate", "--images", lossy, "--reference", reference, "--out", str(tmp_path), *SETTINGS, "--pairs"]
    assert cli.run(command) == 2
    assert "1 that only one has, such as 007; leave --pairs out" in capsys.readouterr().err


def test_size_is_the_projects_crop(reference: str, tmp_path: Path, capsys) -> None:
    random = np.random.default_rng(0)
    large = {
        name: random.integers(0, 256, (70 + index, 100, 3), dtype=np.uint8)
        for index, name in enumerate(pictures(COUNT, 0))
    }
    cropped = {name: center_crop(image, 32) for name, image in large.items()}
    whole = evaluate(save(tmp_path / "large", large), reference, tmp_path, capsys, "--size", "32")
    alike = evaluate(save(tmp_path / "cropped", cropped), reference, tmp_path, capsys)
    assert numbers(whole) == numbers(alike)
    assert whole == alike  # the digest is of what was measured, after the crop


def test_settings_choose_metrics_and_how_many_enter(noisy: str, reference: str, tmp_path: Path, capsys) -> None:
    settings = ["evaluation.metrics=[mae]", "evaluation.set_metrics=[coverage]", "evaluation.distance_images=30"]
    made = evaluate(noisy, reference, tmp_path, capsys, *(part for each in settings for part in ("--set", each)))
    assert set(numbers(made)) == {"mae", "coverage_random_conv"}
    found = protocols(made)
    assert found["mae"]["reference"]["images"] == COUNT
    assert found["coverage_random_conv"]["distance"]["images"] == 30
    assert found["coverage_random_conv"]["distance"]["reference"]["images"] == 30


def test_two_makers_are_compared_and_another_reference_is_not(
    noisy: str, reference: str, tmp_path: Path, capsys
) -> None:
    worse = save(tmp_path / "worse", pictures(COUNT, 2, noise=60))
    other = save(tmp_path / "other", pictures(COUNT, 3, noise=5))
    first, second = (str(evaluate(each, reference, tmp_path, capsys)) for each in (noisy, worse))
    assert cli.run(["compare", f"a={first}", f"b={second}", "--json"]) == 0
    found = {number["name"]: number for number in json.loads(capsys.readouterr().out)["numbers"]}
    assert all(number["differing"] == [[]] for number in found.values())
    (change,) = found["mae"]["differences"]
    assert change["paired"] and 0 < change["half_width"] < change["value"]
    third = str(evaluate(worse, other, tmp_path, capsys))
    assert cli.run(["compare", first, third, "--json"]) == 2
    assert "distance.reference.digest" in capsys.readouterr().err


def test_the_artifact_is_like_any_other(noisy: str, reference: str, tmp_path: Path, capsys) -> None:
    folder = shutil.copytree(noisy, tmp_path / "copy")
    made = evaluate(str(folder), reference, tmp_path / "out", capsys)
    assert made == evaluate(noisy, reference, tmp_path / "out", capsys)  # where they lie is no part of it
    for command in ("inspect", "verify"):
        assert cli.run([command, str(made)]) == 0
    capsys.readouterr()
    shutil.rmtree(folder)
    again = evaluate(noisy, reference, tmp_path / "again", capsys)
    assert cli.run(["lineage", str(again), "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert [(item["kind"], item["uri"], item["found"]) for item in tree["inputs"]] == [
        ("folder", noisy, True), ("folder", reference, True),
    ]  # fmt: skip
    folder.mkdir()
    moved = evaluate(save(folder, pictures(COUNT, 5)), reference, tmp_path / "again", capsys)
    shutil.rmtree(folder)
    assert cli.run(["lineage", str(moved)]) == 0
    assert "gone" in capsys.readouterr().out


def test_a_score_without_a_reference_reads_none(noisy: str, reference: str, tmp_path: Path, capsys) -> None:
    settings = ["--set", "evaluation.set_metrics=[inception_score]", "--no-pairs"]
    made = evaluate(noisy, reference, tmp_path, capsys, *settings)
    assert set(numbers(made)) == {"is_random_conv"}
    assert [item["uri"] for item in lineage(str(made))["inputs"]] == [noisy]


def _broken(folder: Path) -> None:
    save(folder, pictures(5, 0))
    content = (folder / "001.png").read_bytes()
    (folder / "001.png").write_bytes(content[:-30])
    (folder / "002.jpg").write_bytes(b"no picture")


BAD = {
    "nothing there": (lambda folder: None, 2, "expected a folder of pictures or an .npz file, found nothing at"),
    "no pictures": (lambda folder: (folder.mkdir(), (folder / "a.txt").write_text("a")), 2, "at least 2 images for"),
    "one picture": (lambda folder: save(folder, pictures(1, 0)), 2, "at least 2 images for frechet, found 1 in"),
    "mixed sizes": (
        lambda folder: save(folder, {**pictures(3, 0), "big": pictures(1, 0, size_px=64)["000"]}), 2,
        "expected pictures of one size, found 32x32 in",
    ),
    "another crop than the reference": (
        lambda folder: save(folder, pictures(5, 0, size_px=64)), 2, "and 32x32 in",
    ),
    "no squares": (
        lambda folder: save(folder, {name: image[:20] for name, image in pictures(5, 0).items()}), 2,
        "expected square pictures in",
    ),
    "unreadable": (_broken, 1, "found 2 that cannot: 001.png: broken_image"),
    "too small": (lambda folder: save(folder, pictures(5, 0, size_px=8)), 2, "none of which decodes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, reference: str, tmp_path: Path, capsys) -> None:
    make, code, told = BAD[case]
    make(tmp_path / "bad")
    command = ["evaluate", "--images", str(tmp_path / "bad"), "--reference", reference, "--out", str(tmp_path / "out")]
    assert cli.run([*command, *SETTINGS, "--no-pairs"]) == code
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and told in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--images", "a"],
        ["--tokenizer", "t"],
        ["--images", "a", "--reference", "b", "--tokenizer", "t", "--shards", "s"],
        ["--images", "a", "--reference", "b", "--samples", "s"],
        ["--tokenizer", "t", "--shards", "s", "--size", "8"],
        [],
    ],
)
def test_options_that_do_not_fit_are_told(options: list[str], capsys) -> None:
    assert cli.run(["evaluate", "--out", "x", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: expected --")


@pytest.mark.slow
def test_workers_of_a_cluster_give_the_same_artifact(noisy: str, reference: str, tmp_path: Path, capsys) -> None:
    alone = evaluate(noisy, reference, tmp_path, capsys)
    with ray_nodes() as nodes:
        address = f"compute.address={nodes.start_head(cpus=2)}"
        assert evaluate(noisy, reference, tmp_path / "on nodes", capsys, "--set", address).name == alone.name
