"""The Inception Score against torch-fidelity on the same scores and on the same pictures."""

import numpy as np
import pytest
import torch
from bare_pictures import Pictures

from flextok.errors import UsageError
from flextok.evaluate.config import EvaluationConfig
from flextok.evaluate.features import load_extractor
from flextok.evaluate.grid import ORIGINAL
from flextok.evaluate.measure import ImageSets, Measure
from flextok.evaluate.measure import Pictures as Batch
from flextok.metrics.classes import SPLITS, inception_score, score_name


@pytest.mark.parametrize(("count", "spread"), [(10, 1.0), (97, 3.0), (400, 20.0)])
def test_score_is_torch_fidelitys(count: int, spread: float) -> None:
    load_extractor("random_conv")
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = np.random.default_rng(count).normal(scale=spread, size=(count, 30))
    expected = isc_features_to_metric(torch.from_numpy(logits))["inception_score_mean"]
    assert inception_score(logits) == pytest.approx(expected, rel=1e-10)


def test_score_of_sure_classes_is_their_number_and_of_one_class_1() -> None:
    # Each of the ten parts has all of 50 classes only if it is large.
    sure = np.repeat(1e4 * np.eye(50), 400, axis=0)
    assert inception_score(sure) == pytest.approx(50, rel=0.02)
    assert inception_score(np.tile(sure[0], (20, 1))) == pytest.approx(1)
    with pytest.raises(ValueError, match="at least 10 images"):
        inception_score(sure[: SPLITS - 1])


def test_agrees_with_torch_fidelity_from_pictures_to_the_number() -> None:
    random = np.random.default_rng(0)
    images, others = (random.integers(0, high, (60, 16, 16, 3), dtype=np.uint8) for high in (256, 90))
    config = EvaluationConfig(extractor="random_conv", set_metrics=("inception_score", "frechet"))
    sets = ImageSets(config, "cpu")
    for k, pictures in ((ORIGINAL, others), (3, images)):
        for start in range(0, 60, 25):
            sets.add(Measure(ImageSets(config, "cpu"))(Batch(k, pictures[start : start + 25])))
    score, distance = (sets.compare(metric, 3, {"keep": 3}, {"images": 60}) for metric in sets.metrics)
    from torch_fidelity import calculate_metrics

    expected = calculate_metrics(
        input1=Pictures(images), input2=Pictures(others), isc=True, fid=True, feature_extractor="random_conv", cuda=False,
        cache=False, save_cpu_ram=True, verbose=False,
    )  # fmt: skip
    assert (score.name, distance.name) == ("is_random_conv", "fd_random_conv")
    assert score.value == pytest.approx(expected["inception_score_mean"], rel=1e-9)
    assert distance.value == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)
    record = score.protocol["distance"]
    assert (record["splits"], record["extractor"]["layer"], record["small_sample"]) == (10, "classes", True)
    assert "reference" not in record  # it has none, and numbers against any compare


def test_classes_of_efficientnet_are_its_own() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    extractor = load_extractor("efficientnet_lite0", 64, layers=("features", "classes"))
    found = extractor.outputs(images)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        expected = extractor.module.network((x - 127) / 128)
    np.testing.assert_allclose(found["classes"], expected.numpy(), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(found["features"], load_extractor("efficientnet_lite0", 64)(images))


def test_only_the_inception_networks_is_called_so_and_others_without_classes_are_refused() -> None:
    assert score_name("inception-v3-compat") == "inception_score"
    assert score_name("efficientnet_lite0") == "is_efficientnet_lite0"
    with pytest.raises(UsageError, match="with classes among its layers"):
        load_extractor("vgg16", layers=("classes",))
