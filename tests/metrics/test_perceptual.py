"""Perceptual metrics: LPIPS beside torch-fidelity's and the lpips package's, the others beside plain numpy on the same maps."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from flextok.config import parse_config
from flextok.errors import UsageError
from flextok.evaluate.config import EvaluationConfig, PicturesConfig
from flextok.evaluate.features import load_extractor
from flextok.evaluate.measure import ImageTable
from flextok.metrics import IMAGE_METRICS
from flextok.metrics.lpips import Lpips
from flextok.metrics.networks import efficientnet_record, shared_efficientnet
from flextok.metrics.perceptual import STAGES
from flextok.metrics.weights import WeightsConfig, with_weights
from flextok.tokenize.lengths.threshold import ThresholdLength


@pytest.fixture(scope="module")
def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Two pictures with shapes, and noisy ones before them: uint8 [2, 64, 72, 3] each."""
    y, x = np.mgrid[:64, :72] / 72
    shades = np.stack([np.sin(6 * x + 3 * y), np.cos(9 * y), (np.hypot(x - 0.4, y - 0.5) < 0.3) * 2.0 - 1], axis=-1)
    originals = np.stack([shades, shades[::-1]]) * 100 + 127
    noisy = originals + np.random.default_rng(0).normal(0, 40, originals.shape)
    return noisy.clip(0, 255).astype(np.uint8), originals.clip(0, 255).astype(np.uint8)


def given(metric: str, path: Path) -> WeightsConfig:
    return WeightsConfig(metric=metric, path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def random_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights by a seed for all of `module`, as large as such networks have them."""
    random = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in module.state_dict().items():
        drawn = torch.randn(tensor.shape, generator=random) / max(tensor[0].numel() if tensor.dim() else 1, 1) ** 0.5
        state[name] = drawn.abs() if name.startswith("lin") else drawn
    return state


@pytest.fixture(scope="module")
def of_torch_fidelity(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    """Its LPIPS by VGG16 with weights by a seed, and their file: in the layout of the lpips package, which it takes over."""
    load_extractor("random_conv")  # makes torch-fidelity importable
    import torch_fidelity.sample_similarity_lpips as theirs
    import torchvision

    with torch.device("meta"):
        network = torchvision.models.vgg16(weights=None)
    network.features.to_empty(device="cpu")
    with pytest.MonkeyPatch.context() as patch:  # it downloads both parts
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(theirs, "torchvision_load_pretrained_vgg16", lambda: network)
        patch.setattr(theirs.SampleSimilarityLPIPS, "load_state_dict", lambda *_, **__: None)
        module = theirs.SampleSimilarityLPIPS("lpips")
    state = {name: tensor for name, tensor in random_state(module).items() if not name.startswith("lins.")}
    path = tmp_path_factory.mktemp("weights") / "vgg.safetensors"
    save_file(state, path)
    module.load_state_dict(state, strict=False)
    return module, path


def test_lpips_is_that_of_torch_fidelity(pictures, of_torch_fidelity) -> None:
    module, path = of_torch_fidelity
    images, originals = pictures
    found = with_weights(IMAGE_METRICS["lpips_vgg"], [given("lpips_vgg", path)])
    with torch.inference_mode():
        expected = module(*(torch.tensor(each).permute(0, 3, 1, 2) for each in pictures)).numpy()
    np.testing.assert_allclose(found(images, originals), expected, rtol=1e-4)
    assert found(originals, originals).tolist() == [0, 0]
    alone = [found(images[i : i + 1], originals[i : i + 1])[0] for i in range(2)]
    assert found(images, originals).tolist() == alone
    assert found.record()["weights_sha256"] == given("lpips_vgg", path).sha256


def test_lpips_is_that_of_its_package(pictures, tmp_path: Path) -> None:
    """Its learned linear layers, behind a network that is drawn: the one it would download."""
    package = pytest.importorskip("lpips")
    torch.manual_seed(0)
    module = package.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    state = {name: each.contiguous() for name, each in module.state_dict().items() if not name.startswith("lins.")}
    save_file(state, tmp_path / "weights.safetensors")
    found = Lpips("alex", given("lpips_alex", tmp_path / "weights.safetensors"))(*pictures)
    with torch.inference_mode():
        pair = (torch.tensor(each).permute(0, 3, 1, 2) / 127.5 - 1 for each in pictures)
        expected = module(*pair).flatten().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def maps_of(images_BHWC: np.ndarray) -> list[np.ndarray]:
    """What the blocks `STAGES` give in the extractor's own pass, float64 [B, C, H, W]."""
    extractor, found = load_extractor("efficientnet_lite0"), {}
    blocks = extractor.module.network._blocks
    hooks = [
        blocks[index].register_forward_hook(lambda _m, _i, output, at=index: found.update({at: output}))
        for index in STAGES
    ]
    extractor(images_BHWC)
    for hook in hooks:
        hook.remove()
    return [found[index].double().numpy() for index in STAGES]


def test_perceptual_distance_is_that_of_numpy(pictures) -> None:
    images, originals = pictures
    expected = np.zeros(2)
    for a, b in zip(maps_of(images), maps_of(originals), strict=True):
        cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        expected += (2 - 2 * cosine).mean(axis=(1, 2))
    metric = IMAGE_METRICS["perceptual_efficientnet_lite0"]
    found = metric(images, originals)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert metric(originals, originals).tolist() == [0, 0]
    between = ((images.astype(int) + originals) // 2).astype(np.uint8)
    assert (metric(between, originals) < found).all()


def test_feature_similarity_is_the_cosine_of_the_extractors_features(pictures) -> None:
    images, originals = pictures
    extractor = load_extractor("efficientnet_lite0")
    a, b = extractor(images), extractor(originals)
    expected = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    metric = IMAGE_METRICS["feature_similarity_efficientnet_lite0"]
    np.testing.assert_allclose(metric(images, originals), expected, rtol=1e-5)
    np.testing.assert_allclose(metric(originals, originals), 1, atol=1e-12)
    assert metric.record()["weights"] == extractor.record["weights"]
    assert efficientnet_record()["input_px"] == extractor.record["input_px"]
    assert shared_efficientnet() is shared_efficientnet()


@pytest.mark.parametrize("kind", ["dinov2", "clip"])
def test_feature_similarity_of_a_folder_is_that_of_transformers_pipeline(kind: str, pictures, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    if kind == "clip":
        config = transformers.CLIPVisionConfig(**small, intermediate_size=32, projection_dim=8)
        network, processor = transformers.CLIPVisionModelWithProjection(config), transformers.CLIPImageProcessor
    else:
        network = transformers.Dinov2Model(transformers.Dinov2Config(**small))
        processor = transformers.BitImageProcessor
    prepare = processor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    network.save_pretrained(tmp_path)
    prepare.save_pretrained(tmp_path)
    weights = given(f"feature_similarity_{kind}", tmp_path / "model.safetensors")
    metric = with_weights(IMAGE_METRICS[weights.metric], [weights.model_copy(update={"path": str(tmp_path)})])
    a, b = (
        network.eval()(**prepare(images=list(each), return_tensors="pt"))[
            "image_embeds" if kind == "clip" else "pooler_output"
        ]
        for each in pictures
    )
    expected = torch.nn.functional.cosine_similarity(a, b).detach().numpy()
    np.testing.assert_allclose(metric(*pictures), expected, rtol=1e-4)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UsageError, match=f"expected a {kind} of transformers in"):
        with_weights(IMAGE_METRICS[weights.metric], [weights.model_copy(update={"path": str(tmp_path)})])


def test_weights_that_lack_or_are_others_are_told_before_any_work(of_torch_fidelity, tmp_path: Path) -> None:
    _, path = of_torch_fidelity
    right = given("lpips_vgg", path)
    other = right.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(UsageError, match=f"with sha256 {'0' * 64}, found {right.sha256}"):
        ImageTable(["mae", "lpips_vgg"], [other])
    with pytest.raises(UsageError, match="found nothing"):
        ImageTable(["lpips_vgg"], [right.model_copy(update={"path": str(tmp_path / "gone.safetensors")})])
    with pytest.raises(UsageError, match=r"expected weights of lpips.LPIPS\(net='alex'\)"):
        ImageTable(["lpips_alex"], [right.model_copy(update={"metric": "lpips_alex"})])
    with pytest.raises(UsageError, match="weights: expected those of lpips_vgg, found none"):
        parse_config(EvaluationConfig, {"metrics": ["lpips_vgg"]}, "profile")
    with pytest.raises(UsageError, match="lpips_vgg at most once, found psnr"):
        parse_config(EvaluationConfig, {"weights": [{**right.model_dump(), "metric": "psnr"}]}, "profile")
    with pytest.raises(UsageError, match="expected a metric that needs no weights"):
        parse_config(ThresholdLength, {"metric": "lpips_vgg", "eps": 0.1}, "profile")


def test_the_hash_decides_and_the_path_does_not(of_torch_fidelity) -> None:
    weights = given("lpips_vgg", of_torch_fidelity[1]).model_dump()
    here, there = (
        EvaluationConfig(metrics=("lpips_vgg",), weights=[{**weights, "path": path}]) for path in ("a", "s3://b")
    )
    assert here.part(PicturesConfig).content() == there.part(PicturesConfig).content()
    assert here.content()["weights"] == [{"metric": "lpips_vgg", "sha256": weights["sha256"]}]
    assert "weights" not in EvaluationConfig(metrics=("psnr",)).content()
