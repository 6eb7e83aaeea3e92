"""The model against the published implementation's own numbers (shared/goldens)."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from flextok.model import flow
from flextok.model.autoencoders.autoencoder_kl import KLAutoencoder
from flextok.model.decoders.flow import FlowDecoder, Modulations, timestep_sinusoid
from flextok.model.encoder import causal_last_mask
from flextok.model.nn.patching import patchify
from flextok.model.quantizers.config import FSQConfig
from flextok.model.quantizers.fsq import FSQ
from flextok.model.tokenizer import Tokenizer

Goldens = dict[str, Tensor]

# What the others are computed from.
GIVEN = {
    "vae.image", "enc.latents", "dec.noised_input", "dec.timesteps", "rf.uniform_u", "rf.noise", "apg.pred_cond",
    "apg.pred_uncond", "vae.decode_in_latents_scaled",
}  # fmt: skip
EXACT = ("token_ids", "attn_mask_bool", ".ids")


@pytest.fixture(scope="module")
def goldens(golden_folder: Path) -> Goldens:
    return load_file(golden_folder / "io.safetensors")


def tolerance(name: str) -> dict[str, float]:
    """As stated in the goldens' README."""
    if name.startswith("vae."):
        return {"atol": 2e-5, "rtol": 0.0}
    if name.startswith(("smp.", "autoenc.", "detok.")):
        return {"atol": 1e-4, "rtol": 1e-4}
    return {"atol": 2e-5, "rtol": 1e-5}


def capture(module: torch.nn.Module, run: Callable[[], object]) -> list:
    """Outputs of `module` during `run`."""
    outputs: list = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    run()
    handle.remove()
    return outputs


def vae_outputs(golden: Tokenizer, given: Goldens) -> Goldens:
    latents = golden.latents
    assert isinstance(latents, KLAutoencoder)
    posterior = latents.posterior(given["vae.image"])
    noise = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(777))
    return {
        "vae.posterior_mean": posterior.mean,
        "vae.posterior_std": posterior.std,
        # the published code scales the mean, but not the deviation, before it asks diffusers for the divergence
        "vae.kl_loss": type(posterior)(torch.cat([posterior.mean * 0.6, posterior.logvar], dim=1)).kl(),
        "vae.sample_noise_seed777": noise,
        "vae.latents_mode_scaled": golden.encode_images(given["vae.image"]),
        "vae.latents_sample_scaled_seed777": latents.encode(given["vae.image"], noise),
        "vae.decode_out_image": golden.images_from_latents(given["vae.decode_in_latents_scaled"]),
    }


def encoder_outputs(golden: Tokenizer, given: Goldens) -> Goldens:
    encoder, quantizer, z = golden.encoder, golden.quantizer, given["enc.latents"]
    embedded = encoder.embed(z)
    quantized = quantizer(encoder(z))
    one = causal_last_mask(16, 16, z.device)
    image_codes = encoder(golden.encode_images(given["vae.image"]))
    return {
        "enc.patch_emb": encoder.patches.proj(patchify(z, 2)).view(2, 4, 4, -1),
        "enc.patch_emb_plus_posemb": encoder.patches(z).view(2, 4, 4, -1),
        "enc.packed_in": embedded.reshape(1, 64, -1),
        "enc.attn_mask_bool": torch.block_diag(one.byte(), one.byte()),
        "enc.packed_block0_attn_out": capture(encoder.blocks[0].attn, lambda: encoder(z))[0].reshape(1, 64, -1),
        "enc.packed_after_block0": capture(encoder.blocks[0], lambda: encoder(z))[0].reshape(1, 64, -1),
        "enc.registers_after_trunk": encoder.trunk(embedded),
        "enc.prequant": encoder(z),
        "enc.quantized": quantized.codes,
        "enc.token_ids": golden.encode_latents(z),
        "enc.indices_to_embedding": quantizer.codes(given["enc.token_ids"]),
        "image_path.prequant": image_codes,
        "image_path.token_ids": golden.tokenize(given["vae.image"]),
    }


def decoder_outputs(golden: Tokenizer, given: Goldens) -> Goldens:
    decoder = golden.decoder
    assert isinstance(decoder, FlowDecoder)
    codes, noised, times = given["enc.quantized"], given["dec.noised_input"], given["dec.timesteps"]

    def velocity(keep: list[int], drop: list[bool] | None = None) -> Tensor:
        flags = None if drop is None else torch.tensor(drop)
        registers = decoder.registers(codes, torch.tensor(keep), flags)
        return decoder(noised, registers, decoder.modulations(times))

    found = {
        "dec.timestep_sinusoid": timestep_sinusoid(times, 256, 1.0),
        "dec.velocity_full_nokey": velocity([16, 16]),
        "dec.velocity_keep1": velocity([1, 1]),
        "dec.velocity_keep4": velocity([4, 4]),
        "dec.velocity_keep16": velocity([16, 16]),
        "dec.velocity_keep_mixed_3_9": velocity([3, 9]),
        "dec.velocity_null": velocity([16, 16], [True, True]),
        "dec.velocity_keep4_null_first_only": velocity([4, 4], [True, False]),
    }
    for run, keep, drop in (("keep4", [4, 4], None), ("null", [16, 16], [True, True])):
        after_trunk = capture(decoder.blocks[1], lambda k=keep, d=drop: velocity(k, d))[0][0].view(2, 4, 4, -1)
        projected = decoder.from_codes(codes)
        flags = None if drop is None else torch.tensor(drop)
        found |= {
            f"dec.{run}.patches_in": decoder.patches(noised).view(2, 4, 4, -1),
            f"dec.{run}.patches_after_trunk": after_trunk,
            f"dec.{run}.patches_repa_layer": after_trunk,  # the fixture lists the last block
            f"dec.{run}.registers_after_from_latents": projected,
            f"dec.{run}.registers_after_posemb": projected + decoder.register_positions,
            f"dec.{run}.registers_final": decoder.registers(codes, torch.tensor(keep), flags),
            f"dec.{run}.temb": decoder.time(times),
        }
    return found


def flow_outputs(given: Goldens) -> Goldens:
    z, noise = given["enc.latents"], given["rf.noise"]
    sigma = flow.sample_sigma("uniform", given["rf.uniform_u"], mode_scale=0.25)
    cond, uncond = given["apg.pred_cond"], given["apg.pred_uncond"]
    with_momentum = flow.NormGuidance()
    pairs = list(zip(cond, uncond, strict=True))
    return {
        "rf.sigmas_mode_scale_0.25": sigma,
        "rf.noised": flow.add_noise(z, noise, sigma),
        "rf.velocity_target": flow.velocity_target(z, noise),
        "apg.plain_cfg_g7.5": torch.stack([flow.plain_guidance(c, u, 7.5) for c, u in pairs]),
        "apg.out_nomom_g7.5": torch.stack([flow.NormGuidance()(c, u, 7.5) for c, u in pairs]),
        "apg.out_seq_mom-0.5_g7.5": torch.stack([with_momentum(c, u, 7.5) for c, u in pairs]),
    }


def sampler_outputs(golden: Tokenizer, given: Goldens) -> Goldens:
    generator = torch.Generator().manual_seed(1234)
    noise = torch.cat([torch.randn(1, 16, 8, 8, generator=generator) for _ in range(2)])
    ids = given["enc.token_ids"]

    def sample(**options) -> Tensor:
        return golden.decode_latents(ids, **{"noise": noise, "steps": 10, **options})

    starts: list[Tensor] = []
    handle = golden.decoder.register_forward_pre_hook(lambda _module, inputs: starts.append(inputs[0][:2]))
    full = sample()
    handle.remove()

    decoder = golden.decoder
    assert isinstance(decoder, FlowDecoder)
    null = decoder.registers(given["enc.quantized"], torch.tensor([16, 16]), torch.tensor([True, True]))
    modulations: Modulations = decoder.modulations(torch.tensor(flow.timesteps(10)))
    prefixes = [ids[0, :5], ids[1]]
    return {
        "smp.initial_noise": noise,
        "smp.full_t10_g1": sample(guidance=1.0),
        "smp.full_t10_cfg7.5_plain": sample(norm_guidance=False),
        "smp.full_t10_cfg7.5_norm": full,
        "smp.full_t10_cfg7.5_norm_x_at_step_start": torch.stack(starts),
        "smp.keep4_t10_g1": sample(keep=4, guidance=1.0),
        "smp.keep4_t10_cfg7.5_norm": sample(keep=4),
        "smp.keep4_t3_cfg2_norm": sample(keep=4, steps=3, guidance=2.0),
        "smp.keep4_t4_callable_1plus4t_norm": sample(keep=4, steps=4, guidance=lambda t: 1 + 4 * t),
        "smp.null_t10_g1": flow.euler_sample(lambda x, i: decoder(x, null, modulations.at(i)), noise, 10),
        "detok.latents_lens_5_and_full_t10_cfg7.5_norm": golden.decode_latents(prefixes, steps=10, noise=noise),
        "detok.image_lens_5_and_full_t10_cfg7.5_norm": golden.detokenize(prefixes, steps=10, noise=noise),
        "autoenc.image_t5_g1": golden.autoencode(given["vae.image"], steps=5, guidance=1.0, noise=noise),
    }


@torch.no_grad()
def test_every_golden_tensor_is_reproduced(golden: Tokenizer, goldens: Goldens) -> None:
    found = {
        **vae_outputs(golden, goldens),
        **encoder_outputs(golden, goldens),
        **decoder_outputs(golden, goldens),
        **flow_outputs(goldens),
        **sampler_outputs(golden, goldens),
    }
    assert found.keys() | GIVEN == goldens.keys() and len(goldens) == 70
    for name, value in found.items():
        if name.endswith(EXACT):
            assert torch.equal(value, goldens[name].to(value.dtype)), name
        else:
            torch.testing.assert_close(value, goldens[name], msg=lambda text, n=name: f"{n}: {text}", **tolerance(name))


@pytest.mark.parametrize("levels", [(8, 8, 8, 5, 5, 5), (7, 5, 6, 4), (2, 3)], ids=str)
def test_fsq_is_reproduced(shared: Path, levels: tuple[int, ...]) -> None:
    stored = load_file(shared / "goldens" / "fsq" / "fsq.safetensors")
    name = "-".join(map(str, levels))
    expected = {key.removeprefix(f"{name}."): value for key, value in stored.items() if key.startswith(f"{name}.")}
    fsq = FSQ(FSQConfig(levels=levels))
    z = expected["z"].requires_grad_()
    quantized = fsq(z)
    quantized.codes.sum().backward()

    assert torch.equal(quantized.ids, expected["ids"])
    torch.testing.assert_close(fsq.bound(z), expected["bounded"], atol=1e-5, rtol=0)
    torch.testing.assert_close(quantized.codes, expected["quantized"], atol=1e-6, rtol=0)
    torch.testing.assert_close(fsq.codes(expected["idx"]), expected["embedding"], atol=1e-6, rtol=0)
    assert z.grad is not None
    torch.testing.assert_close(z.grad, expected["grad_of_sum_quantized"], atol=1e-5, rtol=0)
