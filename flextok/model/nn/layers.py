"""Transformer parts shared by encoder and decoder.

Tensor suffixes: B images, N sequence positions, P patches, L registers, D width, H latent rows, W latent columns,
C latent channels, T timesteps.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flextok.model.nn.attention import attend
from flextok.model.nn.config import TrunkConfig
from flextok.model.nn.initialize import xavier_linear, zero_linear

NORM_EPS = 1e-5


def layer_norm(x: Tensor) -> Tensor:
    """LayerNorm over the last dimension without parameters; the kernel sums in float32 whatever the dtype."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


class Attention(nn.Module):
    """Self-attention with LayerNorm on queries and keys and logits scaled by 8/head_dim (muP)."""

    def __init__(self, config: TrunkConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.proj = nn.Linear(config.width, config.width, bias=False)
        xavier_linear(self.qkv, blocks=3)
        xavier_linear(self.proj)

    def forward(
        self, x_BND: Tensor, mask_NN: Tensor | None = None, prefix: int = 0, rows: slice | None = None
    ) -> Tensor:
        """[B,N,D] -> [B,N,D]; `mask_NN` is True where row attends to column, None for everywhere.

        `prefix` promises that the mask lets the first so many positions see exactly one another, which saves work.
        With `rows`, only those positions ask, and only their results are made.
        """
        queries, keys, values = self._project(x_BND, rows)
        scale = 8.0 / self.head_dim
        if rows is not None or prefix == 0:
            mask_NN = mask_NN if mask_NN is None or rows is None else mask_NN[rows]
            return self._merge(attend(queries, keys, values, mask_NN, scale=scale))
        first, rest = queries.split([prefix, queries.shape[2] - prefix], dim=2)
        out = attend(first, keys[:, :, :prefix], values[:, :, :prefix], scale=scale)
        out_rest = attend(rest, keys, values, None if mask_NN is None else mask_NN[prefix:], scale=scale)
        return self._merge(out, out_rest)

    def _project(self, x_BND: Tensor, rows: slice | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of `rows`, and keys and values of all positions, each [B,heads,N,head_dim]."""
        batch, length, width = x_BND.shape
        if rows is None:
            qkv = self.qkv(x_BND).view(batch, length, 3, -1, self.head_dim)
            queries, keys = layer_norm(qkv[:, :, :2]).unbind(2)
            values = qkv[:, :, 2]
        else:
            weight_q, weight_kv = self.qkv.weight.split([width, 2 * width])
            queries = F.linear(x_BND[:, rows], weight_q)
            queries = layer_norm(queries.view(batch, -1, width // self.head_dim, self.head_dim))
            keys, values = F.linear(x_BND, weight_kv).view(batch, length, 2, -1, self.head_dim).unbind(2)
            keys = layer_norm(keys)
        return queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2).to(queries.dtype)

    def _merge(self, *parts: Tensor) -> Tensor:
        """Heads side by side and projected; parts [B,heads,N_i,head_dim] one after the other."""
        sequences = [part.transpose(1, 2) for part in parts]
        joined = sequences[0] if len(sequences) == 1 else torch.cat(sequences, dim=1)
        return self.proj(joined.flatten(2))


class SwiGLU(nn.Module):
    """down(SiLU(gate(x)) * up(x)), with gate and up in one matrix."""

    def __init__(self, config: TrunkConfig):
        super().__init__()
        self.gate_up = nn.Linear(config.width, 2 * config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)
        xavier_linear(self.gate_up, blocks=2)
        xavier_linear(self.down)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: TrunkConfig):
        super().__init__()
        self.attn = Attention(config)
        self.mlp = SwiGLU(config)

    def forward(
        self, x_BND: Tensor, mask_NN: Tensor | None = None, prefix: int = 0, rows: slice | None = None
    ) -> Tensor:
        """[B,N,D] -> [B,N,D], or only the positions `rows` of it, where nothing reads the others any more."""
        update = self.attn(layer_norm(x_BND), mask_NN, prefix, rows)
        x_BND = (x_BND if rows is None else x_BND[:, rows]) + update
        return x_BND + self.mlp(layer_norm(x_BND))


class ModulatedBlock(nn.Module):
    """Block with adaLN-zero (Peebles & Xie 2023), modulating patches and registers separately.

    The two streams stay apart and meet only where a matrix reads both, so that a modulation is one broadcast over
    its stream and never a tensor for each position.
    """

    forward_methods = ("modulation",)
    """What is called from outside beside `forward`: a sharded block gathers its weights for these as well."""

    def __init__(self, config: TrunkConfig):
        super().__init__()
        self.attn = Attention(config)
        self.mlp = SwiGLU(config)
        self.adaln = nn.Linear(config.width, 12 * config.width)
        zero_linear(self.adaln)
        # what is added to each chunk: scales are stored as their difference from 1
        offsets = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0, 1.0], device="cpu").view(6, 1, 1, 1)
        self.register_buffer("offsets", offsets, persistent=False)

    def modulation(self, activated_TD: Tensor) -> Tensor:
        """SiLU of the time embedding [T,D] -> [2 streams, 6, T, 1, D] in float32.

        The six: gate_attn, gate_mlp, shift_attn, scale_attn, shift_mlp, scale_mlp; scales have 1 added.
        """
        count, width = activated_TD.shape
        chunks = self.adaln(activated_TD).float().view(count, 2, 6, 1, width).permute(1, 2, 0, 3, 4)
        return chunks + self.offsets

    def forward(
        self, patches_BPD: Tensor, registers_BLD: Tensor, modulation: Tensor, last: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Both streams after the block; `modulation` has T = B, or 1 when all images share the timestep.

        After the `last` block nothing reads the registers: they are given back as they came.
        """
        patches, registers = patches_BPD, registers_BLD
        lengths = [patches.shape[1], registers.shape[1]]
        # unbind, rather than indices, since its gradient is one stack
        of_patches, of_registers = modulation.unbind(0)
        p_gate_attn, p_gate_mlp, p_shift_attn, p_scale_attn, p_shift_mlp, p_scale_mlp = of_patches.unbind(0)
        r_gate_attn, r_gate_mlp, r_shift_attn, r_scale_attn, r_shift_mlp, r_scale_mlp = of_registers.unbind(0)

        both = [_modulate(patches, p_shift_attn, p_scale_attn), _modulate(registers, r_shift_attn, r_scale_attn)]
        if last:
            patches = patches + p_gate_attn * self.attn(torch.cat(both, dim=1), rows=slice(0, lengths[0]))
            return patches + p_gate_mlp * self.mlp(_modulate(patches, p_shift_mlp, p_scale_mlp)), registers
        to_patches, to_registers = self.attn(torch.cat(both, dim=1)).split(lengths, dim=1)
        patches, registers = patches + p_gate_attn * to_patches, registers + r_gate_attn * to_registers

        both = [_modulate(patches, p_shift_mlp, p_scale_mlp), _modulate(registers, r_shift_mlp, r_scale_mlp)]
        to_patches, to_registers = self.mlp(torch.cat(both, dim=1)).split(lengths, dim=1)
        return patches + p_gate_mlp * to_patches, registers + r_gate_mlp * to_registers


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, layer_norm(x), scale)


def matrices(module: nn.Module) -> Iterator[nn.Module]:
    """The parts of our blocks in `module` that are matrix products, whose weights may be rounded for use."""
    for part in module.modules():
        if isinstance(part, Attention | SwiGLU):
            yield part
        elif isinstance(part, ModulatedBlock):
            yield part.adaln
