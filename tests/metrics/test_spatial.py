"""Spatial features against the layers run one by one, and their distance against torch-fidelity's formula."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from flextok.errors import UsageError
from flextok.evaluate.config import EvaluationConfig
from flextok.evaluate.features import load_extractor
from flextok.evaluate.grid import ORIGINAL
from flextok.evaluate.measure import ImageSets, Measure, Pictures
from flextok.metrics import SET_METRICS
from flextok.metrics.spatial import spatial_name


def pictures(count: int, side: int, high: int = 256) -> np.ndarray:
    return np.random.default_rng(high).integers(0, high, (count, side, side, 3), dtype=np.uint8)


def as_adm_does(map_BCHW: torch.Tensor) -> np.ndarray:
    """Its evaluator's lines on TensorFlow's map, whose channels are last: the first seven, flattened."""
    spatial = map_BCHW.permute(0, 2, 3, 1).numpy()[..., :7]
    return spatial.reshape([spatial.shape[0], -1])


@pytest.fixture
def untrained_inception(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network with random weights in place of the download."""
    load_extractor("random_conv")
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: {})
    monkeypatch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
    torch.manual_seed(0)


@pytest.mark.usefixtures("untrained_inception")
def test_inceptions_are_those_of_adms_layer_and_its_own_layers_stay() -> None:
    images = pictures(1, 40)
    extractor = load_extractor("inception-v3-compat", layers=("features", "spatial", "classes"))
    found, net = extractor.outputs(images), extractor.module
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as resize

    x = (resize(torch.from_numpy(images).permute(0, 3, 1, 2).float(), size=(299, 299), align_corners=False) - 128) / 128
    with torch.inference_mode():
        for layer in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2",
                      "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c"):  # fmt: skip
            x = getattr(net, layer)(x)
        branch = net.Mixed_6d.branch1x1
        expected = F.relu(branch.bn(branch.conv(x)))  # mixed_6/conv
        for layer in ("Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool"):
            x = getattr(net, layer)(x)
        pooled = x.flatten(1)
    np.testing.assert_allclose(found["spatial"], as_adm_does(expected), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["features"], pooled, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["classes"], pooled @ net.fc.weight.T, rtol=1e-4, atol=1e-6)
    assert [record["width"] for record in extractor.records.values()] == [2048, 2023, 1008]
    assert [record["layer"] for record in extractor.records.values()] == ["2048", "spatial", "logits_unbiased"]


def test_efficientnets_are_those_of_its_last_map_at_a_sixteenth() -> None:
    images = pictures(3, 96)
    extractor = load_extractor("efficientnet_lite0", 96, layers=("spatial",))
    x = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 127) / 128
    net = extractor.module.network
    with torch.inference_mode():
        x = net._swish(net._bn0(net._conv_stem(x)))
        maps = []
        for block in net._blocks:
            x = block(x, drop_connect_rate=None)
            maps.append(x)
    expected = [each for each in maps if each.shape[-1] == 96 // 16][-1]
    np.testing.assert_allclose(extractor(images), as_adm_does(expected), rtol=1e-3, atol=1e-4)


def test_distance_is_torch_fidelitys_of_these_features() -> None:
    config = EvaluationConfig(extractor="random_conv", set_metrics=("spatial_frechet", "frechet"))
    sets = ImageSets(config, "cpu")
    both = {ORIGINAL: pictures(90, 8), 2: pictures(90, 8, high=120)}
    for k, images in both.items():
        for start in range(0, 90, 40):
            sets.add(Measure(sets)(Pictures(k, images[start : start + 40])))
    made = sets.compare(SET_METRICS["spatial_frechet"], 2, {"keep": 2}, {"images": 90})
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    extractor = load_extractor("random_conv", layers=("spatial",))
    first, second = (fid_features_to_statistics(torch.from_numpy(extractor(images))) for images in both.values())
    expected = fid_statistics_to_metric(first, second, verbose=False)["frechet_inception_distance"]
    assert made.name == "sfd_random_conv"
    assert made.value == pytest.approx(expected, rel=1e-6)
    assert made.protocol["distance"]["extractor"]["layer"] == "spatial"


def test_pictures_turned_upside_down_are_farther_by_place_than_by_kind() -> None:
    """What it is for: the same things elsewhere."""
    images = pictures(60, 8)
    images[:, :4] //= 4  # dark above
    sets = ImageSets(EvaluationConfig(extractor="random_conv", set_metrics=("spatial_frechet", "frechet")), "cpu")
    for k, each in ((ORIGINAL, images[:, ::-1]), (2, images), (3, images[:, :, ::-1])):
        sets.add(Measure(sets)(Pictures(k, np.ascontiguousarray(each))))
    turned, mirrored = (
        [sets.compare(metric, k, {"keep": k}, {"images": 60}).value for metric in sets.metrics] for k in (2, 3)
    )
    assert turned[0] > 20 * turned[1] > 0 and mirrored[0] > 20 * mirrored[1]


def test_only_inceptions_is_called_sfid_and_extractors_without_a_map_are_refused() -> None:
    assert spatial_name("inception-v3-compat") == "sfid"
    assert spatial_name("efficientnet_lite0") == "sfd_efficientnet_lite0"
    with pytest.raises(UsageError, match="with spatial among its layers"):
        load_extractor("clip-vit-b-32", layers=("spatial",))
