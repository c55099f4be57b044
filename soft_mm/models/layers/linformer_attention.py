"""Linformer's attention as the spatial reduction of PVT (arXiv 2006.04768, 2102.12122)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import softmax_attention
from ...ops.shapes import split_heads
from ...ops.softmax_attention.reference import attention_rows
from .heads import check_heads
from .landmarks import check_num_landmarks, landmark_grid, pool_to_grid
from .maps import as_map, channels_last
from .plain import apply_linear


class LinformerAttention(nn.Module):
    """Multi-head softmax attention to a smaller number of tokens.

    Linformer (arXiv 2006.04768, §4) as the spatial reduction of PVT (arXiv 2102.12122, §3.3): a
    strided convolution and layer norm reduce the tokens that keys and values are projected from.

    Args:
        dims (int): embed dims of the tokens.
        num_heads (int): number of heads; must divide ``dims``.
        ratio (int): kernel size and stride of the convolution.
        num_landmarks (int, optional): maximum number of reduced tokens, see :class:`Landmarks`.
    """

    def __init__(
        self, dims: int, num_heads: int, ratio: int, num_landmarks: int | None = None
    ) -> None:
        super().__init__()
        check_heads(dims, num_heads)
        check_num_landmarks(num_landmarks)
        self.num_heads = num_heads
        self.ratio = ratio
        self.num_landmarks = num_landmarks
        self.reduction = nn.Conv2d(dims, dims, ratio, stride=ratio)
        self.norm = nn.LayerNorm(dims)
        self.q = nn.Linear(dims, dims)
        self.kv = nn.Linear(dims, 2 * dims)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """``(B, N, C)`` and the feature map's size ``(H, W)``, ``H·W = N`` -> ``(B, N, C)``."""
        q, k, v = (split_heads(t, self.num_heads) for t in self._project(x, hw))
        return apply_linear(self.proj, softmax_attention(q, k, v).transpose(1, 2).flatten(2))

    def rows(self, x: Tensor, hw: tuple[int, int], queries: Tensor) -> Tensor:
        """Attention weights ``(B, h, M, N)`` of the tokens ``queries``, indices ``(M,)``.

        The tokens that a reduced token is computed from share its weight equally.
        """
        q, k, _ = (split_heads(t, self.num_heads) for t in self._project(x, hw))
        grid = landmark_grid(hw, self.ratio, self.num_landmarks)
        weights = attention_rows(q[:, :, queries], k).unflatten(-1, grid)
        rows, columns = (
            F.adaptive_avg_pool1d(
                F.avg_pool1d(torch.eye(side).to(weights)[None], self.ratio), cells
            )
            for side, cells in zip(hw, grid)
        )
        return (rows @ weights @ columns.mT).flatten(-2)

    def _project(self, x: Tensor, hw: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``(B, N, C)``, and keys and values of the reduced tokens, ``(B, m, C)``."""
        grid = landmark_grid(hw, self.ratio, self.num_landmarks)
        maps = self.reduction(channels_last(as_map(x, hw)))
        if self.num_landmarks is not None:
            maps = pool_to_grid(maps, grid)
        reduced = self.norm(maps.flatten(2).mT)
        return apply_linear(self.q, x), *apply_linear(self.kv, reduced).chunk(2, -1)
