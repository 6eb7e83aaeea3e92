"""What the tokenizer's API promises, on a tiny model with random weights."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import TINY, scrambled
from torch import Tensor

from flextok.model.autoencoders.config import AutoencoderKLConfig
from flextok.model.checkpoint import save_checkpoint
from flextok.model.config import TokenizerConfig
from flextok.model.decoders.config import FlowDecoderConfig
from flextok.model.decoders.flow import FlowDecoder
from flextok.model.load import load_tokenizer
from flextok.model.nn.config import TrunkConfig
from flextok.model.nn.outline import outlined
from flextok.model.tokenizer import Tokenizer

OPTIONS: dict[str, Any] = {"steps": 3, "guidance": 3.0}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def ids(tiny: Tokenizer, images: Tensor) -> Tensor:
    return tiny.tokenize(images)


def test_ids_are_in_the_vocabulary_and_differ_between_images(tiny: Tokenizer, ids: Tensor) -> None:
    assert ids.shape == (3, 6) and ids.dtype == torch.int64
    assert ids.min() >= 0 and ids.max() < tiny.vocab_size == 140
    assert len({tuple(row) for row in ids.tolist()}) == 3


def test_an_image_does_not_depend_on_its_batch(tiny: Tokenizer, images: Tensor, ids: Tensor) -> None:
    together = tiny.detokenize(ids, **OPTIONS)
    for index in range(3):
        assert torch.equal(tiny.tokenize(images[index : index + 1])[0], ids[index])
        alone = tiny.detokenize(ids[index : index + 1], sample_ids=[index], **OPTIONS)
        torch.testing.assert_close(alone[0], together[index], atol=1e-5, rtol=1e-5)
    backwards = tiny.detokenize(ids.flip(0), sample_ids=[2, 1, 0], **OPTIONS)
    torch.testing.assert_close(backwards.flip(0), together, atol=1e-5, rtol=1e-5)


def test_encoder_prefix_ignores_later_registers(images: Tensor, tiny: Tokenizer, ids: Tensor) -> None:
    short = scrambled(TINY.model_copy(update={"registers": 4}))
    state = {name: tensor[:4] if name.endswith(("registers", "register_positions")) else tensor
             for name, tensor in tiny.state_dict().items()}  # fmt: skip
    short.load_state_dict(state)
    assert torch.equal(short.tokenize(images), ids[:, :4])


def test_prefixes_of_mixed_length_decode_as_with_keep(tiny: Tokenizer, ids: Tensor) -> None:
    mixed = tiny.detokenize([ids[0, :1], ids[1], ids[2, :4]], **OPTIONS)
    torch.testing.assert_close(mixed, tiny.detokenize(ids, keep=[1, 6, 4], **OPTIONS))
    short = tiny.detokenize(ids[:, :2], **OPTIONS)
    torch.testing.assert_close(short, tiny.detokenize(ids, keep=2, **OPTIONS))
    torch.testing.assert_close(short, tiny.detokenize(ids, keep=torch.tensor([2, 2, 2]), **OPTIONS))
    assert not torch.allclose(short, tiny.detokenize(ids, keep=3, **OPTIONS))


def test_ids_come_in_any_integer_type(tiny: Tokenizer, ids: Tensor) -> None:
    expected = tiny.detokenize(ids, **OPTIONS)
    for given in (ids.int(), ids.to(torch.uint16), ids.numpy().astype(np.uint16), ids.tolist()):
        assert torch.equal(tiny.detokenize(given, keep=np.int64(6), **OPTIONS), expected)


def test_seed_and_noise_decide_the_picture(tiny: Tokenizer, ids: Tensor) -> None:
    first = tiny.detokenize(ids, seed=1, **OPTIONS)
    assert torch.equal(first, tiny.detokenize(ids, seed=1, **OPTIONS))
    assert not torch.allclose(first, tiny.detokenize(ids, seed=2, **OPTIONS))
    noise = torch.randn(3, 3, 8, 8)
    state = torch.get_rng_state()
    given = tiny.detokenize(ids, seed=1, noise=noise, **OPTIONS)
    assert torch.equal(given, tiny.detokenize(ids, seed=2, noise=noise, **OPTIONS))
    assert torch.equal(state, torch.get_rng_state())


def test_other_picture_sizes(tiny: Tokenizer) -> None:
    images = torch.rand(2, 3, 16, 40) * 2 - 1
    assert tiny.encode_images(images).shape == (2, 3, 4, 10)
    assert tiny.autoencode(images, keep=2, **OPTIONS).shape == images.shape
    assert tiny.detokenize(tiny.tokenize(images), noise=torch.randn(2, 3, 10, 4), **OPTIONS).shape == (2, 3, 40, 16)


def test_autoencode_is_tokenize_then_detokenize(tiny: Tokenizer, images: Tensor, ids: Tensor) -> None:
    once = tiny.autoencode(images, keep=3, seed=5, **OPTIONS)
    assert torch.equal(once, tiny.detokenize(ids, keep=3, seed=5, **OPTIONS))


def test_guidance_of_one_is_no_guidance(tiny: Tokenizer, ids: Tensor) -> None:
    plain = tiny.detokenize(ids, steps=2, guidance=1.0)
    for norm in (False, True):
        guided = tiny.detokenize(ids, steps=2, guidance=lambda t: 1.0, norm_guidance=norm)
        torch.testing.assert_close(guided, plain, atol=1e-5, rtol=1e-5)


def test_a_step_is_one_call_whatever_is_kept(tiny: Tokenizer, ids: Tensor) -> None:
    calls: list[tuple[int, int]] = []
    handles = [
        tiny.decoder.get_submodule("blocks.0").register_forward_pre_hook(
            lambda _module, inputs: calls.append((len(inputs[0]), inputs[0].shape[1] + inputs[1].shape[1]))
        ),
        tiny.decoder.get_submodule("from_codes").register_forward_pre_hook(lambda *_: calls.append((0, 0))),
    ]
    for keep in (1, 6):
        tiny.decode_latents(ids, keep=keep, **OPTIONS)
    for handle in handles:
        handle.remove()
    assert calls == [(0, 0), (6, 22), (6, 22), (6, 22)] * 2


def test_large_batches_pass_in_parts_and_give_the_same(
    tiny: Tokenizer, images: Tensor, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny.detokenize(ids, keep=[1, 4, 6], **OPTIONS)
    monkeypatch.setattr("flextok.model.tokenizer.REUSED_BYTES", 1)
    assert torch.equal(tiny.tokenize(images), ids)
    torch.testing.assert_close(tiny.detokenize(ids, keep=[1, 4, 6], **OPTIONS), whole, atol=1e-5, rtol=1e-5)


MISTAKES: dict[str, tuple[Callable[[Tokenizer], Any], str]] = {
    "no batch": (lambda t: t.tokenize(torch.zeros(3, 32, 32)), r"\[B,3,H,W\]"),
    "empty batch": (lambda t: t.tokenize(torch.zeros(0, 3, 32, 32)), "B >= 1"),
    "grey": (lambda t: t.tokenize(torch.zeros(1, 1, 32, 32)), r"found \[1, 1, 32, 32\]"),
    "bytes": (lambda t: t.tokenize(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), "float tensor"),
    "numpy": (lambda t: t.tokenize(np.zeros((1, 3, 32, 32))), "float tensor"),
    "size": (lambda t: t.tokenize(torch.zeros(1, 3, 32, 30)), "multiples of 8 pixels, found 32x30"),
    "nan": (lambda t: t.tokenize(torch.full((1, 3, 32, 32), torch.nan)), "finite images"),
    "latent channels": (lambda t: t.encode_latents(torch.zeros(1, 4, 8, 8)), r"\[B,3,h,w\]"),
    "latent size": (lambda t: t.encode_latents(torch.zeros(1, 3, 8, 7)), "multiples of 2, found 8x7"),
    "id too large": (lambda t: t.detokenize(torch.tensor([[0, 140]])), "0..139, found 140"),
    "negative id": (lambda t: t.detokenize(torch.tensor([[-1]])), "found -1"),
    "float ids": (lambda t: t.detokenize(torch.zeros(1, 6)), "integers"),
    "too many ids": (lambda t: t.detokenize(torch.zeros(1, 7, dtype=torch.long)), "1..6"),
    "no ids": (lambda t: t.detokenize([]), "at least one image"),
    "empty prefix": (lambda t: t.detokenize([torch.zeros(0, dtype=torch.long)]), "1..6"),
    "flat ids": (lambda t: t.detokenize(torch.zeros(6, dtype=torch.long)), r"\[B,K\]"),
    "keep 0": (lambda t: t.detokenize([[1, 2]], keep=0), "keep as an integer of at least 1"),
    "keep beyond": (lambda t: t.detokenize([[1, 2]], keep=3), "keep in 1..2"),
    "keep fraction": (lambda t: t.detokenize([[1, 2]], keep=1.5), "keep as an integer"),
    "keep count": (lambda t: t.detokenize([[1, 2]], keep=[1, 1]), "keep as an int or 1 of them"),
    "no steps": (lambda t: t.detokenize([[1]], steps=0), "steps as an integer"),
    "guidance": (lambda t: t.detokenize([[1]], guidance=float("nan")), "guidance"),
    "noise batch": (lambda t: t.detokenize([[1]], noise=torch.zeros(2, 3, 8, 8)), r"noise of shape \[1,3,h,w\]"),
    "noise size": (lambda t: t.detokenize([[1]], noise=torch.zeros(1, 3, 8, 7)), "multiples of 2"),
    "noise nan": (lambda t: t.detokenize([[1]], noise=torch.full((1, 3, 8, 8), torch.inf)), "finite noise"),
    "sample ids": (lambda t: t.detokenize([[1]], sample_ids=[1, 2]), "1 sample_ids"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_say_what_was_expected(tiny: Tokenizer, case: str) -> None:
    call, message = MISTAKES[case]
    with pytest.raises(ValueError, match=f"expected .*{message}"):
        call(tiny)


def test_absolute_positions_refuse_larger_pictures(images: Tensor) -> None:
    tokenizer = scrambled(TINY.model_copy(update={"posemb_scaling": "absolute"}))
    assert tokenizer.tokenize(images[:, :, :16, :24]).shape == (3, 6)
    with pytest.raises(ValueError, match="at most 8x8"):
        tokenizer.tokenize(torch.zeros(1, 3, 32, 40))


def test_posterior_sampling_does_not_depend_on_the_batch() -> None:
    latents = AutoencoderKLConfig(
        block_out_channels=(4, 4, 4), layers_per_block=1, latent_channels=3, norm_num_groups=2, sample_posterior=True
    )
    tokenizer = scrambled(TokenizerConfig(**{**TINY.model_dump(), "latents": latents}))
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    z = tokenizer.encode_images(images)
    torch.testing.assert_close(tokenizer.encode_images(images.flip(0)).flip(0), z, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(tokenizer.encode_images(images, seed=1), z)
    assert not torch.allclose(tokenizer.encode_images(images, sample_ids=["a", "b"]), z)


def test_stage_0_takes_one_image_at_a_time_on_a_cpu() -> None:
    latents = AutoencoderKLConfig(
        block_out_channels=(4, 4, 4), layers_per_block=1, latent_channels=3, norm_num_groups=2
    )
    tokenizer = scrambled(TokenizerConfig(**{**TINY.model_dump(), "latents": latents}))
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    z = tokenizer.encode_images(images)
    assert torch.equal(z, torch.cat([tokenizer.encode_images(image) for image in images.split(1)]))
    decoded = tokenizer.images_from_latents(z)
    assert torch.equal(decoded, torch.cat([tokenizer.images_from_latents(part) for part in z.split(1)]))


def test_bfloat16_keeps_norms_quantizer_and_stage_0_in_float32(
    tmp_path, tiny: Tokenizer, images: Tensor, ids: Tensor
) -> None:
    saved = save_checkpoint(str(tmp_path), "tokenizer", tiny.state_dict(), tiny.config, [], {})
    half = load_tokenizer(saved.url, dtype=torch.bfloat16)
    assert half.digest == tiny.digest
    assert (half.tokenize(images) == ids).float().mean() > 0.7
    assert half.encode_latents(torch.zeros(1, 3, 8, 8)).dtype == torch.int64
    decoded = half.detokenize(ids, **OPTIONS)
    assert decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, tiny.detokenize(ids, **OPTIONS), atol=0.1, rtol=0.1)
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        load_tokenizer(saved.url, dtype=torch.float16)


def test_creation_is_decided_by_the_seed() -> None:
    state = torch.get_rng_state()
    first = Tokenizer.create(TINY, seed=3)
    assert first.digest == Tokenizer.create(TINY, seed=3).digest != Tokenizer.create(TINY, seed=4).digest
    assert torch.equal(state, torch.get_rng_state())


def flow_loss(tokenizer: Tokenizer, z: Tensor, noise: Tensor, t: Tensor, keep: Tensor, drop: Tensor) -> Tensor:
    """The decoder's loss [B] of latents with the given draws."""
    assert isinstance(tokenizer.decoder, FlowDecoder)
    codes = tokenizer.quantizer(tokenizer.encoder(z)).codes
    return tokenizer.decoder.loss(z, codes, keep, drop, noise, t)


def test_training_reaches_every_trainable_weight_and_lowers_the_loss() -> None:
    tokenizer = Tokenizer.create(TINY, seed=0)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(8, 3, 8, 8, generator=generator)
    noise = torch.randn(8, 3, 8, 8, generator=generator)
    t, keep = torch.linspace(0.05, 0.95, 8), torch.tensor([1, 2, 3, 4, 5, 6, 6, 6])
    drop = torch.tensor([False] * 7 + [True])
    parameters = list(tokenizer.trainable_parameters())
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    losses = []
    for _ in range(60):
        loss = flow_loss(tokenizer, z, noise, t, keep, drop)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        losses.append(loss.mean().item())
    assert loss.shape == (8,) and tokenizer.encode_latents(z).shape == (8, 6)
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in parameters)
    assert not any(parameter.requires_grad for parameter in tokenizer.latents.parameters())


def test_training_goes_on_after_inference_mode() -> None:
    tokenizer = Tokenizer.create(TINY.model_copy(update={"registers": 5}), seed=0)
    z = torch.zeros(1, 3, 8, 8)
    with torch.inference_mode():
        tokenizer.encode_latents(z)
    one = torch.ones(1)
    flow_loss(tokenizer, z, z, one, one.long(), one.bool()).mean().backward()


def test_loss_is_that_of_the_velocity_with_the_kept_tokens(tiny: Tokenizer, images: Tensor) -> None:
    z = tiny.encode_images(images)
    noise, t = torch.randn_like(z), torch.tensor([0.2, 0.5, 0.9])
    keep, drop = torch.tensor([1, 4, 6]), torch.tensor([False, False, True])
    together = flow_loss(tiny, z, noise, t, keep, drop)
    for i in range(3):
        one = slice(i, i + 1)
        alone = flow_loss(tiny, z[one], noise[one], t[one], keep[one], drop[one])
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=1e-5)
    more = flow_loss(tiny, z, noise, t, torch.tensor([2, 4, 3]), drop)
    assert not torch.allclose(more[0], together[0])
    torch.testing.assert_close(more[1:], together[1:])  # the dropped image has no tokens to keep


@pytest.mark.parametrize(
    ("encoder", "decoder", "millions"), [(12, 12, 341.7), (18, 18, 949.7), (18, 28, 2540.9)], ids=str
)
def test_parameter_counts_of_the_published_sizes(encoder: int, decoder: int, millions: float) -> None:
    config = TokenizerConfig(
        latents=AutoencoderKLConfig(),
        image_size=256,
        encoder=TrunkConfig(width=64 * encoder, depth=encoder),
        decoder=FlowDecoderConfig(trunk=TrunkConfig(width=64 * decoder, depth=decoder)),
    )
    with outlined():
        tokenizer = Tokenizer(config)
    assert tokenizer.latent_shape == (16, 32, 32) and tokenizer.vocab_size == 64_000 and tokenizer.num_tokens == 256
    assert round(sum(parameter.numel() for parameter in tokenizer.parameters()) / 1e6, 1) == millions
