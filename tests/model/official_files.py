"""Writes published-layout files for tests: a model of ours under the published names, config and all."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from flextok.model.autoencoders.config import AutoencoderKLConfig
from flextok.model.tokenizer import Tokenizer
from flextok.model.weights import state_digest

HOMES = {
    "PerSampleOp": "model.utils.dict_ops", "PatchEmbedder": "model.preprocessors.patching",
    "PositionalEmbeddingAdder": "model.utils.posembs", "Registers1D": "model.preprocessors.registers",
    "BlockWiseSequencePacker": "model.preprocessors.flex_seq_packing", "LinearLayer": "model.preprocessors.linear",
    "FlexTransformer": "model.trunks.transformers", "SequenceUnpacker": "model.postprocessors.seq_unpacking",
    "LinearHead": "model.postprocessors.heads", "ToPatchesLinearHead": "model.postprocessors.heads",
    "MLPHead": "model.postprocessors.heads", "MaskedNestedDropout": "model.preprocessors.token_dropout",
    "LearnedNullCond": "model.preprocessors.nullcond", "TimestepEmbedder": "model.preprocessors.time_embedding",
}  # fmt: skip


def entry(kind: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"flextok.{HOMES[kind]}.{kind}", **arguments}


TRAINING: dict[str, Any] = {
    "keep_mode": "uniform_pow2", "condition_dropout": 0.25, "sigma": "logit_normal", "mode_scale": 0.0,
    "pure_noise_steps": 0, "pure_noise_share": 0.0,
}  # fmt: skip
"""How the published models of these tests say that they were trained."""


def official_digest(tokenizer: Tokenizer) -> str:
    """Digest of a model read from its published file: it covers how the model was trained."""
    values = {**tokenizer.config.model_dump(mode="json"), **TRAINING}
    return state_digest("tokenizer", values, tokenizer.state_dict())


def official_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """The published config of a model, its module names unlike the released ones."""
    config = tokenizer.config
    channels, patch, grid = config.latents.latent_channels, [config.patch_size] * 2, list(config.grid)
    posemb = {"posemb_type": "sincos", "posemb_scaling": config.posemb_scaling, "max_sizes": grid}
    enc, dec = config.encoder, config.decoder.trunk
    encoder = {
        "z_last": entry("PerSampleOp", read_key="z", write_key="p"),
        "y_patch": entry("PatchEmbedder", channels_in=channels, dim=enc.width, patch_sizes=patch),
        "x_pos": entry("PositionalEmbeddingAdder", dim=enc.width, **posemb),
        "w_reg": entry("Registers1D", registers_write_key="r", dim=enc.width, n_min=1, n_max=config.registers),
        "v_pack": entry("BlockWiseSequencePacker", input_list_read_keys=["p", "r"], mask_mode="causal_last"),
        "u_trunk": entry("FlexTransformer", dim=enc.width, depth=enc.depth, head_dim=enc.head_dim),
        "t_unpack": entry("SequenceUnpacker"),
        "s_head": entry("LinearHead", dim=enc.width, dim_out=tokenizer.quantizer.dim, use_mup_readout=False),
    }
    decoder = {
        "z_lin": entry("LinearLayer", write_key="r", dim=dec.width),
        "y_pos": entry("PositionalEmbeddingAdder", max_sizes=[config.registers], posemb_type="learnable_sum"),
        "x_nested": entry("MaskedNestedDropout", dim=dec.width, size_sampling_mode=TRAINING["keep_mode"]),
        "w_null": entry("LearnedNullCond", dim=dec.width, dropout_prob=TRAINING["condition_dropout"]),
        "v_patch": entry("PatchEmbedder", channels_in=channels, dim=dec.width, patch_sizes=patch),
        "u_pos": entry("PositionalEmbeddingAdder", dim=dec.width, **posemb),
        "t_pack": entry("BlockWiseSequencePacker", input_list_read_keys=["p", "r"], mask_mode="full"),
        "s_time": entry("TimestepEmbedder", dim=dec.width, max_timestep=config.decoder.max_timestep),
        "r_trunk": entry("FlexTransformer", head_dim=dec.head_dim, adaLN_expansion=2),
        "q_unpack": entry("SequenceUnpacker"),
        "p_head": entry("ToPatchesLinearHead", dim=dec.width, channels_out=channels, patch_sizes=patch),
    }
    latents = config.latents
    assert isinstance(latents, AutoencoderKLConfig)
    wrapper = "flextok.model.utils.wrappers.SequentialModuleDictWrapper"
    return {
        "vae": {
            "_target_": "flextok.vae_wrapper.StableDiffusionVAE", "latent_channels": channels, "hf_hub_path": "vae",
            "scaling_factor": latents.scaling_factor, "sample_posterior": latents.sample_posterior,
        },
        "encoder": {"_target_": wrapper, "module_dict": encoder},
        "decoder": {"_target_": wrapper, "module_dict": decoder},
        "regularizer": {"_target_": "flextok.regularizers.quantize_fsq.FSQ", "levels": list(config.quantizer.levels)},
        "flow_matching_noise_module": {
            "_target_": "flextok.flow_matching.noise_modules.MinRFNoiseModule", "ln": TRAINING["sigma"] == "logit_normal",
            "mode_scale": TRAINING["mode_scale"],
        },
        "pipeline": {"_target_": "flextok.flow_matching.pipelines.MinRFPipeline", "_partial_": True},
    }  # fmt: skip


def official_state(tokenizer: Tokenizer) -> dict[str, Tensor]:
    """The model's tensors under published names (with the module names of `official_config`)."""
    state = tokenizer.state_dict()
    named = {f"vae.{n.removeprefix('latents.')}": t for n, t in state.items() if n.startswith("latents.")}
    linears = {
        "encoder.patches.proj": "encoder.module_dict.y_patch.patch_proj",
        "encoder.head": "encoder.module_dict.s_head.proj",
        "decoder.from_codes": "decoder.module_dict.z_lin.proj",
        "decoder.patches.proj": "decoder.module_dict.v_patch.patch_proj",
        "decoder.time.fc1": "decoder.module_dict.s_time.mlp.0",
        "decoder.time.fc2": "decoder.module_dict.s_time.mlp.2",
        "decoder.head_adaln": "decoder.module_dict.p_head.adaLN_modulation.1",
        "decoder.head": "decoder.module_dict.p_head.proj",
    }
    trunks = {"encoder": "encoder.module_dict.u_trunk", "decoder": "decoder.module_dict.r_trunk"}
    for ours, theirs in trunks.items():
        for index in range(len(tokenizer.get_submodule(ours).get_submodule("blocks"))):
            block, goal = f"{ours}.blocks.{index}", f"{theirs}.blocks.{index}"
            for name, part in zip(("wq", "wk", "wv"), state[f"{block}.attn.qkv.weight"].chunk(3), strict=True):
                named[f"{goal}.attn.{name}.weight"] = part
            for name, part in zip(("fc1", "fc3"), state[f"{block}.mlp.gate_up.weight"].chunk(2), strict=True):
                named[f"{goal}.mlp.{name}.weight"] = part
            named[f"{goal}.attn.proj.weight"] = state[f"{block}.attn.proj.weight"]
            named[f"{goal}.mlp.fc2.weight"] = state[f"{block}.mlp.down.weight"]
            if ours == "decoder":
                linears[f"{block}.adaln"] = f"{goal}.adaLN_modulation.1"
    for ours, theirs in linears.items():
        for kind in ("weight", "bias"):
            named[f"{theirs}.{kind}"] = state[f"{ours}.{kind}"]
    named["encoder.module_dict.x_pos.posembs"] = state["encoder.patches.positions"].permute(2, 0, 1)[None]
    named["decoder.module_dict.u_pos.posembs"] = state["decoder.patches.positions"].permute(2, 0, 1)[None]
    named["decoder.module_dict.y_pos.posembs"] = state["decoder.register_positions"].T[None, None]
    named["encoder.module_dict.w_reg.registers"] = state["encoder.registers"]
    named["decoder.module_dict.x_nested.dropout_mask_token"] = state["decoder.mask_token"]
    named["decoder.module_dict.w_null.nullcond"] = state["decoder.null_token"]
    return named


def write_official(
    folder: Path, config: dict[str, Any], state: dict[str, Tensor], groups: int | None = None, hub: bool = False
) -> Path:
    """model.safetensors with its config in the metadata, or a Hub folder; and the stage 0's folder beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = None if hub else {name: str(value) for name, value in config.items()}
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata)
    if hub:
        (folder / "config.json").write_text(json.dumps(config, sort_keys=True))
    if groups is not None:
        (folder / "vae").mkdir(exist_ok=True)
        diffusers = {"_class_name": "AutoencoderKL", "norm_num_groups": groups, "act_fn": "silu", "scaling_factor": 0.5}
        (folder / "vae" / "config.json").write_text(json.dumps(diffusers))
    return folder


def with_dtype(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) for name, tensor in state.items()}
