"""Patches and their positions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BASE_PERIOD = 10_000.0


def patchify(z_BCHW: Tensor, size: int) -> Tensor:
    """[B,C,H,W] -> [B, H/size * W/size, size*size*C], rows first; a patch is (row, column, channel), channel fastest."""
    batch, channels, height, width = z_BCHW.shape
    cells = z_BCHW.view(batch, channels, height // size, size, width // size, size)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, size * size * channels)


def unpatchify(patches_BPF: Tensor, size: int, grid: tuple[int, int]) -> Tensor:
    """Inverse of `patchify` for a grid of patch rows and columns."""
    batch = patches_BPF.shape[0]
    cells = patches_BPF.view(batch, *grid, size, size, -1)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, grid[0] * size, grid[1] * size)


def sincos_table(width: int, grid: tuple[int, int]) -> Tensor:
    """[rows, columns, width] embedding of integer positions: sin and cos of the row, then of the column.

    Frequencies are 10000^(-i/q), q = width/4 (sheet of the published model, 2.2).
    """
    if torch.get_default_device().type == "meta":
        # only the shape is asked for; computing it there imports torch's compiler, as draws do (see outline)
        return torch.empty(*grid, width)
    quarter = width // 4
    omega = BASE_PERIOD ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, columns = (torch.arange(count, dtype=torch.float64)[:, None] * omega for count in grid)
    row_part = torch.cat([rows.sin(), rows.cos()], dim=-1)[:, None].expand(*grid, -1)
    column_part = torch.cat([columns.sin(), columns.cos()], dim=-1)[None].expand(*grid, -1)
    return torch.cat([row_part, column_part], dim=-1).float()


def fitted(table_RCD: Tensor, grid: tuple[int, int], scaling: str) -> Tensor:
    """A table of positions [R,C,D] for another grid: resized (`interpolate`), or its corner (`absolute`).

    A larger grid has there, beyond the table's rows and columns, the embedding of its integer positions.
    """
    rows, columns, width = table_RCD.shape
    if grid == (rows, columns):
        return table_RCD
    if scaling == "interpolate":
        resized = F.interpolate(table_RCD.permute(2, 0, 1)[None], size=grid, mode="bilinear", align_corners=True)
        return resized[0].permute(1, 2, 0)
    if grid[0] <= rows and grid[1] <= columns:
        return table_RCD[: grid[0], : grid[1]]
    larger = sincos_table(width, grid).to(table_RCD)
    larger[:rows, :columns] = table_RCD[: grid[0], : grid[1]]
    return larger


class PatchEmbedding(nn.Module):
    """Linear projection of patches plus the embedding of their place in the grid."""

    def __init__(self, channels: int, size: int, width: int, grid: tuple[int, int], scaling: str):
        super().__init__()
        self.size = size
        self.scaling = scaling
        self.count = grid[0] * grid[1]
        """Patches of an image of the training size."""
        self.proj = nn.Linear(channels * size * size, width)
        # a frozen parameter as in the published model: its checkpoints carry the table, and it counts as a part
        self.positions = nn.Parameter(sincos_table(width, grid), requires_grad=False)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,P,D]; raises ValueError where the grid does not fit the table of positions."""
        grid = self.grid_of(z_BCHW)
        return self.proj(patchify(z_BCHW, self.size)) + self._positions_for(grid)

    def grid_of(self, z_BCHW: Tensor) -> tuple[int, int]:
        """Patch rows and columns of latents; raises ValueError where they cannot be cut or placed."""
        height, width = z_BCHW.shape[2:]
        if height % self.size or width % self.size or not height or not width:
            raise ValueError(f"expected latent height and width as multiples of {self.size}, found {height}x{width}")
        grid = (height // self.size, width // self.size)
        limit = (self.positions.shape[0], self.positions.shape[1])
        if self.scaling == "absolute" and (grid[0] > limit[0] or grid[1] > limit[1]):
            most = f"{limit[0] * self.size}x{limit[1] * self.size}"
            raise ValueError(f"expected latents of at most {most} (absolute positions), found {height}x{width}")
        return grid

    def _positions_for(self, grid: tuple[int, int]) -> Tensor:
        return fitted(self.positions, grid, self.scaling).reshape(grid[0] * grid[1], -1)
