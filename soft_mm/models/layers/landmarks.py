from math import isqrt

import torch
import torch.nn.functional as F
from torch import SymInt, Tensor, nn

from ...ops.shapes import ceil_div
from .maps import as_map, channels_last
from .sizes import smaller

MODES = ('conv', 'avg_pool', 'random')


class Landmarks(nn.Module):
    """A few tokens that stand for all of a head's.

    SOFT (arXiv 2110.11945, §3.2) makes them by a convolution whose kernel is its stride, and
    compares it with average pooling and with random tokens.

    Args:
        width (int): channels of a head.
        ratio (int): kernel and stride; a H×W map has ⌊H/ratio⌋·⌊W/ratio⌋ landmarks.
        mode (str): 'conv', which a layer norm and GELU follow; 'avg_pool'; or 'random' for as many
            tokens, drawn anew in each call, in eval mode too.
        num_landmarks (int, optional): at most so many. A larger grid of 'conv' or 'avg_pool' is
            averaged to one of ⌊√num_landmarks⌋ a side.
    """

    def __init__(
        self, width: int, ratio: int, mode: str = 'conv', num_landmarks: int | None = None
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f'landmarks must be one of {list(MODES)}, got {mode!r}')
        if num_landmarks is not None and not (
            isinstance(num_landmarks, int) and num_landmarks >= 1
        ):
            raise ValueError(f'num_landmarks must be None or at least 1, got {num_landmarks}')
        self.ratio = ratio
        self.mode = mode
        self.num_landmarks = num_landmarks
        if mode == 'conv':
            self.conv = nn.Conv2d(width, width, ratio, stride=ratio, bias=False)
            self.norm = nn.LayerNorm(width)

    def forward(self, q: Tensor, hw: tuple[int, int]) -> Tensor:
        """Each head's tokens as a map of its own: ``(B, h, N, d)`` -> ``(B, h, m, d)``."""
        grid = [side // self.ratio for side in hw]
        if not all(grid):
            raise ValueError(
                f'a {hw[0]}×{hw[1]} map has no landmark: it needs at least '
                f'{self.ratio}×{self.ratio}'
            )
        if self.num_landmarks is not None:
            grid = [smaller(side, isqrt(self.num_landmarks)) for side in grid]
        if self.mode == 'random':
            return q[:, :, torch.randperm(q.shape[2], device=q.device)[: grid[0] * grid[1]]]
        maps = channels_last(as_map(q.flatten(0, 1), hw))
        maps = self.conv(maps) if self.mode == 'conv' else F.avg_pool2d(maps, self.ratio)
        if self.num_landmarks is not None:
            maps = _averaged(maps, grid)
        tokens = maps.flatten(2).mT
        if self.mode == 'conv':
            tokens = F.gelu(self.norm(tokens))
        return tokens.unflatten(0, q.shape[:2])


def _averaged(maps: Tensor, grid: list[int]) -> Tensor:
    """``(B, C, H, W)`` -> ``(B, C, *grid)``: adaptive average pooling, for symbolic sizes too."""
    sides = maps.shape[-2:]
    if not any(isinstance(side, SymInt) for side in sides):
        return maps if list(sides) == grid else F.adaptive_avg_pool2d(maps, grid)
    # Other runtimes cannot pool to a size that varies, but they can multiply.
    rows, columns = (_averages(side, cells, maps) for side, cells in zip(sides, grid))
    return rows @ maps @ columns.mT


def _averages(side: int, cells: int, like: Tensor) -> Tensor:
    """A row for each cell: equal weights, which sum to 1, of its places. ``(cells, side)``."""
    cell = torch.arange(cells, device=like.device)[:, None]
    first, end = cell * side // cells, ceil_div((cell + 1) * side, cells)
    place = torch.arange(side, device=like.device)
    inside = (first <= place) & (place < end)
    return inside.to(like) / (end - first)
