"""What is said of a prior's loss on held-out tokens."""

from flextok.metrics.base import STATISTICS, Quantity

STATISTICS.register(
    Quantity(
        name="prior_loss_bits",
        definition="negative log2 likelihood, mean over images and positions",
        unit="bits",
        better="lower",
    )
)
STATISTICS.register(
    Quantity(
        name="prior_loss_bits_shuffled",
        definition="as prior_loss_bits, condition permuted over images",
        unit="bits",
        better="",
        hint="a prior that uses its condition loses by this",
    )
)
STATISTICS.register(Quantity(name="token_entropy_bits", definition="train tokens", unit="bits", better=""))
STATISTICS.register(Quantity(name="token_entropy_bits_val", definition="held-out tokens", unit="bits", better=""))
STATISTICS.register(
    Quantity(
        name="prior_gain", definition="1 - loss / smaller of the two mean entropies", unit="fraction", better="higher"
    )
)
STATISTICS.register(
    Quantity(
        name="prior_bytes_per_image",
        definition="sum of -log2 p(id | ids before it, condition) over kept positions / 8, mean over held-out images: what they "
        "take in one arithmetic code by the prior, the condition known to the reader",
        unit="bytes",
        better="lower",
    )
)
