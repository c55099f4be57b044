"""Adaptive average pooling of feature maps of any size, also while they are exported."""

import torch
import torch.nn.functional as F
from torch import SymInt, Tensor

from ...ops.shapes import ceil_div


def adaptive_avg_pool(maps: Tensor, grid: list[int]) -> Tensor:
    """Adaptive average pooling that supports symbolic sizes: ``(B, C, H, W)`` -> ``(B, C, *grid)``."""
    sides = maps.shape[-2:]
    if not any(isinstance(side, SymInt) for side in sides):
        return maps if list(sides) == grid else F.adaptive_avg_pool2d(maps, grid)
    # Other runtimes cannot pool to a dynamic size, but they can multiply matrices.
    rows, columns = (_pooling_matrix(side, cells, maps) for side, cells in zip(sides, grid))
    return rows @ maps @ columns.mT


def _pooling_matrix(side: int, cells: int, like: Tensor) -> Tensor:
    """Matrix ``(cells, side)`` whose rows average the positions that fall into each cell."""
    cell = torch.arange(cells, device=like.device)[:, None]
    first, end = cell * side // cells, ceil_div((cell + 1) * side, cells)
    place = torch.arange(side, device=like.device)
    inside = (first <= place) & (place < end)
    return inside.to(like) / (end - first)
