"""A prior as a folder that `transformers`, and servers that read its folders, load as a causal language model.

Only the kind `llama` is such a model. Its vocabulary is written whole: ids 0..V-1, then a token for each of C classes, then one
for no class, with which an unconditional sequence (and that of guidance) begins.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from flextok import storage
from flextok.aliases import resolve_alias
from flextok.errors import UsageError
from flextok.model.load import load_prior, prior_outline
from flextok.model.priors.config import LlamaConfig, PriorConfig
from flextok.model.priors.llama import NORM_EPS, ROPE_THETA, LlamaPrior
from flextok.model.weights import read_weights, state_digest
from flextok.provenance import artifact_input, make_provenance, read_provenance
from flextok.runtime.storage_errors import storage_errors

KIND = "exported-prior"


@storage_errors("export the prior {prior_url} to {dest}")
def export_prior(prior_url: str, dest: str) -> str:
    """Write the prior as the local folder `dest`, which appears whole or not at all; gives its digest.

    It holds `model.safetensors` (float32), `config.json`, `generation_config.json` and `provenance.json`. Logits of its first V
    ids are the prior's; those of class tokens, which are never drawn, are 0 and suppressed in `generation_config.json`.

    Raises UsageError for a prior whose transformer is no published one, and where something is at `dest`.
    """
    prior_url = resolve_alias(prior_url)
    model = prior_outline(prior_url)[0].model
    if not isinstance(model, LlamaConfig):
        raise UsageError(
            f"expected a prior of kind llama, found {prior_url} of kind {model.kind}, which no model of transformers computes; "
            "train one with prior.model.kind=llama"
        )
    goal = storage.local_path(dest).absolute()
    if goal.exists():
        raise UsageError(f"expected nothing at {dest}, found something; give another folder or remove it")
    prior = load_prior(prior_url)
    assert isinstance(prior, LlamaPrior)
    config, state = transformers_config(prior.config), transformers_state(prior)
    digest = state_digest(KIND, config, state)
    provenance = make_provenance(KIND, digest, [artifact_input(prior_url)], {}, dest)
    goal.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=storage.TEMPORARY_PREFIX, dir=goal.parent))
    try:
        storage.write_bytes(str(folder / "model.safetensors"), save(state, metadata={"format": "pt"}))
        storage.write_json(str(folder / "config.json"), config)
        storage.write_json(str(folder / "generation_config.json"), generation_config(prior.config))
        storage.write_json(str(folder / "provenance.json"), provenance)
        folder.chmod(0o755)  # as other folders are; a temporary one is its maker's alone
        folder.rename(goal)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return digest


def verify_export(url: str) -> list[str]:
    """What is wrong with an exported folder; empty where its content has the digest that it records."""
    state, _ = read_weights(storage.join(url, "model.safetensors"))
    found = state_digest(KIND, storage.read_json(storage.join(url, "config.json")), state)
    expected = read_provenance(url)["digest"]
    return [] if found == expected else [f"expected content with digest {expected[:12]}, found {found[:12]}"]


def transformers_config(config: PriorConfig) -> dict[str, Any]:
    """The `config.json` of `LlamaForCausalLM`, with what it needs to know of the tokens under `flextok`."""
    model = config.model
    assert isinstance(model, LlamaConfig)
    heads = model.width // model.head_dim
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size + config.num_classes + 1,
        "hidden_size": model.width,
        "intermediate_size": int(model.width * model.mlp_ratio * 2 / 3),
        "num_hidden_layers": model.depth,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.sequence_length + 1,
        "rms_norm_eps": NORM_EPS,
        # By either name, for versions before 5 and since.
        "rope_theta": ROPE_THETA,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        **_no_special_tokens(),
        "flextok": {
            "tokenizer": config.tokenizer,
            "ids": config.vocab_size,
            "classes": config.num_classes,
            "positions": config.num_tokens,
            "codebooks": config.codebooks,
        },
    }


def generation_config(config: PriorConfig) -> dict[str, Any]:
    """The `generation_config.json`: all ids of an image, drawn from the whole distribution, class tokens never."""
    classes = range(config.vocab_size, config.vocab_size + config.num_classes + 1)
    return {
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "max_new_tokens": config.sequence_length,
        "suppress_tokens": list(classes),
        **_no_special_tokens(),
    }


def _no_special_tokens() -> dict[str, None]:
    # Llama's own 1 and 2 are ids of images here, and would end a generation.
    return {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def transformers_state(prior: LlamaPrior) -> dict[str, Tensor]:
    """The weights by the names that `LlamaForCausalLM` gives them."""
    state = {
        "model.embed_tokens.weight": prior.embedding.weight,
        "model.norm.weight": prior.norm.weight,
        "lm_head.weight": torch.cat(
            [prior.head.weight, torch.zeros_like(prior.embedding.weight[prior.config.vocab_size :])]
        ),
    }
    for index, weights in enumerate(block.state_dict() for block in prior.blocks):
        key, value = weights["attention.key_value.weight"].chunk(2)
        gate, up = weights["up.weight"].chunk(2)
        parts = {
            "self_attn.q_proj": weights["attention.query.weight"],
            "self_attn.k_proj": key,
            "self_attn.v_proj": value,
            "self_attn.o_proj": weights["attention.out.weight"],
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": weights["down.weight"],
            "input_layernorm": weights["norms.0.weight"],
            "post_attention_layernorm": weights["norms.1.weight"],
        }
        state |= {f"model.layers.{index}.{name}.weight": weight for name, weight in parts.items()}
    return {name: weight.detach().clone().contiguous() for name, weight in state.items()}
