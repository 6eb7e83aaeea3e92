"""muP, the maximal update parametrization (Yang et al., arXiv 2203.03466): what is tuned on a narrow model fits a wide one.

Each matrix is compared with that of the same model at the base width, where nothing changes. With r the base model's fan-in
as a part of this one's, and R the longer side of the base model's matrix as a part of this one's:

| matrix | reads, gives | deviation at first, as a part of the base model's | learning rate, AdamW | Muon |
| --- | --- | --- | --- | --- |
| input | data, features | 1 | 1 | |
| hidden | features, features | sqrt(r) | r | sqrt(R) |
| output | features, data | r | r | |

Adam's step of a hidden matrix has a spectral norm of about its width, Muon's of 0.2 sqrt(longer side); a norm that is the
same at all widths is wanted (Yang et al., arXiv 2310.17813). Vectors and tables (biases, gains, embeddings, positions) stay as
they are. Weight decay is divided by what the learning rate is multiplied by, as microsoft/mup does, so that as much of a
weight goes in a step. Heads grow in number and head_dim stays, for which the scale of attention is a constant as it is.
"""

from collections.abc import Iterator

import torch
from torch import nn

from flextok.model.decoders.flow import FlowDecoder
from flextok.model.priors.base import Prior
from flextok.model.priors.config import PriorConfig
from flextok.model.tokenizer import Tokenizer
from flextok.train.alignment import Alignment
from flextok.train.config import OptimizerConfig, PriorTrainConfig, TokenizerTrainConfig
from flextok.train.optimizer import is_muons


def scale_tokenizer(
    tokenizer: Tokenizer, train: TokenizerTrainConfig, alignment: Alignment | None = None
) -> dict[str, float]:
    """Scale a new tokenizer as `train.mup_base_width` asks; gives back factors on the learning rate by parameter."""
    if train.mup_base_width is None:
        return {}
    base = Tokenizer.create(tokenizer.config.with_width(train.mup_base_width), train.seed)
    if alignment is not None and isinstance(base.decoder, FlowDecoder):
        base.decoder.begin_alignment(alignment.settings, alignment.teacher.width, train.seed)
    return scale_to_width(tokenizer, base, train.optimizer)


def scale_prior(prior: Prior, train: PriorTrainConfig) -> dict[str, float]:
    """Scale a new prior as `train.mup_base_width` asks; gives back factors on the learning rate by parameter."""
    if train.mup_base_width is None:
        return {}
    base = Prior.create(prior_at(prior.config, train.mup_base_width), train.seed)
    return scale_to_width(prior, base, train.optimizer)


def prior_at(config: PriorConfig, width: int) -> PriorConfig:
    """The prior of `config` with a trunk of that width; a kind without one stays as it is."""
    if not hasattr(config.model, "width"):
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"width": width})})


@torch.no_grad()
def scale_to_width(model: nn.Module, base: nn.Module, optimizer: OptimizerConfig) -> dict[str, float]:
    """Give the new `model` the first weights that muP gives it, and its parameters' factors on the learning rate.

    `base` is the same model at the base width, as new as it is. Factors are by name, of those that have one.
    """
    factors: dict[str, float] = {}
    for name, linear, narrow in _widened(model, base):
        fan_in = narrow.in_features / linear.in_features
        is_output = narrow.out_features == linear.out_features
        _spread(linear.weight, narrow.weight, fan_in if is_output else fan_in**0.5)
        if linear.bias is not None:
            _spread(linear.bias, narrow.bias, 1.0)
        weight = f"{name}.weight"
        by_side = max(narrow.weight.shape) / max(linear.weight.shape)
        factors[weight] = by_side**0.5 if is_muons(weight, linear.weight, optimizer) else fan_in
    return factors


def _widened(model: nn.Module, base: nn.Module) -> Iterator[tuple[str, nn.Linear, nn.Linear]]:
    """Names of the matrices that the width changes, each with its like in `base`."""
    narrow = dict(base.named_modules())
    for name, linear in model.named_modules():
        if isinstance(linear, nn.Linear):
            like = narrow[name]
            assert isinstance(like, nn.Linear)
            if like.weight.shape != linear.weight.shape:
                yield name, linear, like


def _spread(tensor: torch.Tensor, like: torch.Tensor, factor: float) -> None:
    """Give `tensor` `factor` times the root mean square of `like`; what is zero stays so."""
    size = tensor.square().mean().sqrt()
    if size > 0:
        tensor.mul_(factor * like.square().mean().sqrt() / size)
