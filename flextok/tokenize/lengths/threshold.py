"""An image keeps the fewest tokens whose reconstruction is close enough."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from flextok.data import images
from flextok.errors import UsageError
from flextok.metrics import pixel  # noqa: F401 - registers the pixel metrics
from flextok.metrics.base import IMAGE_METRICS
from flextok.model.decoders.config import SamplerConfig
from flextok.tokenize.lengths.base import LENGTHS, LengthPolicy

if TYPE_CHECKING:
    import torch

    from flextok.model.tokenizer import Tokenizer


@LENGTHS.register
class ThresholdLength(SamplerConfig, LengthPolicy):
    """An image keeps the fewest tokens whose reconstruction is close enough, or all when none is.

    Looks at 1, 2, 4, ... tokens; where the error falls all the way it bisects between two of them, elsewhere it tries
    every number. This decodes each image many times: expect it to cost 10 to 100 times the encoding.
    """

    kind: Literal["threshold"] = "threshold"
    metric: str = Field("mae", description="Image metric that judges a reconstruction: mae, mse, psnr or another.")
    eps: float = Field(gt=0, description="Largest error, or smallest likeness, that is close enough.")
    measured: Literal["uint8"] = Field("uint8", description="Reconstructions are measured as 8-bit pictures.")
    guidance: float = Field(default=1.0, ge=0, description="Guidance of the flow decoder; 1 is none.")
    short_form: ClassVar[str] = "METRIC:EPS"

    @field_validator("metric")
    @classmethod
    def _is_registered(cls, metric: str) -> str:
        try:
            found = IMAGE_METRICS[metric]
        except UsageError as error:
            raise ValueError(str(error)) from None
        if found.of_weights is not None:
            raise ValueError(
                f"expected a metric that needs no weights, found {metric}; perceptual_efficientnet_lite0 does"
            )
        return found.name

    def require(self, image_px: int) -> None:
        """See LengthPolicy."""
        IMAGE_METRICS[self.metric].require(image_px)

    def lengths(
        self, tokenizer: "Tokenizer", pixels: np.ndarray, ids: "torch.Tensor", sample_ids: Sequence[str]
    ) -> np.ndarray:
        """See LengthPolicy."""
        sign = -1 if IMAGE_METRICS[self.metric].better == "higher" else 1

        def errors(rows: np.ndarray, keep: np.ndarray) -> np.ndarray:
            names = [sample_ids[int(row)] for row in rows]
            return sign * self.measure(tokenizer, pixels[rows], ids[rows.tolist()], keep, names)

        return shortest_good(errors, sign * self.eps, *ids.shape[:2])

    def measure(
        self,
        tokenizer: "Tokenizer",
        pixels: np.ndarray,
        ids: "torch.Tensor",
        keep: np.ndarray,
        sample_ids: Sequence[str],
    ) -> np.ndarray:
        """The metric of each image decoded from its first `keep[i]` tokens, float64 [B]."""
        sampler = {name: getattr(self, name) for name in SamplerConfig.model_fields}
        decoded = tokenizer.detokenize(ids, keep=keep.tolist(), sample_ids=list(sample_ids), **sampler)
        return IMAGE_METRICS[self.metric](images.to_uint8(decoded), pixels)

    @classmethod
    def from_short(cls, text: str) -> dict[str, Any] | None:
        """`mae:0.02`."""
        metric, colon, eps = text.partition(":")
        return {"kind": "threshold", "metric": metric, "eps": eps} if colon and "=" not in eps else None


def shortest_good(
    errors: Callable[[np.ndarray, np.ndarray], np.ndarray], largest: float, rows: int, stored: int
) -> np.ndarray:
    """The smallest number of tokens, int64 [rows] in 1..stored, at which the error of an image is at most `largest`.

    `errors(rows, keep)` gives float64, the error of each of these images from its first `keep[i]` tokens. Images none of
    whose prefixes is good enough get `stored`.
    """
    grid = sorted({*(2**power for power in range(stored.bit_length()) if 2**power <= stored), stored})
    everyone = np.arange(rows)
    curve_KB = np.stack([errors(everyone, np.full(rows, keep)) for keep in grid])
    lengths = np.full(rows, stored)
    falling = (np.diff(curve_KB, axis=0) <= 0).all(axis=0)

    # Where the error falls along the grid, the shortest good length lies in one of its gaps.
    good_KB = curve_KB <= largest
    first = good_KB.argmax(axis=0)
    reached = good_KB.any(axis=0)
    high = np.array(grid)[first]
    low = np.where(first > 0, np.array([0, *grid])[first], 0)
    active = np.flatnonzero(falling & reached)
    lengths[active] = high[active]
    while (active := active[high[active] - low[active] > 1]).size:
        middle = (low[active] + high[active]) // 2
        good = errors(active, middle) <= largest
        high[active] = np.where(good, middle, high[active])
        low[active] = np.where(good, low[active], middle)
        lengths[active] = high[active]

    waiting = np.flatnonzero(~falling)
    for keep in range(1, stored):
        if not waiting.size:
            break
        good = errors(waiting, np.full(len(waiting), keep)) <= largest
        lengths[waiting[good]] = keep
        waiting = waiting[~good]
    return lengths
