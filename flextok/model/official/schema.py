"""What a published config may name, and which of its settings this model computes.

The list is of names, not of code: a `_target_` says which formula was meant, and is never imported.
"""

from typing import Any

from flextok.errors import FlextokError

CLASSES = (
    "flextok_wrapper.FlexTok",
    "vae_wrapper.StableDiffusionVAE",
    "model.utils.wrappers.SequentialModuleDictWrapper",
    "model.utils.dict_ops.PerSampleOp",
    "model.utils.dict_ops.channels_first_to_last",
    "model.utils.dict_ops.channels_last_to_first",
    "model.preprocessors.patching.PatchEmbedder",
    "model.utils.posembs.PositionalEmbeddingAdder",
    "model.preprocessors.registers.Registers1D",
    "model.preprocessors.flex_seq_packing.BlockWiseSequencePacker",
    "model.trunks.transformers.FlexTransformer",
    "model.postprocessors.seq_unpacking.SequenceUnpacker",
    "model.postprocessors.heads.LinearHead",
    "model.postprocessors.heads.ToPatchesLinearHead",
    "model.postprocessors.heads.MLPHead",
    "model.preprocessors.linear.LinearLayer",
    "model.preprocessors.token_dropout.MaskedNestedDropout",
    "model.preprocessors.nullcond.LearnedNullCond",
    "model.preprocessors.nullcond.ZeroNullCond",
    "model.preprocessors.time_embedding.TimestepEmbedder",
    "regularizers.quantize_fsq.FSQ",
    "flow_matching.noise_modules.MinRFNoiseModule",
    "flow_matching.pipelines.MinRFPipeline",
)
TARGETS = frozenset(f"flextok.{name}" for name in CLASSES)
# Layer classes given as arguments: activation and norm have one formula here, wherever the class lives.
LAYER_ARGUMENTS = {"act_layer": "SiLU", "norm_layer": "LayerNorm"}
LAYER_HOMES = ("flextok.", "torch.nn.")

# Settings that must have the published value where they are given: others mean another computation.
REQUIRED: dict[str, dict[str, tuple[Any, ...]]] = {
    "FlexTransformer": {
        "qkv_bias": (False,), "proj_bias": (False,), "mlp_bias": (False,), "gated_mlp": (True,), "qk_norm": (True,),
        "score_mod_read_key": (None,), "rope_forward_read_key": (None,),
    },
    "LinearHead": {"use_mup_readout": (False,), "adaLN_emb_read_key": (None,), "proj_bias": (True,)},
    "ToPatchesLinearHead": {"use_mup_readout": (False,), "adaLN_bias": (True,), "proj_bias": (True,)},
    "LinearLayer": {"proj_bias": (True,)},
    "PositionalEmbeddingAdder": {"posemb_scaling": ("absolute", "interpolate")},
    "Registers1D": {"ordering_mode": ("nested",), "extra_registers_write_key": (None,)},
    "LearnedNullCond": {"replace_with_single_token": (False,)},
    "TimestepEmbedder": {"temb_as_tokens": (False,)},
}  # fmt: skip


def check_targets(values: Any, where: str) -> None:
    """Every `_target_` below `values` is on the list; raises FlextokError naming the first that is not."""
    if isinstance(values, dict):
        for key, value in values.items():
            if key == "_target_" and not (isinstance(value, str) and value in TARGETS):
                raise FlextokError(
                    f"expected only known '_target_' classes in {where}, found {value!r:.200}; not loaded"
                )
            if not (key in LAYER_ARGUMENTS and _is_layer(value, LAYER_ARGUMENTS[key])):
                check_targets(value, where)
    elif isinstance(values, list | tuple):
        for value in values:
            check_targets(value, where)


def check_arguments(name: str, kind: str, arguments: dict[str, Any]) -> None:
    """Settings of one module are those this model computes; raises FlextokError naming the first that is not."""
    for key, allowed in REQUIRED.get(kind, {}).items():
        if key in arguments and arguments[key] not in allowed:
            reason = "; it needs base shapes that no checkpoint holds" if key == "use_mup_readout" else ""
            wanted = " or ".join(map(repr, allowed))
            raise FlextokError(
                f"expected {key} {wanted} in {name}, found {arguments[key]!r:.100}{reason}; not supported"
            )
    for key, layer in LAYER_ARGUMENTS.items():
        if key in arguments and not _is_layer(arguments[key], layer):
            raise FlextokError(f"expected {key} to be {layer} in {name}, found {arguments[key]!r:.100}; not supported")


def _is_layer(value: Any, layer: str) -> bool:
    """Whether a layer class is the one meant, without learned parameters and with the published epsilon."""
    if not isinstance(value, dict):
        return False
    target = value.get("_target_")
    if not isinstance(target, str) or not target.startswith(LAYER_HOMES) or not target.endswith(layer):
        return False
    fixed = {
        "_target_": target,
        "_partial_": True,
        "eps": 1e-5,
        "bias": False,
        "elementwise_affine": False,
        "inplace": False,
    }
    return all(key in fixed and fixed[key] == given for key, given in value.items())
