"""Properties of the model's parts over random sizes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flextok.model import flow
from flextok.model.autoencoders.config import ConvAutoencoderConfig, ConvTraining
from flextok.model.autoencoders.conv import ConvAutoencoder
from flextok.model.decoders.flow import timestep_sinusoid
from flextok.model.encoder import causal_last_mask
from flextok.model.nested_dropout import nested_lengths, sample_keep
from flextok.model.nn.attention import attend
from flextok.model.nn.config import TrunkConfig
from flextok.model.nn.layers import Attention, ModulatedBlock
from flextok.model.nn.patching import patchify, sincos_table, unpatchify
from flextok.model.quantizers.config import FSQConfig
from flextok.model.quantizers.fsq import FSQ
from flextok.model.rng import SampleRng, normal_for, uniform_for

LEVELS = st.lists(st.integers(2, 9), min_size=1, max_size=5)


@given(LEVELS)
@settings(max_examples=40, deadline=None)
def test_fsq_ids_and_codes_are_one_to_one(levels: list[int]) -> None:
    fsq = FSQ(FSQConfig(levels=tuple(levels)))
    count = min(fsq.vocab_size, 4096)
    ids = torch.arange(fsq.vocab_size)[torch.linspace(0, fsq.vocab_size - 1, count).long()]
    codes = fsq.codes(ids)
    assert codes.min() >= -1 and codes.max() <= 1
    digits = (codes * (fsq.levels // 2) + fsq.levels // 2).round().long()
    assert torch.equal((digits * fsq.basis).sum(-1), ids)
    assert bool((digits < fsq.levels).all())


@given(LEVELS, st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_fsq_reaches_what_it_says(levels: list[int], seed: int) -> None:
    fsq = FSQ(FSQConfig(levels=tuple(levels)))
    z = torch.randn(3, 5, len(levels), generator=torch.Generator().manual_seed(seed)) * 4
    quantized = fsq(z)
    torch.testing.assert_close(fsq.codes(quantized.ids), quantized.codes, atol=1e-6, rtol=0)
    low, high = fsq(torch.full((len(levels),), -50.0)).ids, fsq(torch.full((len(levels),), 50.0)).ids
    assert (low, high) == (0, fsq.vocab_size - 1)


def test_fsq_of_zero_is_the_published_id() -> None:
    assert FSQ(FSQConfig())(torch.zeros(6)).ids == 32036


def test_fsq_stays_in_float32_for_bfloat16_input() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert FSQ(FSQConfig())(torch.randn(2, 6).bfloat16()).codes.dtype == torch.float32


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_patches_round_trip(batch: int, size: int, rows: int, columns: int, channels: int) -> None:
    z = torch.arange(batch * channels * rows * columns * size**2).view(batch, channels, rows * size, columns * size)
    patches = patchify(z, size)
    assert patches.shape == (batch, rows * columns, size * size * channels)
    assert torch.equal(unpatchify(patches, size, (rows, columns)), z)
    corner = z[0, :, :size, :size].permute(1, 2, 0).flatten()  # row, column, channel
    assert torch.equal(patches[0, 0], corner)


@given(st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_mask_lets_nothing_see_later_registers(patches: int, registers: int) -> None:
    mask = causal_last_mask(patches, registers, torch.device("cpu"))
    assert mask.shape == (patches + registers, patches + registers)
    for row in range(patches + registers):
        seen = patches if row < patches else row + 1
        assert mask[row].tolist() == [column < seen for column in range(patches + registers)]


@given(st.integers(0, 2**31), st.floats(0.1, 4.0))
@settings(max_examples=25, deadline=None)
def test_guidance_of_one_is_the_conditional_prediction(seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    cond, uncond = (torch.randn(2, 3, 4, 4, generator=generator) * spread for _ in range(2))
    torch.testing.assert_close(flow.plain_guidance(cond, uncond, 1.0), cond, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(flow.NormGuidance()(cond, uncond, 1.0), cond)
    assert torch.equal(flow.NormGuidance()(cond, cond, 7.5), cond)


@given(st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_norm_guidance_adds_a_clipped_part_across_the_prediction(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    cond, uncond = (torch.randn(2, 3, 4, 4, generator=generator) for _ in range(2))
    added = (flow.NormGuidance()(cond, uncond, 2.0) - cond).flatten(1)
    assert bool((added.norm(dim=1) <= 2.5 + 1e-4).all())
    assert bool(((added * cond.flatten(1)).sum(1).abs() < 1e-3).all())


@given(st.integers(1, 40), st.sampled_from(["uniform", "pow2", "uniform_pow2", "inverse_pow2"]))
@settings(max_examples=60, deadline=None)
def test_kept_lengths_are_those_of_their_mode(num_tokens: int, mode) -> None:
    u = torch.linspace(0, 1, 400)[:-1]
    keep = sample_keep(mode, num_tokens, u)
    allowed = range(1, num_tokens + 1) if mode == "uniform" else nested_lengths(num_tokens).tolist()
    assert set(keep.tolist()) == set(allowed)
    assert sample_keep(mode, num_tokens, torch.tensor([1.0 - 2**-24])) == num_tokens


@pytest.mark.parametrize("mode", ["uniform", "pow2", "uniform_pow2", "inverse_pow2"])
def test_kept_lengths_are_as_frequent_as_they_should_be(mode) -> None:
    keep = sample_keep(mode, 16, torch.linspace(0, 1, 16_001)[:-1])
    shares = {length: (keep == length).float().mean().item() for length in (1, 2, 4, 8, 16)}
    wanted = {
        "uniform": dict.fromkeys(shares, 1 / 16),
        "pow2": dict.fromkeys(shares, 1 / 5),
        "uniform_pow2": {1: 1 / 16, 2: 1 / 16, 4: 2 / 16, 8: 4 / 16, 16: 8 / 16},
        "inverse_pow2": {1: 16 / 31, 2: 8 / 31, 4: 4 / 31, 8: 2 / 31, 16: 1 / 31},
    }[mode]
    assert shares == pytest.approx(wanted, abs=1e-3)


def test_noise_levels_lie_between_0_and_1() -> None:
    u = torch.linspace(0, 1, 1001)[:-1]
    for kind, scale in (("uniform", 0.0), ("uniform", 0.25), ("logit_normal", 0.0)):
        sigma = flow.sample_sigma(kind, u, scale)
        assert sigma.min() >= 0 and sigma.max() <= 1 and torch.isfinite(sigma).all()
    assert flow.sample_sigma("logit_normal", torch.tensor([0.5])) == 0.5


def test_euler_steps_follow_a_straight_line_exactly() -> None:
    z, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    for steps in (1, 7):
        end = flow.euler_sample(lambda x, i: flow.velocity_target(z, noise), noise, steps)
        torch.testing.assert_close(end, z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(flow.add_noise(z, noise, torch.tensor([0.0, 1.0])), torch.stack([z[0], noise[1]]))


@given(st.integers(0, 2**40), st.lists(st.integers(0, 99) | st.text(max_size=5), min_size=1, max_size=5, unique_by=str))
@settings(max_examples=25, deadline=None)
def test_streams_belong_to_the_sample(seed: int, sample_ids: list) -> None:
    for draw in (normal_for, uniform_for):
        together = draw(seed, sample_ids, (2, 3))
        assert torch.equal(together[-1:], draw(seed, sample_ids[-1:], (2, 3)))
        assert not torch.equal(together, draw(seed + 1, sample_ids, (2, 3)))
        assert len({tuple(row.flatten().tolist()) for row in together}) == len(sample_ids)


def test_positions_are_rows_first() -> None:
    table = sincos_table(8, (3, 5))
    assert table.shape == (3, 5, 8)
    expected = [math.sin(2), math.sin(0.02), math.cos(2), math.cos(0.02), math.sin(4), math.sin(0.04), math.cos(4),
                math.cos(0.04)]  # fmt: skip
    assert table[2, 4].tolist() == pytest.approx(expected, abs=1e-6)


def test_odd_sinusoids_end_with_zero() -> None:
    wide = timestep_sinusoid(torch.tensor([0.3]), 9, 1.0)
    assert wide.shape == (1, 9) and wide[0, -1] == 0
    assert torch.equal(wide[:, :8], timestep_sinusoid(torch.tensor([0.3]), 8, 1.0))


@given(st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_modulation_by_stream_equals_modulation_by_position(patches: int, registers: int) -> None:
    torch.manual_seed(patches * 10 + registers)
    block = ModulatedBlock(TrunkConfig(width=16, depth=1, head_dim=8))
    torch.nn.init.normal_(block.adaln.weight, std=0.3)
    streams, temb = [torch.randn(2, count, 16) for count in (patches, registers)], torch.randn(2, 16)

    def norm(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5)

    groups = block.adaln(temb).chunk(2, dim=-1)
    spread = torch.cat([g[:, None].expand(-1, n, -1) for g, n in zip(groups, (patches, registers), strict=True)], dim=1)
    gate_attn, gate_mlp, shift_attn, scale_attn, shift_mlp, scale_mlp = spread.chunk(6, dim=-1)
    x = torch.cat(streams, dim=1)
    x = x + gate_attn * block.attn(norm(x) * (1 + scale_attn) + shift_attn)
    x = x + gate_mlp * block.mlp(norm(x) * (1 + scale_mlp) + shift_mlp)
    found = torch.cat(block(*streams, block.modulation(temb)), dim=1)
    torch.testing.assert_close(found, x, atol=1e-5, rtol=1e-4)


def test_measured_latents_have_unit_size() -> None:
    torch.manual_seed(0)
    latents = ConvAutoencoder(ConvAutoencoderConfig(channels=8, blocks=1))
    batches = [torch.rand(4, 3, 16, 16) * 2 - 1 for _ in range(3)]
    latents.measure(batches)
    z = latents.encode(torch.cat(batches))
    assert z.shape == (12, 4, 4, 4)
    torch.testing.assert_close(z.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std(dim=(0, 2, 3), unbiased=False), torch.ones(4), atol=1e-3, rtol=0)
    assert latents.decode(z).shape == (12, 3, 16, 16)
    step = latents.training_step(batches[0], ConvTraining(), SampleRng(0, range(4)))
    assert step.losses["reconstruction"].shape == (4,) and step.images_B3HW.shape == batches[0].shape
    with pytest.raises(ValueError, match="at least one batch"):
        latents.measure([])


@pytest.mark.parametrize("masking", ["none", "causal", "shared", "each"])
def test_attention_in_bfloat16_is_that_of_float32(masking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flextok.model.nn.attention.SCORES_BYTES", 2 * 2 * 5 * 5 * 2)  # two images at a time
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (torch.randn(3, 2, 5, 8, generator=generator).bfloat16().float() for _ in range(3))
    options: dict = {"causal": masking == "causal"}
    if masking == "shared":
        options["mask"] = torch.rand(5, 5, generator=generator) < 0.7
    if masking == "each":
        options["mask"] = torch.rand(3, 1, 1, 5, generator=generator) < 0.7
    exact = attend(queries, keys, values, scale=0.25, **options)
    rounded = attend(queries.bfloat16(), keys.bfloat16(), values.bfloat16(), scale=0.25, **options)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=0.03, rtol=0.03)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(attend(queries, keys, values, scale=0.25, **options), rounded)


def test_attention_that_is_told_of_a_prefix_gives_the_same() -> None:
    torch.manual_seed(0)
    attention = Attention(TrunkConfig(width=16, depth=1, head_dim=8))
    x, mask = torch.randn(2, 7, 16), causal_last_mask(3, 4, torch.device("cpu"))
    whole = attention(x, mask)
    torch.testing.assert_close(attention(x, mask, prefix=3), whole)
    torch.testing.assert_close(attention(x, mask, rows=slice(3, None)), whole[:, 3:])
