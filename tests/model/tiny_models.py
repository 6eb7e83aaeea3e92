"""Small models of which every output depends on every weight: nothing is left at its initial zero."""

import torch

from flextok.model.autoencoders.config import ConvAutoencoderConfig
from flextok.model.autoencoders.conv import ConvAutoencoder
from flextok.model.config import TokenizerConfig
from flextok.model.decoders.config import FlowDecoderConfig
from flextok.model.nn.config import TrunkConfig
from flextok.model.quantizers.config import FSQConfig
from flextok.model.tokenizer import Tokenizer

TINY = TokenizerConfig(
    latents=ConvAutoencoderConfig(channels=8, blocks=1, latent_channels=3, factor=4),
    image_size=32,
    patch_size=2,
    registers=6,
    encoder=TrunkConfig(width=32, depth=2, head_dim=8),
    quantizer=FSQConfig(levels=(7, 5, 4)),
    decoder=FlowDecoderConfig(trunk=TrunkConfig(width=48, depth=2, head_dim=16)),
    posemb_scaling="interpolate",
)


def scrambled(config: TokenizerConfig, seed: int = 0) -> Tokenizer:
    """A model whose zero-initialized weights were drawn anew."""
    tokenizer = Tokenizer.create(config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tokenizer.trainable_parameters():
            if not parameter.any():
                parameter.normal_(std=0.3, generator=generator)
    if isinstance(tokenizer.latents, ConvAutoencoder):  # scaled to unit size, as after their training
        images = torch.rand(16, 3, config.image_size, config.image_size, generator=generator) * 2 - 1
        tokenizer.latents.measure([images])
    return tokenizer.eval().prepare(torch.float32)
