"""Softmax-free attention of SOFT and SOFT-Norm (arXiv 2110.11945, 2207.03341)."""

import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import nystrom_attention
from ...ops.nystrom_attention.reference import attention_rows
from ...ops.nystrom_attention.solvers import check_solver
from ...ops.shapes import split_heads
from .heads import check_heads
from .landmarks import Landmarks
from .maps import as_map
from .plain import apply_linear, depthwise_filters, is_plain


class SOFTAttention(nn.Module):
    """Softmax-free attention with a Gaussian kernel and landmarks.

    SOFT (arXiv 2110.11945, §3.2) and, with ``sym_norm``, the symmetrically normalised SOFT-Norm
    (arXiv 2207.03341, §3.3); ``soft_mm/ops/nystrom_attention`` documents both formulas. A
    depth-wise convolution of the values is added to the attention.

    Args:
        dims (int): embed dims of the tokens.
        num_heads (int): number of heads; must divide ``dims``.
        ratio (int): downsampling ratio from the feature map to the grid of landmarks.
        kernel_size (int): kernel size of the values' depth-wise convolution; must be odd.
        landmarks (str), num_landmarks (int, optional): see :class:`Landmarks`.
        sym_norm (bool), solver (str), alpha_scope (str): see
            :func:`soft_mm.ops.nystrom_attention`.
    """

    def __init__(
        self,
        dims: int,
        num_heads: int,
        ratio: int,
        kernel_size: int,
        landmarks: str = 'conv',
        num_landmarks: int | None = None,
        sym_norm: bool = False,
        solver: str = 'newton',
        alpha_scope: str = 'matrix',
    ) -> None:
        super().__init__()
        check_heads(dims, num_heads)
        check_solver(solver, alpha_scope)
        if kernel_size % 2 == 0:
            raise ValueError(f'kernel_sizes must be odd, got {kernel_size}')
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.sym_norm = sym_norm
        self.solver = solver
        self.alpha_scope = alpha_scope
        self.q = nn.Linear(dims, dims)
        self.v = nn.Linear(dims, dims)
        self.landmarks = Landmarks(dims // num_heads, ratio, landmarks, num_landmarks)
        self.dwconv = nn.Conv2d(
            num_heads,
            num_heads,
            kernel_size,
            padding=kernel_size // 2,
            groups=num_heads,
            bias=False,
        )
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """``(B, N, C)`` and the feature map's size ``(H, W)``, ``H·W = N`` -> ``(B, N, C)``."""
        queries, v = self._queries(x), apply_linear(self.v, x)
        out = nystrom_attention(
            queries,
            split_heads(v, self.num_heads),
            self.landmarks(queries, hw).to(queries.dtype),  # autocast normalises them in fp32
            self.sym_norm,
            self.solver,
            self.alpha_scope,
            dtype=v.dtype,
        )
        out = out.transpose(1, 2).flatten(2)
        return apply_linear(self.proj, out + self._convolve(v, hw))

    def rows(self, x: Tensor, hw: tuple[int, int], queries: Tensor) -> Tensor:
        """Attention weights ``(B, h, M, N)`` of the tokens ``queries``, indices ``(M,)``.

        Landmarks of the mode 'random' are drawn again.
        """
        q = self._queries(x)
        return attention_rows(
            q[:, :, queries],
            q,
            self.landmarks(q, hw),
            self.sym_norm,
            self.solver,
            self.alpha_scope,
        )

    def filters_of(self, x: Tensor, hw: tuple[int, int], queries: Tensor) -> Tensor:
        """Filters of the convolution, the same for all queries: ``(B, M, h, 1, k, k)``."""
        filters = depthwise_filters(self.dwconv, self.num_heads, self.kernel_size, x)
        return filters[:, None].expand(len(x), len(queries), -1, -1, -1, -1)

    def _queries(self, x: Tensor) -> Tensor:
        """Scaled queries, which also serve as keys: ``(B, N, C)`` -> ``(B, h, N, C / h)``."""
        q = split_heads(apply_linear(self.q, x), self.num_heads)
        return q * q.shape[-1] ** -0.25

    def _convolve(self, v: Tensor, hw: tuple[int, int]) -> Tensor:
        """Convolve values ``(B, N, C)`` with one filter per head, shared by its channels."""
        maps = as_map(v, hw)
        if is_plain(self.dwconv):
            filters = self.dwconv.weight.repeat_interleave(v.shape[-1] // self.num_heads, 0)
            out = F.conv2d(maps, filters, padding=self.dwconv.padding, groups=v.shape[-1])
        else:
            heads = maps.unflatten(1, (self.num_heads, -1)).transpose(1, 2)
            out = self.dwconv(heads.flatten(0, 1)).unflatten(0, (len(v), -1))
            out = out.transpose(1, 2).flatten(1, 2)
        return out.flatten(2).mT
