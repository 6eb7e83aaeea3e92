"""The module layout of published checkpoints: its modules found by class, its tensors under our names.

Sizes come from the tensors, whatever the config says. Names of modules are free; their classes and wiring are not.
"""

from typing import Any

import torch
from torch import Tensor

from flextok.errors import FlextokError, IntegrityError
from flextok.model.official.schema import check_arguments

Converted = tuple[dict[str, Any], dict[str, Tensor]]

WRAPPED = "_checkpoint_wrapped_module."  # activation checkpointing may leave it in names
NULL_KINDS = ("LearnedNullCond", "ZeroNullCond")
COMMON_KINDS = ("PerSampleOp", "PatchEmbedder", "PositionalEmbeddingAdder", "BlockWiseSequencePacker", "FlexTransformer",
                "SequenceUnpacker")  # fmt: skip
PART_KINDS = {
    "encoder": (*COMMON_KINDS, "Registers1D", "LinearHead"),
    "decoder": (*COMMON_KINDS, "LinearLayer", "MaskedNestedDropout", *NULL_KINDS, "TimestepEmbedder",
                "ToPatchesLinearHead", "MLPHead"),
}  # fmt: skip
# Register inputs pass these in this order; another one computes something else.
REGISTER_ORDER = ("LinearLayer", "PositionalEmbeddingAdder", "MaskedNestedDropout", "NullCond")


class Module:
    """One entry of a module_dict: its class name, its arguments, and access to its tensors."""

    def __init__(self, path: str, arguments: dict[str, Any], owner: "Modules"):
        self.path = path
        self.kind = str(arguments.get("_target_")).rpartition(".")[2]
        self.arguments = arguments
        self._owner = owner
        check_arguments(path, self.kind, arguments)

    def tensor(self, name: str, dims: int) -> Tensor:
        """An owned tensor; raises IntegrityError where it is missing or has another number of dimensions."""
        return self._owner.tensor(f"{self.path}.{name}", dims)

    def linear(self, name: str, goal: str) -> dict[str, Tensor]:
        """Weight and bias of a linear layer, under our name for it."""
        return {f"{goal}.weight": self.tensor(f"{name}.weight", 2), f"{goal}.bias": self.tensor(f"{name}.bias", 1)}

    def dims(self) -> int:
        """Dimensions of the grid that a position embedding covers."""
        sizes = self.arguments.get("max_sizes")
        return len(sizes) if isinstance(sizes, list | tuple) else 0

    def depth(self) -> int:
        """Blocks that the file holds for a trunk."""
        depth = 0
        while f"{self.path}.blocks.{depth}.attn.wq.weight" in self._owner.state:
            depth += 1
        return depth


class Modules:
    """The modules of a published config over the tensors of its file, keeping count of which tensors were used."""

    def __init__(self, values: dict[str, Any], state: dict[str, Tensor]):
        self.state = {name.replace(WRAPPED, ""): tensor for name, tensor in state.items()}
        self._used: set[str] = set()
        self._parts = {part: self._read(values[part], part) for part in PART_KINDS}

    def only(self, part: str, *kinds: str, dims: int | None = None) -> Module:
        """The one module of a class (with so many `max_sizes`); raises FlextokError unless there is exactly one."""
        found = [module for module in self._parts[part] if module.kind in kinds]
        if dims is not None:
            found = [module for module in found if module.dims() == dims]
        if len(found) != 1:
            kind = f"{dims}D {kinds[0]}" if dims else kinds[0]
            raise FlextokError(
                f"expected one {kind} in the {part}, found {len(found)}; only the published layout is read"
            )
        return found[0]

    def tensor(self, name: str, dims: int) -> Tensor:
        """A tensor of the file, counted as used."""
        if name not in self.state:
            raise IntegrityError(f"expected tensor '{name}', found it missing; fetch the checkpoint again")
        tensor = self.state[name]
        if tensor.dim() != dims or 0 in tensor.shape:
            raise IntegrityError(f"expected '{name}' with {dims} dimensions, found shape {list(tensor.shape)}")
        self._used.add(name)
        return tensor

    def take(self, prefix: str) -> dict[str, Tensor]:
        """All tensors below a prefix, counted as used."""
        taken = {name.removeprefix(prefix): tensor for name, tensor in self.state.items() if name.startswith(prefix)}
        self._used.update(prefix + name for name in taken)
        return taken

    def register_order(self) -> None:
        """Raises FlextokError unless register inputs pass the decoder's modules in the published order.

        A config saved with sorted keys has lost its order; the published one is what it had.
        """
        modules = self._parts["decoder"]
        paths = [module.path for module in modules]
        if paths == sorted(paths):
            return
        patch_posemb = self.only("decoder", "PositionalEmbeddingAdder", dims=2)
        kinds = ["NullCond" if m.kind in NULL_KINDS else m.kind for m in modules if m is not patch_posemb]
        found = [kind for kind in kinds if kind in REGISTER_ORDER]
        if found != list(REGISTER_ORDER):
            raise FlextokError(
                f"expected register inputs to pass {', '.join(REGISTER_ORDER)}, found {', '.join(found)}"
            )

    def check_all_used(self) -> None:
        """Raises IntegrityError for a tensor that belongs to nothing; projectors used only in training are passed over."""
        training_only = tuple(f"{m.path}." for m in self._parts["decoder"] if m.kind == "MLPHead")
        for name in sorted(self.state.keys() - self._used):
            if not name.startswith(("vae.logvar", *training_only)):
                raise IntegrityError(f"expected only tensors of the config's modules, found also '{name}'")

    def _read(self, values: dict[str, Any], part: str) -> list[Module]:
        entries = values.get("module_dict")
        if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
            raise IntegrityError(f"expected a module_dict of modules under '{part}', found something else")
        modules = [Module(f"{part}.module_dict.{name}", entry, self) for name, entry in entries.items()]
        for module in modules:
            if module.kind not in PART_KINDS[part]:
                raise FlextokError(
                    f"expected only modules of the published {part}, found {module.kind} as {module.path}"
                )
        return modules


def convert_encoder(modules: Modules) -> Converted:
    """Settings and tensors of the encoder: registers, encoder, patch_size, grid, posemb_scaling."""
    registers = modules.only("encoder", "Registers1D")
    _check_packer(
        modules.only("encoder", "BlockWiseSequencePacker"),
        registers.arguments.get("registers_write_key"),
        "causal_last",
    )
    trunk, state = _convert_trunk(modules.only("encoder", "FlexTransformer"), modulated=False)
    patches, patch_state = _convert_patches(modules, "encoder")
    state["registers"] = registers.tensor("registers", 2)
    count = state["registers"].shape[0]
    if registers.arguments.get("n_eval") not in (None, count):
        raise FlextokError(
            f"expected n_eval of {registers.path} to be all {count} registers, found fewer; not supported"
        )
    state.update(modules.only("encoder", "LinearHead").linear("proj", "head"))
    return {"registers": count, "encoder": trunk, **patches}, {**state, **patch_state}


def convert_decoder(modules: Modules) -> Converted:
    """Settings and tensors of the decoder: decoder, keep_mode, condition_dropout, patch_size, grid, posemb_scaling."""
    modules.register_order()
    from_codes, time = modules.only("decoder", "LinearLayer"), modules.only("decoder", "TimestepEmbedder")
    _check_packer(modules.only("decoder", "BlockWiseSequencePacker"), from_codes.arguments.get("write_key"), "full")
    trunk, state = _convert_trunk(modules.only("decoder", "FlexTransformer"), modulated=True)
    patches, patch_state = _convert_patches(modules, "decoder")
    head = modules.only("decoder", "ToPatchesLinearHead")
    dropout = modules.only("decoder", "MaskedNestedDropout")
    null = modules.only("decoder", *NULL_KINDS)
    state["register_positions"] = _register_positions(modules.only("decoder", "PositionalEmbeddingAdder", dims=1))
    state["mask_token"] = dropout.tensor("dropout_mask_token", 1)
    zero = null.kind == "ZeroNullCond"
    state["null_token"] = torch.zeros(trunk["width"]) if zero else null.tensor("nullcond", 1)
    for module, name, goal in (
        (from_codes, "proj", "from_codes"),
        (time, "mlp.0", "time.fc1"),
        (time, "mlp.2", "time.fc2"),
        (head, "adaLN_modulation.1", "head_adaln"),
        (head, "proj", "head"),
    ):
        state.update(module.linear(name, goal))
    settings = {
        "decoder": {
            "kind": "flow",
            "trunk": trunk,
            "max_timestep": time.arguments.get("max_timestep", 1000.0),
            "frequency_size": state["time.fc1.weight"].shape[1],
        },
        "keep_mode": dropout.arguments.get("size_sampling_mode", "uniform"),
        "condition_dropout": null.arguments.get("dropout_prob", 0.0),
    }
    return {**settings, **patches}, {**state, **patch_state}


def _convert_trunk(module: Module, modulated: bool) -> Converted:
    width = module.tensor("blocks.0.attn.wq.weight", 2).shape[1]
    hidden = module.tensor("blocks.0.mlp.fc1.weight", 2).shape[0]
    ratio = module.arguments.get("mlp_ratio", 4.0)
    if not isinstance(ratio, int | float) or not 0 < ratio < 1e6 or int(2 * int(width * ratio) / 3) != hidden:
        raise IntegrityError(f"expected {module.path} to have the hidden width of mlp_ratio {ratio}, found {hidden}")
    if modulated and module.arguments.get("adaLN_expansion", 1) != 2:
        raise FlextokError(f"expected adaLN_expansion 2 in {module.path}; patches and registers are modulated apart")
    state = {}
    depth = module.depth()
    for block in (f"blocks.{index}" for index in range(depth)):
        state[f"{block}.attn.qkv.weight"] = _stack(module, block, ("attn.wq", "attn.wk", "attn.wv"))
        state[f"{block}.mlp.gate_up.weight"] = _stack(module, block, ("mlp.fc1", "mlp.fc3"))
        state[f"{block}.attn.proj.weight"] = module.tensor(f"{block}.attn.proj.weight", 2)
        state[f"{block}.mlp.down.weight"] = module.tensor(f"{block}.mlp.fc2.weight", 2)
        if modulated:
            state.update(module.linear(f"{block}.adaLN_modulation.1", f"{block}.adaln"))
    trunk = {"width": width, "depth": depth, "head_dim": module.arguments.get("head_dim", 64), "mlp_ratio": ratio}
    return trunk, state


def _stack(module: Module, block: str, names: tuple[str, ...]) -> Tensor:
    """Matrices that we hold as one, one below the other."""
    tensors = [module.tensor(f"{block}.{name}.weight", 2) for name in names]
    if len({tensor.shape for tensor in tensors}) != 1:
        shapes = [list(tensor.shape) for tensor in tensors]
        raise IntegrityError(f"expected {', '.join(names)} of one shape in {module.path}.{block}, found {shapes}")
    return torch.cat(tensors)


def _convert_patches(modules: Modules, part: str) -> Converted:
    patcher = modules.only(part, "PatchEmbedder")
    posemb = modules.only(part, "PositionalEmbeddingAdder", dims=2)
    sizes = patcher.arguments.get("patch_sizes")
    if not isinstance(sizes, list | tuple) or len(sizes) != 2 or sizes[0] != sizes[1] or not isinstance(sizes[0], int):
        raise FlextokError(f"expected square patch_sizes in {patcher.path}, found {sizes!r:.100}; not supported")
    if posemb.arguments.get("posemb_type", "sincos") != "sincos":
        found = posemb.arguments["posemb_type"]
        raise FlextokError(f"expected posemb_type 'sincos' in {posemb.path}, found {found!r:.100}; not supported")
    # the stored table, as it stands: a checkpoint's positions are part of its weights
    table = _only_row(posemb.tensor("posembs", 4), posemb).permute(1, 2, 0).contiguous()
    scaling = posemb.arguments.get("posemb_scaling", "absolute")
    settings = {"patch_size": sizes[0], "grid": (table.shape[0], table.shape[1]), "posemb_scaling": scaling}
    return settings, {"patches.positions": table, **patcher.linear("patch_proj", "patches.proj")}


def _register_positions(module: Module) -> Tensor:
    """The learned table [1,1,D,L] as [L,D]."""
    if module.arguments.get("posemb_type") != "learnable_sum":
        found = module.arguments.get("posemb_type", "sincos")
        raise FlextokError(
            f"expected posemb_type 'learnable_sum' in {module.path}, found {found!r:.100}; not supported"
        )
    return _only_row(_only_row(module.tensor("posembs", 4), module), module).T.contiguous()


def _only_row(tensor: Tensor, module: Module) -> Tensor:
    if tensor.shape[0] != 1:
        raise IntegrityError(f"expected '{module.path}.posembs' to start with 1, found shape {list(tensor.shape)}")
    return tensor[0]


def _check_packer(packer: Module, registers_key: Any, mask_mode: str) -> None:
    """Patches first, registers last, with the mask of the published model."""
    keys = packer.arguments.get("input_list_read_keys")
    if not isinstance(keys, list | tuple) or len(keys) != 2 or keys[1] != registers_key:
        raise FlextokError(
            f"expected {packer.path} to pack patches, then registers, found {keys!r:.100}; not supported"
        )
    found = packer.arguments.get("mask_mode", "full")
    if found != mask_mode:
        raise FlextokError(f"expected mask_mode '{mask_mode}' in {packer.path}, found {found!r:.100}; not supported")
