"""What a metric is, and the registers of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from flextok.errors import UsageError
from flextok.registry import RoomRegister

Layer = Literal["features", "classes", "spatial"]
"""Of an extractor: its features, its scores of classes before softmax, or a map of features in its midst."""


@dataclass(frozen=True)
class Quantity:
    """What is said of a number, in protocols, report and documents."""

    name: str
    definition: str
    """In a line."""
    unit: str
    """"" for a plain number, "fraction" for one that is read as a percentage."""
    better: Literal["lower", "higher", ""]
    """"" where neither is."""
    _: KW_ONLY
    label: str = ""
    """Title for people; the name where there is none."""
    hint: str = ""
    """What the number means, in a few words for people."""

    @property
    def shown_unit(self) -> str:
        """The unit as it is written beside a number."""
        return "" if self.unit == "fraction" else self.unit

    @property
    def title(self) -> str:
        """Label and unit, as over a chart."""
        label = self.label or self.name
        return f"{label}, {self.shown_unit}" if self.shown_unit else label


@dataclass(frozen=True)
class ImageMetric(Quantity):
    """A number for each image against its original. Results are the means over images."""

    compute: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """(images, originals), both uint8 [B, H, W, C] of one shape -> float64 [B]."""
    _: KW_ONLY
    smallest_px: int = 1
    """Side of the smallest images that it has a number for."""
    record: Callable[[], Mapping[str, Any]] = dict
    """What else decides its numbers (weights, window), for the protocol."""
    of_weights: Callable[[Any], "ImageMetric"] | None = None
    """The metric with weights that are given by a path, a `flextok.metrics.weights.WeightsConfig`; None: it needs none."""
    in_summary: bool = True
    """Whether the report shows it as a chart and beside its title, rather than only in the table of all numbers."""

    def require(self, image_px: int) -> None:
        """Raises UsageError where it has no number for images of this side."""
        if image_px < self.smallest_px:
            raise UsageError(
                f"expected images of at least {self.smallest_px} px for {self.name}, found {image_px} px; "
                "name another metric"
            )

    def __call__(self, images_BHWC: np.ndarray, originals_BHWC: np.ndarray) -> np.ndarray:
        """float64 [B]; raises ValueError unless both are uint8 [B, H, W, C] of one shape, large enough."""
        for name, array in (("images", images_BHWC), ("originals", originals_BHWC)):
            if array.dtype != np.uint8 or array.ndim != 4:
                raise ValueError(f"expected {name} as uint8 [B, H, W, C], found {array.dtype} {array.shape}")
        if images_BHWC.shape != originals_BHWC.shape:
            raise ValueError(f"expected two equal shapes, found {images_BHWC.shape} and {originals_BHWC.shape}")
        height, width = images_BHWC.shape[1:3]
        if min(height, width) < self.smallest_px:
            raise ValueError(
                f"expected images of at least {self.smallest_px} px for {self.name}, found {height} x {width}"
            )
        return self.compute(images_BHWC, originals_BHWC)


@dataclass(frozen=True)
class SampleMetric(Quantity):
    """A number for each sampled image by what it was to show. Results are the means over images."""

    compute: Callable[[np.ndarray, Sequence[str]], np.ndarray]
    """(images uint8 [B, H, W, 3], their conditions) -> float64 [B]."""
    condition: Literal["class", "text"]
    """What it asks for: the name of the image's class, or a caption."""
    _: KW_ONLY
    of_weights: Callable[[Any], "SampleMetric"] | None = None
    """As of an ImageMetric."""
    record: Callable[[], Mapping[str, Any]] = dict
    """What else decides its numbers (weights), for the protocol."""


Content = Literal["text", "faces"]
"""What recognisers look for: words, or faces."""


@dataclass(frozen=True)
class ContentMetric(Quantity):
    """A number for each image by what a recogniser makes of its words or faces. Results are means over the images that have
    any; they are called `<name>_<recogniser>`."""

    compute: Callable[[Any, Any], np.ndarray]
    """(what is made of regions of an image, what is true of them) -> float64, one for each region. Of words both are lists of
    texts; of faces features [R, D], of the image and of its original."""
    content: Content
    """What it is about."""


@dataclass(frozen=True)
class SetMetric(Quantity):
    """A number for a set of images against a reference set, from features of both."""

    needs: Literal["statistics", "features"]
    """What `compute` works on: `FeatureStatistics`, whose memory does not grow with the set, or features [N, D]."""
    compute: Callable[[Any, Any], float]
    """(reference, images), each what the metric needs."""
    number_name: Callable[[str], str]
    """Name of its numbers for the name of their features (an extractor's, or its own): other features, another name."""
    _: KW_ONLY
    images_needed: Callable[[int], int] = lambda width: 2
    """Images of each set below which the number is biased, for features of a width: such numbers are marked."""
    fewest: int = 2
    """Images of each set without which there is no number at all."""
    of_rows: Callable[[Any, Any], float] | None = None
    """`compute` from features [N, D], for metrics of statistics that have a faster way where there are few."""
    layer: Layer = "features"
    """What it takes of the evaluation's extractor."""
    uses_reference: bool = True
    """Whether the reference set enters; where it does not, `compute` has None in its place."""
    given: tuple[str, str] | None = None
    """Names of the mean and covariance in ADM's .npz files that may stand for the reference set."""
    features: Callable[[np.ndarray], np.ndarray] | None = None
    """Its own features, uint8 [B, H, W, 3] -> [B, D]; None: a layer of the evaluation's extractor."""
    record: Callable[[], Mapping[str, Any]] = dict
    """What else decides its numbers (kernel, subset size, k), for the protocol."""

    @property
    def reading(self) -> str:
        """Which numbers are the good ones, in words."""
        return f"{self.better} is {'nearer' if self.uses_reference else 'better'}"

    def called(self, extractor: str) -> str:
        """What its numbers are called in an evaluation with `extractor`."""
        return self.number_name(self.name if self.features is not None else extractor)

    def protocol(self, extractor: Mapping[str, Any], images: int, reference: Mapping[str, Any]) -> dict[str, Any]:
        """How a number was measured: `images` of the set, features by `extractor`, against `reference` (both records).

        `small_sample` says that fewer images than needed entered; such a number compares only with one over as many. Of a
        reference that does not say its number of images, they are taken to be enough.
        """
        needed = self.images_needed(extractor["width"])
        entered = min(images, reference.get("images", images)) if self.uses_reference else images
        return {
            "definition": self.definition,
            "extractor": dict(extractor),
            "images": images,
            **({"reference": dict(reference)} if self.uses_reference else {}),
            "images_needed": needed,
            "small_sample": entered < needed,
            **self.record(),
        }


def features_name(extractor: str) -> str:
    """An extractor as a part of a number's name."""
    return extractor.replace("-", "_")


INCEPTION = "inception-v3-compat"
"""The extractor that published numbers are of."""


def name_by_extractor(extractor: str, published: str, other: str) -> str:
    """What a number is called: as published ones are for the Inception network alone, else `<other>_<extractor>`."""
    return published if extractor == INCEPTION else f"{other}_{features_name(extractor)}"


QuantityT = TypeVar("QuantityT", bound=Quantity)


class QuantityRegister(RoomRegister[QuantityT]):
    """Metrics by name, those of all modules of this room and what others add."""

    def register(self, quantity: QuantityT) -> QuantityT:
        """Add `quantity` under its own name; raises ValueError where another one has it."""
        return self.add(quantity.name, quantity)


HOME = "flextok.metrics"
IMAGE_METRICS: QuantityRegister[ImageMetric] = QuantityRegister("metric of images", HOME)
SET_METRICS: QuantityRegister[SetMetric] = QuantityRegister("metric of sets", HOME)
SAMPLE_METRICS: QuantityRegister[SampleMetric] = QuantityRegister("metric of samples", HOME)
CONTENT_METRICS: QuantityRegister[ContentMetric] = QuantityRegister("metric of content", HOME)
STATISTICS: QuantityRegister[Quantity] = QuantityRegister("statistic", HOME)
"""Numbers that an evaluation computes in passing, of token stores, priors and curves: what is said of them."""
