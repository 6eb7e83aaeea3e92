"""The adversarial loss of an autoencoder: hinge losses, and the weight that makes it as strong as the reconstruction loss.

As VQGAN (Esser et al., arXiv 2012.09841, equation 7; `VQLPIPSWithDiscriminator` of CompVis/taming-transformers) and the
autoencoders of latent diffusion have it. Both networks learn from the same reconstructions in a step.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flextok.train.config import DiscriminatorConfig
from flextok.train.discriminator import PatchDiscriminator
from flextok.train.parallel import DistContext

LARGEST_WEIGHT, GRADIENT_EPS = 1e4, 1e-4
"""As published: of the adaptive weight, before it is multiplied by the recipe's."""


class Judged:
    """A batch of reconstructions before the discriminator: the losses [B] that decide how strongly it counts."""

    def __init__(self, own_B: Tensor, generator_B: Tensor):
        self.own_B, self.generator_B = own_B, generator_B

    def gradients(self, last_layer: Tensor) -> Tensor:
        """[2, weights] of the sums of both losses, at the autoencoder's last layer; the graph stays for the backward pass."""
        sums = (self.own_B.sum(), self.generator_B.sum())
        return torch.stack([torch.autograd.grad(each, last_layer, retain_graph=True)[0].flatten() for each in sums])


class Adversary(nn.Module):
    """A discriminator in the training of an autoencoder, on one member of it."""

    def __init__(self, config: DiscriminatorConfig, batch_size: int, world: DistContext):
        super().__init__()
        self.network = PatchDiscriminator(config)
        self._config, self._batch_size, self._world = config, batch_size, world
        self.weight: Tensor | None = None
        """Of the generator's loss in the last step: the adaptive weight times the recipe's."""

    def is_on(self, step: int) -> bool:
        """Whether it judges by then; before it neither counts nor learns."""
        return step >= self._config.start_step

    def judge(self, own_B: Tensor, reconstructions_B3HW: Tensor) -> Judged:
        """How real the discriminator, as it is, finds reconstructions whose other losses are `own_B`."""
        fixed = {name: parameter.detach() for name, parameter in self.network.named_parameters()}
        logits_BP = torch.func.functional_call(self.network, fixed, (reconstructions_B3HW,))
        return Judged(own_B, -logits_BP.mean(dim=1))

    def weigh(self, gradients: Iterable[Tensor]) -> Tensor:
        """Set the weight by the gradients of all slices of this member's samples; all members call it.

        |gradient of the own losses| / (|gradient of the generator's| + 1e-4), both of means over the whole batch.
        """
        own, generator = self._world.sum(torch.stack(list(gradients)).sum(dim=0)) / self._batch_size
        adaptive = (own.norm() / (generator.norm() + GRADIENT_EPS)).clamp(0.0, LARGEST_WEIGHT)
        self.weight = self._config.weight * adaptive
        return self.weight

    def hinge(self, reconstructions_B3HW: Tensor, images_B3HW: Tensor) -> Tensor:
        """The discriminator's own loss [B]; it gives the autoencoder no gradient."""
        real_BP, made_BP = self.network(images_B3HW), self.network(reconstructions_B3HW.detach())
        return 0.5 * (F.relu(1 - real_BP).mean(dim=1) + F.relu(1 + made_BP).mean(dim=1))

    def nothing(self) -> Tensor:
        """0, with a gradient of 0 for each weight: DDP waits for those of all."""
        return torch.stack([parameter.sum() for parameter in self.network.parameters()]).sum() * 0.0
