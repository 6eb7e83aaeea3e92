"""What is said of the ids in token stores: usage of the codebook, entropy, rate."""

import numpy as np

from flextok.metrics.base import STATISTICS, Quantity

# Ids seen less often only reflect how many images there were.
ZIPF_MIN_COUNT = 5


def entropy_bits(counts: np.ndarray) -> float:
    """Entropy in bits of the empirical distribution of `counts`; 0 when nothing was counted."""
    present = counts[counts > 0]
    share = present / present.sum()
    return float(-(share * np.log2(share)).sum()) if len(present) else 0.0


def zipf_slope(counts: np.ndarray) -> float:
    """Least-squares slope of log count over log rank; -1 is Zipf's law, 0 uniform use or too few ids to tell."""
    ordered = np.sort(counts[counts >= ZIPF_MIN_COUNT])[::-1]
    if len(ordered) < 2:
        return 0.0
    return float(np.polyfit(np.log(np.arange(1, len(ordered) + 1)), np.log(ordered), 1)[0])


STATISTICS.register(
    Quantity(
        name="codebook_usage",
        label="Codebook in use",
        definition="distinct ids / vocabulary",
        unit="fraction",
        better="higher",
    )
)
STATISTICS.register(
    Quantity(name="codebook_perplexity", definition="2^entropy of all ids together", unit="ids", better="higher")
)
STATISTICS.register(
    Quantity(
        name="zipf_slope",
        definition=f"slope of log count over log rank, ids with count >= {ZIPF_MIN_COUNT}",
        unit="",
        better="",
    )
)
STATISTICS.register(
    Quantity(
        name="bits_per_image", definition="sum of log2(vocabulary) over kept positions", unit="bits", better="lower"
    )
)
STATISTICS.register(
    Quantity(
        name="entropy_bits_per_image",
        definition="sum of entropies over kept positions, each coded alone",
        unit="bits",
        better="lower",
    )
)
for _name, _definition in (
    ("stored", "whole Parquet files (keys, hashes, labels too) / ids"),
    ("column", "compressed column of the ids / ids"),
    ("vocabulary", "log2(vocabulary) / 8"),
    ("entropy", "mean entropy of the positions / 8"),
):
    STATISTICS.register(Quantity(name=f"{_name}_bytes_per_token", definition=_definition, unit="bytes", better="lower"))
