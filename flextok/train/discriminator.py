"""The patch discriminator of an autoencoder's training: what tells pictures from reconstructions, place by place.

PatchGAN (Isola et al., arXiv 1611.07004) as VQGAN has it (Esser et al., arXiv 2012.09841, appendix), but for GroupNorm in the
place of BatchNorm: a picture is judged alike whatever stands beside it in the batch, or on which worker.
"""

import math
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from flextok.train.config import DiscriminatorConfig

MOST_WIDENINGS = 3
"""Widths grow to eight times the first."""
GROUPS = 32


class PatchDiscriminator(nn.Module):
    """Logits of patches, large where a picture looks real; convolutions drawn from N(0, 0.02) as published."""

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        widths = [config.channels * 2 ** min(depth, MOST_WIDENINGS) for depth in range(config.layers + 1)]
        self.first = nn.Conv2d(3, widths[0], 4, stride=2, padding=1)
        strides = [2] * (config.layers - 1) + [1]
        self.convs = nn.ModuleList(
            nn.Conv2d(narrow, wide, 4, stride=stride, padding=1, bias=False)
            for (narrow, wide), stride in zip(pairwise(widths), strides, strict=True)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(math.gcd(GROUPS, wide), wide) for wide in widths[1:])
        self.head = nn.Conv2d(widths[-1], 1, 4, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Pictures in [-1,1] -> float32 logits [B, patches]."""
        x = F.leaky_relu(self.first(images_B3HW), 0.2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.leaky_relu(norm(conv(x)), 0.2)
        return self.head(x).float().flatten(1)


def smallest_image(layers: int) -> int:
    """Side in pixels of the smallest picture that leaves a patch to judge: two convolutions after the halvings take one each."""
    return 3 * 2**layers
