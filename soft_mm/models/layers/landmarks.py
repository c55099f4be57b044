"""Landmarks of SOFT (arXiv 2110.11945)."""

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.shapes import ceil_div
from ...ops.sizes import known, smaller
from .maps import as_map, channels_last

MODES = ('conv', 'avg_pool', 'random', 'biased')


class Landmarks(nn.Module):
    """Landmarks: a small number of tokens that represent all tokens of a head.

    SOFT (arXiv 2110.11945, §3.2) computes them with a convolution whose kernel size equals its
    stride, and compares it with average pooling, randomly drawn tokens and the first tokens.

    Args:
        width (int): channels per head.
        ratio (int): kernel size and stride; an H×W feature map has ⌊H/ratio⌋·⌊W/ratio⌋ landmarks.
        mode (str): 'conv', followed by layer norm and GELU; 'avg_pool'; 'random', which draws the
            same number of tokens again in every call, in eval mode too; or 'biased', which takes as
            many tokens from the top of the feature map.
        num_landmarks (int, optional): maximum number of landmarks. 'conv' and 'avg_pool' average a
            larger grid to ⌊√num_landmarks⌋ landmarks per side.
    """

    def __init__(
        self, width: int, ratio: int, mode: str = 'conv', num_landmarks: int | None = None
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f'landmarks must be one of {list(MODES)}, got {mode!r}')
        check_num_landmarks(num_landmarks)
        self.ratio = ratio
        self.mode = mode
        self.num_landmarks = num_landmarks
        if mode == 'conv':
            self.conv = nn.Conv2d(width, width, ratio, stride=ratio, bias=False)
            self.norm = nn.LayerNorm(width)

    def forward(self, q: Tensor, hw: tuple[int, int]) -> Tensor:
        """Queries ``(B, h, N, d)`` -> landmarks ``(B, h, m, d)``, for each head separately."""
        grid = landmark_grid(hw, self.ratio, self.num_landmarks)
        if self.mode == 'random':
            return q[:, :, torch.randperm(q.shape[2], device=q.device)[: grid[0] * grid[1]]]
        if self.mode == 'biased':
            return q[:, :, : grid[0] * grid[1]]
        maps = channels_last(as_map(q.flatten(0, 1), hw))
        maps = self.conv(maps) if self.mode == 'conv' else F.avg_pool2d(maps, self.ratio)
        if self.num_landmarks is not None:
            maps = pool_to_grid(maps, grid)
        tokens = maps.flatten(2).mT
        if self.mode == 'conv':
            tokens = F.gelu(self.norm(tokens))
        return tokens.unflatten(0, q.shape[:2])


def check_num_landmarks(num_landmarks: int | None) -> None:
    """Check the maximum number of landmarks.

    Raises:
        ValueError: if it is not None or an integer of at least 1.
    """
    if num_landmarks is not None and not (isinstance(num_landmarks, int) and num_landmarks >= 1):
        raise ValueError(f'num_landmarks must be None or at least 1, got {num_landmarks}')


def landmark_grid(hw: tuple[int, int], ratio: int, num_landmarks: int | None) -> list[int]:
    """Height and width of the grid of landmarks of an H×W feature map, see :class:`Landmarks`.

    Raises:
        ValueError: if the feature map is too small to have a landmark.
    """
    grid = [side // ratio for side in hw]
    if not all(grid):
        raise ValueError(
            f'the feature map must be at least {ratio}×{ratio} to have a landmark, '
            f'got {hw[0]}×{hw[1]}'
        )
    if num_landmarks is None:
        return grid
    return [smaller(side, isqrt(num_landmarks)) for side in grid]


def pool_to_grid(maps: Tensor, grid: list[int]) -> Tensor:
    """Adaptive average pooling that supports symbolic sizes, to ``(B, C, *grid)``."""
    sides = maps.shape[-2:]
    if all(known(side == cells) for side, cells in zip(sides, grid)):
        return maps
    if all(known(side == cells) or known(side > cells) for side, cells in zip(sides, grid)):
        return F.adaptive_avg_pool2d(maps, grid)
    # Compilers and other runtimes cannot pool to a dynamic size, but they can multiply matrices.
    rows, columns = (_pooling_matrix(side, cells, maps) for side, cells in zip(sides, grid))
    return rows @ maps @ columns.mT


def _pooling_matrix(side: int, cells: int, like: Tensor) -> Tensor:
    """Matrix ``(cells, side)`` whose rows average the positions that fall into each cell."""
    cell = torch.arange(cells, device=like.device)[:, None]
    first, end = cell * side // cells, ceil_div((cell + 1) * side, cells)
    place = torch.arange(side, device=like.device)
    inside = (first <= place) & (place < end)
    return inside.to(like) / (end - first)
