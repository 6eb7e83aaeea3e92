"""Reading published checkpoints: every layout and size of them, and none that is broken or hostile."""

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from official_files import official_config, official_digest, official_state, with_dtype, write_official
from safetensors.torch import load_file
from tiny_models import scrambled
from torch import Tensor

from flextok.errors import FlextokError, UsageError
from flextok.model.autoencoders.config import AutoencoderKLConfig
from flextok.model.config import TokenizerConfig
from flextok.model.decoders.config import FlowDecoderConfig
from flextok.model.describe import describe_checkpoint
from flextok.model.load import load_tokenizer
from flextok.model.nn.config import TrunkConfig
from flextok.model.official.checkpoint import import_checkpoint
from flextok.model.quantizers.config import FSQConfig
from flextok.model.tokenizer import Tokenizer

Parts = tuple[dict[str, Any], dict[str, Tensor]]

SMALL = TokenizerConfig(
    latents=AutoencoderKLConfig(
        block_out_channels=(4, 8, 8), layers_per_block=2, latent_channels=5, norm_num_groups=2, scaling_factor=0.7
    ),
    image_size=32,
    patch_size=2,
    registers=7,
    encoder=TrunkConfig(width=24, depth=3, head_dim=12),
    quantizer=FSQConfig(levels=(7, 5, 3)),
    decoder=FlowDecoderConfig(trunk=TrunkConfig(width=48, depth=1, head_dim=16), max_timestep=1000.0),
    posemb_grid=(4, 6),
)


@pytest.fixture(scope="module")
def source() -> Tokenizer:
    return scrambled(SMALL)


@pytest.fixture
def parts(source: Tokenizer) -> Parts:
    return official_config(source), official_state(source)


@pytest.mark.parametrize("hub", [False, True], ids=["metadata", "hub-sorted-keys"])
def test_other_sizes_and_names_are_read_from_the_file(
    tmp_path: Path, source: Tokenizer, parts: Parts, hub: bool
) -> None:
    config, state = parts
    wrapped = {name.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): t for name, t in state.items()}
    folder = write_official(tmp_path, config, wrapped, groups=2, hub=hub)
    loaded = load_tokenizer(str(folder / "model.safetensors"))
    assert load_tokenizer(str(folder)).digest == loaded.digest
    # the side of a training picture is not in a published config; it follows from the table of positions
    assert loaded.config == SMALL
    assert loaded.digest == official_digest(source)

    images = torch.rand(2, 3, 16, 24) * 2 - 1
    noise = torch.randn(2, 5, 4, 6)
    ids = loaded.tokenize(images)
    assert torch.equal(ids, source.tokenize(images))
    assert torch.equal(loaded.detokenize(ids, noise=noise, steps=2), source.detokenize(ids, noise=noise, steps=2))
    assert loaded.autoencode(images, keep=3, steps=1).shape == images.shape


def test_half_precision_weights_and_old_attention_names_are_read(tmp_path: Path, parts: Parts) -> None:
    config, state = parts
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(name: str) -> str:
        for new, former in old.items():
            name = name.replace(f".attentions.0.{new}.", f".attentions.0.{former}.")
        return name

    plain = load_tokenizer(str(write_official(tmp_path / "new", config, with_dtype(state, torch.float16), groups=2)))
    state = {renamed(name): tensor for name, tensor in with_dtype(state, torch.float16).items()}
    assert any(".query." in name for name in state)
    former = load_tokenizer(str(write_official(tmp_path / "old", config, state, groups=2)))
    assert former.digest == plain.digest
    assert all(parameter.dtype == torch.float32 for parameter in former.parameters())


def test_training_projector_is_passed_over(tmp_path: Path, source: Tokenizer, parts: Parts) -> None:
    config, state = parts
    config["decoder"]["module_dict"]["repa"] = {"_target_": "flextok.model.postprocessors.heads.MLPHead", "dim": 48}
    state["decoder.module_dict.repa.mlp.0.weight"] = torch.zeros(4, 4)
    assert load_tokenizer(str(write_official(tmp_path, config, state, groups=2))).digest == official_digest(source)


def test_scaling_factor_comes_from_the_stage_0_folder_where_the_config_has_none(tmp_path: Path, parts: Parts) -> None:
    config, state = parts
    config["vae"]["scaling_factor"] = None
    latents = load_tokenizer(str(write_official(tmp_path, config, state, groups=2))).config.latents
    assert isinstance(latents, AutoencoderKLConfig) and latents.scaling_factor == 0.5
    shutil.rmtree(tmp_path / "vae")
    with pytest.raises(FlextokError, match="beside the weights"):
        load_tokenizer(str(tmp_path))


def test_imported_checkpoint_is_the_same_model(tmp_path: Path, golden_folder: Path, golden: Tokenizer) -> None:
    saved = import_checkpoint(str(golden_folder), str(tmp_path / "ours"))
    ours = load_tokenizer(saved.url)
    assert saved.digest == ours.digest == golden.digest
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    assert torch.equal(ours.tokenize(images), golden.tokenize(images))

    described, original = describe_checkpoint(saved.url), describe_checkpoint(str(golden_folder))
    assert (described.pop("layout"), original.pop("layout")) == ("flextok", "official")
    assert json.loads(json.dumps(described)) == json.loads(json.dumps(original))
    assert described["num_tokens"] == 16 and described["vocab_size"] == 64_000 and described["image_size"] == [64, 64]
    assert described["parameters"]["total"] == sum(p.numel() for p in golden.parameters())


def change_config(*path: str, value: Any) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        target = parts[0]
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value

    return change


def change_state(name: str, value: Tensor | None) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        if value is None:
            del parts[1][name]
        else:
            parts[1][name] = value

    return change


HEAD = "encoder.module_dict.s_head.proj.weight"
QUERY = "decoder.module_dict.r_trunk.blocks.0.attn.wq.weight"
ENC, DEC = ("encoder", "module_dict"), ("decoder", "module_dict")
MISFITS = {
    "missing tensor": (change_state(HEAD, None), f"'{HEAD}'.*missing"),
    "missing autoencoder tensor": (change_state("vae.vae.decoder.conv_in.bias", None), "conv_in.bias.*missing"),
    "missing query": (change_state(QUERY, None), "missing"),
    "extra tensor": (change_state("encoder.module_dict.s_head.extra", torch.zeros(2)), "found also.*s_head.extra"),
    "tensor of no module": (change_state("elsewhere", torch.zeros(2)), "found also 'elsewhere'"),
    "extra autoencoder tensor": (change_state("vae.vae.more", torch.zeros(2)), "found also 'latents.vae.more'"),
    "wrong shape": (change_state(HEAD, torch.zeros(4, 24)), r"of shape \[3, 24\].*found \[4, 24\]"),
    "wrong dimensions": (change_state(HEAD, torch.zeros(3)), "2 dimensions"),
    "wrong query": (change_state(QUERY, torch.zeros(24, 48)), "of one shape"),
    "not a number": (change_state(HEAD, torch.full((3, 24), torch.nan)), "finite weights.*NaN"),
    "integer weights": (change_state(HEAD, torch.zeros(3, 24, dtype=torch.int64)), "floating-point"),
    "foreign target": (change_config(*ENC, "z_last", "_target_", value="os.system"), "'_target_'.*os.system"),
    "foreign nested target": (change_config("vae", "x", value=[{"_target_": "os.system"}]), "'_target_'"),
    "target of another type": (change_config("vae", "_target_", value=["os"]), "'_target_'"),
    "mup readout": (change_config(*ENC, "s_head", "use_mup_readout", value=True), "use_mup_readout"),
    "no qk norm": (change_config(*ENC, "u_trunk", "qk_norm", value=False), "qk_norm"),
    "other activation": (
        change_config(*ENC, "u_trunk", "act_layer", value={"_target_": "flextok.model.utils.dict_ops.PerSampleOp"}),
        "act_layer",
    ),
    "shared modulation": (change_config(*DEC, "r_trunk", "adaLN_expansion", value=1), "adaLN_expansion"),
    "other mask": (change_config(*ENC, "v_pack", "mask_mode", value="full"), "mask_mode 'causal_last'"),
    "registers first": (change_config(*DEC, "t_pack", "input_list_read_keys", value=["r", "p"]), "patches, then reg"),
    "fewer registers in use": (change_config(*ENC, "w_reg", "n_eval", value=3), "n_eval"),
    "oblong patches": (change_config(*ENC, "y_patch", "patch_sizes", value=[2, 1]), "square patch_sizes"),
    "other width of the mlp": (change_config(*ENC, "u_trunk", "mlp_ratio", value=3.0), "mlp_ratio"),
    "infinite mlp": (change_config(*ENC, "u_trunk", "mlp_ratio", value=1e999), "mlp_ratio|Python literal"),
    "head that does not fit": (change_config(*ENC, "u_trunk", "head_dim", value=7), "head_dim 7"),
    "no levels": (change_config("regularizer", "levels", value=None), "levels"),
    "levels that do not fit": (change_config("regularizer", "levels", value=[7, 5]), "encoder.head"),
    "unknown keep mode": (change_config(*DEC, "x_nested", "size_sampling_mode", value="odd"), "keep_mode"),
    "second trunk": (change_config(*ENC, "more", value={"_target_": "flextok.model.trunks.transformers.FlexTransformer"}),
                     "one FlexTransformer in the encoder, found 2"),
    "modules as a list": (change_config("encoder", "module_dict", value=[]), "module_dict"),
    "no regularizer": (change_config("regularizer", value=None), "'regularizer'"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
@pytest.mark.parametrize("hub", [False, True], ids=["metadata", "hub"])
def test_misfits_are_one_clear_error(tmp_path: Path, parts: Parts, case: str, hub: bool) -> None:
    change, message = MISFITS[case]
    change(parts)
    folder = write_official(tmp_path, *parts, groups=2, hub=hub)
    with pytest.raises(FlextokError, match=message) as caught:
        load_tokenizer(str(folder))
    assert "\n" not in str(caught.value)


def test_modules_in_another_order_are_refused_unless_their_keys_were_sorted(tmp_path: Path, parts: Parts) -> None:
    config, state = parts
    entries = config["decoder"]["module_dict"]
    late = {name: entries[name] for name in [*(n for n in entries if n != "y_pos"), "y_pos"]}
    config["decoder"]["module_dict"] = late
    with pytest.raises(FlextokError, match="register inputs to pass"):
        load_tokenizer(str(write_official(tmp_path / "late", config, state, groups=2)))


def rewrite_header(path: Path, change: Callable[[dict], None]) -> None:
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])


def metadata(name: str, value: str) -> Callable[[Path], None]:
    return lambda path: rewrite_header(path, lambda header: header["__metadata__"].__setitem__(name, value))


class Exploding:
    """Leaves a trace when it is unpickled."""

    def __reduce__(self):
        return (open, ("exploded", "w"))


HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "whole safetensors"),
    "truncated header": (lambda path: path.write_bytes(path.read_bytes()[:50]), "safetensors header"),
    "empty": (lambda path: path.write_bytes(b""), "shorter file"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps(Exploding())), "pickle"),
    "torch file": (lambda path: torch.save({"a": torch.zeros(2)}, path), "pickle"),
    "header of exabytes": (lambda path: path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}"), "header of at most"),
    "10 MB metadata": (metadata("encoder", "[" + "1," * 5_000_000 + "]"), "header of at most"),
    "1 MB metadata": (metadata("notes", "x" * 1_000_000), "characters of metadata"),
    "call in the metadata": (metadata("encoder", "__import__('os').system('touch exploded')"), "Python literal"),
    "deep nesting": (metadata("encoder", "[" * 40_000 + "]" * 40_000), "Python literal"),
    "deep negation": (metadata("encoder", "-" * 90_000 + "1"), "Python literal"),
    "unhashable key": (metadata("encoder", "{[]: 1}"), "Python literal"),
    "metadata of numbers": (
        lambda path: rewrite_header(path, lambda header: header["__metadata__"].update(encoder=1)),
        "metadata of strings",
    ),
    "foreign top target": (metadata("_target_", "os.system"), "'_target_'.*os.system"),
    "no metadata": (lambda path: rewrite_header(path, lambda header: header.pop("__metadata__")), "config entry 'vae'"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_one_clear_error(
    tmp_path: Path, parts: Parts, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = HOSTILE[case]
    monkeypatch.chdir(tmp_path)
    path = write_official(tmp_path, *parts, groups=2) / "model.safetensors"
    change(path)
    with pytest.raises(FlextokError, match=message) as caught:
        load_tokenizer(str(path))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1_000
    assert not (tmp_path / "exploded").exists()


def test_stage_0_config_is_looked_for_only_inside_the_folder(tmp_path: Path, parts: Parts) -> None:
    config, state = parts
    write_official(tmp_path / "inner", config, state)
    write_official(tmp_path, config, state, groups=2)
    for path in ("../vae", str(tmp_path / "vae"), "https://example.org/vae"):
        config["vae"]["hf_hub_path"] = path
        with pytest.raises(FlextokError, match="norm groups"):
            load_tokenizer(str(write_official(tmp_path / "inner", config, state)))


def test_nothing_there_is_a_usage_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(UsageError, match="expected"):
            load_tokenizer(str(path))


def test_golden_file_alone_equals_its_hub_folder(golden_folder: Path, golden: Tokenizer, tmp_path: Path) -> None:
    assert load_tokenizer(str(golden_folder / "model.safetensors")).digest == golden.digest
    config = json.loads((golden_folder / "config.json").read_text())
    state = load_file(golden_folder / "model.safetensors")
    write_official(tmp_path, config, state, groups=4, hub=True)  # sorts the keys
    assert load_tokenizer(str(tmp_path)).digest == golden.digest
