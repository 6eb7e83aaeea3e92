"""Distances after an exchange of tokens: neighbours beside scipy's tree, draws beside their shares, numbers beside a plain loop."""

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from tiny_pipeline import EVALUATION, TinyPipeline

from flextok.config import parse_config
from flextok.data.corpus.reader import Corpus
from flextok.data.images import to_model
from flextok.errors import UsageError
from flextok.evaluate.config import EvaluationConfig, PerturbationConfig, ReconstructionConfig
from flextok.evaluate.decoding import decode_ids
from flextok.evaluate.features import load_extractor
from flextok.evaluate.images import choose_keys, stream_images
from flextok.evaluate.perturbation import Perturber, grid_of, neighbours, require_neighbours
from flextok.evaluate.reconstruction import evaluate_reconstruction
from flextok.evaluate.results import EvaluationResult
from flextok.metrics.frechet import frechet_of_rows
from flextok.metrics.perturbed import curve_name, perturbed_name
from flextok.model.load import load_tokenizer
from flextok.model.quantizers.config import FSQConfig

GRID = PerturbationConfig(shares=(0.5, 1.0), ranks=(1, 4))


@pytest.fixture(scope="module")
def made(pipeline: TinyPipeline) -> EvaluationResult:
    config = EVALUATION.model_copy(update={"perturbation": GRID, "max_images": 40})
    return evaluate_reconstruction(pipeline.tokenizer, pipeline.val, pipeline.evaluations, config)


def test_neighbours_are_those_of_scipys_tree() -> None:
    codes = torch.randn(300, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids = torch.tensor([7, 0, 299, 7])
    _, expected = cKDTree(codes.numpy()).query(codes[ids].numpy(), k=21)
    assert neighbours(codes, ids, 20).tolist() == expected[:, 1:].tolist()


def test_neighbours_in_the_lattice_of_fsq_are_a_step_away_and_ties_go_by_id() -> None:
    levels = (4, 5, 3)
    quantizer = FSQConfig(levels=levels).build()
    codes = quantizer.codes(torch.arange(60)).double()
    found = neighbours(codes, torch.arange(60), 59)
    for own, row in enumerate(found.tolist()):
        distances = ((codes - codes[own]) ** 2).sum(dim=1).round(decimals=9).tolist()
        assert row == sorted(set(range(60)) - {own}, key=lambda other: (distances[other], other))
    steps = (codes[found[:, 0]] - codes).abs()
    assert ((steps > 0).sum(dim=1) == 1).all() and torch.allclose(steps.amax(dim=1), torch.tensor(0.5).double())


def test_so_many_tokens_are_exchanged_for_neighbours_whatever_the_batch(pipeline: TinyPipeline) -> None:
    tokenizer, points = load_tokenizer(pipeline.tokenizer), grid_of(GRID)
    keys = [f"{index}" for index in range(500)]
    ids = torch.randint(0, 16, (500, 4), generator=torch.Generator().manual_seed(0))
    perturb = Perturber(tokenizer, points, seed=3)
    found = dict(perturb(ids, keys))
    codes = tokenizer.quantizer.codes(torch.arange(16)).double()
    near = neighbours(codes, torch.arange(16), 4)
    for point in points:
        ours = found[point.k]
        assert (ours != ids).double().mean().item() == pytest.approx(point.share, abs=0.04)
        assert ((near[ids][..., : point.rank] == ours[..., None]).any(dim=-1) | (ours == ids)).all()
    used = (near[ids] == found[points[-1].k][..., None]).double().mean(dim=(0, 1))
    np.testing.assert_allclose(used, 0.25, atol=0.05)  # each rank as often
    half, whole = found[points[0].k], found[points[1].k]
    assert torch.equal(half[half != ids], whole[half != ids])
    alone = dict(perturb(ids[7:8], keys[7:8]))
    assert all(torch.equal(alone[k], found[k][7:8]) for k in found)
    other = dict(Perturber(tokenizer, points, seed=4)(ids, keys))
    assert not torch.equal(other[points[0].k], half)


def test_numbers_are_those_of_a_plain_loop(pipeline: TinyPipeline, made: EvaluationResult) -> None:
    tokenizer, config = load_tokenizer(pipeline.tokenizer), EVALUATION
    corpus = Corpus.open(pipeline.val)
    keys = choose_keys(corpus.index("key")["key"].to_list(), 40)
    (batch,) = stream_images(corpus, keys, 32, 64)
    extractor = load_extractor("random_conv")
    with torch.inference_mode():
        ids = tokenizer.tokenize(to_model(batch.images_BHWC))
    perturb = Perturber(tokenizer, grid_of(GRID), config.seed)
    for point, (_, exchanged) in zip(grid_of(GRID), perturb(ids, batch.keys), strict=True):
        images = decode_ids(tokenizer, exchanged, 4, batch.keys, config)
        expected = frechet_of_rows(extractor(batch.images_BHWC), extractor(images))
        name = f"pfd_{point.share:g}_{point.rank}_random_conv"
        assert made.value(name, 4) == pytest.approx(expected, rel=1e-3)
        protocol = next(item["protocol"] for item in made.metrics if item["name"] == name)
        assert (protocol["perturbation"]["share"], protocol["perturbation"]["rank"]) == point[1:]
        assert protocol["perturbation"]["seed"] == config.seed and "nearest others" in protocol["definition"]


def test_mean_and_curves_stand_beside_them(pipeline: TinyPipeline, made: EvaluationResult) -> None:
    grid = {
        (share, rank): made.value(f"pfd_{share:g}_{rank}_random_conv", 4)
        for share in GRID.shares
        for rank in GRID.ranks
    }
    assert made.value("pfd_mean_random_conv", 4) == pytest.approx(np.mean(list(grid.values())), rel=1e-5)
    series = {item["name"]: item for item in made.series}
    for rank in GRID.ranks:
        curve = series[f"pfd_{rank}_random_conv_by_share"]
        assert curve["at"] == [0, *GRID.shares]
        assert curve["values"] == [made.value("fd_random_conv", 4), *(grid[share, rank] for share in GRID.shares)]
    before = {(item["name"], item["k"]) for item in pipeline.reconstruction.metrics}
    assert {(item["name"], item["k"]) for item in made.metrics} > before


def test_names_are_those_of_the_extractor() -> None:
    assert perturbed_name(0.5, 16, "inception-v3-compat") == "pfid_0.5_16"
    assert perturbed_name(0.5, 16, "efficientnet_lite0") == "pfd_0.5_16_efficientnet_lite0"
    assert curve_name(16, "inception-v3-compat") == "pfid_16_by_share"


def test_what_cannot_be_perturbed_is_told(pipeline: TinyPipeline) -> None:
    tokenizer = load_tokenizer(pipeline.tokenizer)
    with pytest.raises(UsageError, match="found rank 16 and 16 ids"):
        require_neighbours(tokenizer, grid_of(PerturbationConfig(shares=(0.5,), ranks=(16,))))
    with pytest.raises(UsageError, match="shares: expected ascending numbers"):
        parse_config(EvaluationConfig, {"perturbation": {"shares": [0.5, 0.1], "ranks": [1]}}, "profile")
    with pytest.raises(UsageError, match="expected frechet among set_metrics"):
        values = {"set_metrics": ["precision"], "perturbation": {"shares": [0.5], "ranks": [1]}}
        parse_config(EvaluationConfig, values, "profile")
    assert "perturbation" not in EvaluationConfig().part(ReconstructionConfig).content()
