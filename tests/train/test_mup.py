"""muP: what changes with the width, and that steps move modules as far at all widths; by the standard they do not."""

from typing import Any

import pytest
import torch

from flextok.config import parse_config
from flextok.errors import UsageError
from flextok.model.autoencoders.config import ConvAutoencoderConfig
from flextok.model.config import TokenizerConfig
from flextok.model.decoders.config import FlowDecoderConfig, FlowTraining
from flextok.model.nn.config import TrunkConfig
from flextok.model.priors.base import Prior
from flextok.model.priors.config import AutoregressiveConfig, LlamaConfig, PriorConfig
from flextok.model.quantizers.config import FSQConfig
from flextok.model.tokenizer import Tokenizer
from flextok.train.config import OptimizerConfig, PriorRecipe, PriorTrainConfig, TokenizerTrainConfig
from flextok.train.coordinates import Begin, coordinate_check, priors, tokenizers
from flextok.train.mup import prior_at, scale_prior, scale_tokenizer
from flextok.train.optimizer import Optimizer
from pipelines import cli

WIDTHS = (64, 128, 256)
TRUNK = TrunkConfig(width=32, depth=2, head_dim=16)
TOKENIZER = TokenizerConfig(
    latents=ConvAutoencoderConfig(channels=8, blocks=1, latent_channels=4, factor=4),
    image_size=32, registers=8, encoder=TRUNK, quantizer=FSQConfig(levels=(8, 5, 5)),
    decoder=FlowDecoderConfig(trunk=TRUNK),
)  # fmt: skip
SIZES: dict[str, Any] = {"num_tokens": 16, "vocab_size": 100, "num_classes": 5}
PRIORS = {
    "autoregressive": PriorConfig(model=AutoregressiveConfig(width=32, depth=2, head_dim=16), **SIZES),
    "llama": PriorConfig(model=LlamaConfig(width=32, depth=2, head_dim=16), **SIZES),
}


def optimizer(kind: str) -> OptimizerConfig:
    return parse_config(OptimizerConfig, {"kind": kind, "lr": 4e-3}, "test")


def begun(part: str, kind: str, base_width: int | None) -> Begin:
    common: dict[str, Any] = {"steps": 9, "optimizer": optimizer(kind), "mup_base_width": base_width}
    if part == "tokenizer":
        # Noise alone, as a training begins, where the encoder learns from the first steps on.
        alone = FlowTraining(pure_noise_steps=9)
        return tokenizers(TOKENIZER, TokenizerTrainConfig(**common, decoder=alone))
    return priors(PRIORS[part], PriorTrainConfig(**common))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("part", ["tokenizer", *PRIORS])
def test_steps_move_modules_as_far_at_all_widths(part: str, kind: str) -> None:
    found = coordinate_check(begun(part, kind, 64), optimizer(kind), WIDTHS, steps=8, seeds=1)
    names = {each.module.rpartition(".")[2] for each in found}
    assert names == {"0", "1", "head"}
    assert [each.module for each in found if not each.holds] == []
    standard = coordinate_check(begun(part, kind, None), optimizer(kind), WIDTHS[::2], steps=8, seeds=1)
    assert [each.module for each in standard if each.module.endswith("head") and each.holds] == []


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_nothing_changes_at_the_base_width(kind: str) -> None:
    train = TokenizerTrainConfig(steps=9, optimizer=optimizer(kind), mup_base_width=32)
    tokenizer, plain = (Tokenizer.create(TOKENIZER, train.seed) for _ in range(2))
    assert scale_tokenizer(tokenizer, train) == {}
    assert tokenizer.digest == plain.digest
    prior, plain_prior = (Prior.create(PRIORS["llama"], 0) for _ in range(2))
    assert scale_prior(prior, PriorTrainConfig(steps=9, mup_base_width=32)) == {}
    assert all(map(torch.equal, prior.parameters(), plain_prior.parameters()))


def test_factors_by_kind_of_parameter() -> None:
    """At four times the base width; a frozen autoencoder keeps its weights."""
    factors = {}
    for kind in ("adamw", "muon"):
        train = TokenizerTrainConfig(steps=9, optimizer=optimizer(kind), mup_base_width=32)
        tokenizer = Tokenizer.create(TOKENIZER.with_width(128), 0)
        before, narrow = TOKENIZER.with_width(128), dict(Tokenizer.create(TOKENIZER, 0).named_parameters())
        plain = dict(Tokenizer.create(before, 0).named_parameters())
        factors[kind] = scale_tokenizer(tokenizer, train)
        wide = dict(tokenizer.named_parameters())
        for name, spread in {"decoder.patches.proj": 1, "decoder.time.fc1": 1, "encoder.head": 1 / 4}.items():
            ratio = wide[f"{name}.weight"].std() / narrow[f"{name}.weight"].std()
            assert ratio.item() == pytest.approx(spread, rel=0.05), name
        assert not wide["decoder.head.weight"].any()
        for name in (n for n in wide if n.startswith("latents.") or n.endswith("registers")):
            assert torch.equal(wide[name], plain[name])
    adamw, muon = factors["adamw"], factors["muon"]
    for name in ("encoder.blocks.0.attn.qkv", "decoder.blocks.1.mlp.down"):
        assert adamw[f"{name}.weight"] == pytest.approx(1 / 4, rel=0.02)
        assert muon[f"{name}.weight"] == pytest.approx(1 / 2, rel=0.02)
    for name in ("encoder.head", "decoder.head", "decoder.blocks.0.adaln", "decoder.time.fc2"):
        assert adamw[f"{name}.weight"] == muon[f"{name}.weight"] == 1 / 4  # Muon leaves these to AdamW
    for name in ("encoder.patches.proj.weight", "decoder.from_codes.weight"):
        assert adamw[name] == 1
    assert all("bias" not in name and "registers" not in name for name in adamw)
    prior = Prior.create(prior_at(PRIORS["autoregressive"], 128), 0)
    scale_prior(prior, PriorTrainConfig(steps=9, mup_base_width=32))
    assert dict(prior.named_parameters())["blocks.0.attention.query.weight"].std().item() == pytest.approx(
        0.01, rel=0.05
    )


def test_the_optimizer_applies_factors_but_decays_alike() -> None:
    config = OptimizerConfig(lr=0.1, weight_decay=0.5)
    named = {name: torch.nn.Parameter(torch.ones(2, 2)) for name in ("slow", "plain")}
    stepped = Optimizer(named, config, {"slow": 0.25})
    for parameter in named.values():
        parameter.grad = torch.ones(2, 2)
    stepped.step(0.1)
    # Adam's first step is the learning rate; weight decay takes lr * 0.5 of a weight whatever the factor.
    assert named["plain"].detach().flatten()[0].item() == pytest.approx(1 - 0.05 - 0.1, abs=1e-5)
    assert named["slow"].detach().flatten()[0].item() == pytest.approx(1 - 0.05 - 0.025, abs=1e-5)


def test_a_base_width_that_heads_do_not_divide_is_refused() -> None:
    values = {"model": {"width": 64, "depth": 1, "head_dim": 32}, "train": {"steps": 1, "mup_base_width": 48}}
    with pytest.raises(UsageError, match=r"expected train.mup_base_width as a multiple of head_dim 32, found 48"):
        parse_config(PriorRecipe, values, "test")
    with pytest.raises(UsageError, match="two widths or more"):
        coordinate_check(begun("llama", "adamw", 32), optimizer("adamw"), (32, 32), steps=1, seeds=1)


def test_the_command_prints_both_tables_and_refuses_widths_without_heads(capsys) -> None:
    small = ["--set", "prior.model.depth=1", "--width", "32", "--width", "64", "--seeds", "1", "--steps", "4"]
    assert cli.run(["coordinate-check", "prior", *small]) == 0
    shown = capsys.readouterr().out
    assert "muP, base width 32" in shown and "standard" in shown and shown.count("blocks.0") == 2
    assert cli.run(["coordinate-check", "tokenizer", "--width", "48"]) == 2
    assert capsys.readouterr().err.endswith("multiples of 4 and of head_dim 32, found 48\n")
