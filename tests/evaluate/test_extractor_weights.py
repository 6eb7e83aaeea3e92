"""Weights of the Inception network by a path: torch-fidelity's numbers of the same file, and nothing but the named file."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from flextok.errors import UsageError
from flextok.evaluate.config import ExtractorWeights
from flextok.evaluate.features import load_extractor

NAME = "inception-v3-compat"


def named(path: Path) -> ExtractorWeights:
    return ExtractorWeights(path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of seeded tensors in the layout of the published file."""
    load_extractor("random_conv")
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(3)
        untrained = inception.FeatureExtractorInceptionV3(NAME, ["2048"])
    path = tmp_path_factory.mktemp("weights") / "weights-inception.pth"
    torch.save(untrained.state_dict(), path)
    return path


def test_features_are_torch_fidelitys_of_the_same_file(file: Path):
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 40, 3), dtype=np.uint8)
    extractor = load_extractor(NAME, layers=("features", "classes"), weights=named(file))
    found = extractor.outputs(images)
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    theirs = FeatureExtractorInceptionV3(NAME, ["2048", "logits_unbiased"], feature_extractor_weights_path=str(file))
    features, logits = theirs(torch.from_numpy(images).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(found["features"], features.double().numpy())
    np.testing.assert_array_equal(found["classes"], logits.double().numpy())
    assert (found["features"].shape, found["classes"].shape) == ((1, 2048), (1, 1008))


def test_other_files_are_told(file: Path, tmp_path: Path):
    def told(weights: ExtractorWeights, name: str = NAME) -> str:
        with pytest.raises(UsageError) as error:
            load_extractor(name, weights=weights)
        return str(error.value)

    good = named(file)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(file.read_bytes()[:-1000])
    assert f"sha256 {good.sha256}, found" in told(ExtractorWeights(path=str(cut), sha256=good.sha256))
    assert "expected tensors alone" in told(named(cut))
    assert "found nothing there" in told(ExtractorWeights(path=str(tmp_path / "none.pth"), sha256=good.sha256))
    other = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(2)}, other)
    assert "found another network's" in told(named(other))
    assert "for inception-v3-compat and vgg16 only" in told(good, "random_conv")


def test_nothing_is_unpickled(tmp_path: Path):
    class Planted:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    file = tmp_path / "planted.pth"
    torch.save({"weight": Planted()}, file)
    with pytest.raises(UsageError, match="expected tensors alone"):
        load_extractor(NAME, weights=named(file))
    assert not (tmp_path / "ran").exists()
