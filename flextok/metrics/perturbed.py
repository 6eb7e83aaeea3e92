"""What the Fréchet distance of reconstructions is called where some of their tokens were exchanged for neighbours (pFID).

The published metric (ImageFolder, RobusTok) is the mean over a grid whose code was not released; this grid is one's own,
so it stands in every name.
"""

from flextok.metrics.base import name_by_extractor

DEFINITION = (
    "Fréchet distance of reconstructions from the most tokens, each id exchanged with the probability `share` for one of the "
    "`rank` nearest others in the code space, uniformly, to that of the originals"
)


def perturbed_name(share: float, rank: int, extractor: str) -> str:
    """`pfid_<share>_<rank>` for the Inception network, else `pfd_<share>_<rank>_<extractor>`."""
    return name_by_extractor(extractor, f"pfid_{share:g}_{rank}", f"pfd_{share:g}_{rank}")


def mean_name(extractor: str) -> str:
    """Of the mean over a grid, which its protocol has: `pfid_mean` or `pfd_mean_<extractor>`."""
    return name_by_extractor(extractor, "pfid_mean", "pfd_mean")


def curve_name(rank: int, extractor: str) -> str:
    """Of the curve over shares: `pfid_<rank>_by_share` or `pfd_<rank>_<extractor>_by_share`."""
    return f"{name_by_extractor(extractor, f'pfid_{rank}', f'pfd_{rank}')}_by_share"
