"""Rate and distortion of tokens in codes that know how likely ids are: by the histogram of each position, by the prior."""

from collections.abc import Iterator

from flextok.evaluate.prior_statistics import PriorCode
from flextok.evaluate.rate import BY_BYTES
from flextok.evaluate.results import EvaluationResult, Series, significant
from flextok.evaluate.tokens import TokenStatistics
from flextok.metrics.base import IMAGE_METRICS

ENTROPY, PRIOR = "entropy", "prior"
"""Begin the names of curves: `entropy_<metric>_by_bytes`, `prior_<metric>_by_bytes`."""
BY_HISTOGRAMS = "entropies of the histograms of train ids, each position coded alone"
BY_PRIOR = "the prior's probabilities, images in one arithmetic code, and the condition of each"
DECODING = (
    "reader and writer must have p alike to the last bit, so both compute it position by position, with the same batches on the "
    "same machine; the bytes are by p of whole rows, which differs from it in the last bits"
)


def coded_curves(reconstructions: EvaluationResult, tokens: TokenStatistics, code: PriorCode) -> Iterator[Series]:
    """Each metric of images that was measured by K, over the mean bytes of K tokens in either code, where they take any."""
    codes = {
        ENTROPY: (
            tokens.entropy_by_position().cumsum() / 8,
            {"by": BY_HISTOGRAMS, "tokens": tokens.store.digest, "images": tokens.rows},
        ),
        PRIOR: (
            code.bytes_L + code.condition_bytes,
            {
                "by": BY_PRIOR,
                **{name: code.protocol[name] for name in ("prior", "condition", "condition_bytes", "tokens", "images")},
                "decoding": DECODING,
            },
        ),
    }
    for name in dict.fromkeys(item["name"] for item in reconstructions.metrics):
        curve = reconstructions.curve(name)
        if name not in IMAGE_METRICS.names() or not curve:
            continue
        protocol = next(item["protocol"] for item in reconstructions.metrics if item["name"] == name)
        for prefix, (bytes_L, record) in codes.items():
            sizes = {keep: significant(bytes_L[keep - 1]) for keep in curve}
            found = {sizes[keep]: value for keep, value in curve.items() if sizes[keep] > 0}
            shared = {**{field: value for field, value in protocol.items() if field != "keep"}, "code": record}
            yield Series(f"{prefix}_{name}{BY_BYTES}", "bytes", list(found), list(found.values()), shared)
