"""Performer's linear attention (arXiv 2009.14794)."""

from math import log

from torch import Tensor, nn

from ...ops import performer_attention
from ...ops.performer_attention.features import orthogonal_features
from ...ops.performer_attention.reference import attention_rows
from ...ops.shapes import split_qkv
from .heads import check_heads
from .plain import apply_linear


class PerformerAttention(nn.Module):
    """Multi-head attention with positive orthogonal random features, which estimates softmax's.

    Performer (arXiv 2009.14794). All heads share ``max(d, ⌊d·ln d⌋)`` features for d channels per
    head, 110 for 32. They are drawn once, always the same, and stored as a buffer.

    Args:
        dims (int): embed dims of the tokens.
        num_heads (int): number of heads; must divide ``dims``.
    """

    def __init__(self, dims: int, num_heads: int) -> None:
        super().__init__()
        check_heads(dims, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dims, 3 * dims)
        self.proj = nn.Linear(dims, dims)
        width = dims // num_heads
        features = orthogonal_features(max(width, int(width * log(width))), width)
        self.register_buffer('features', features.to(self.qkv.weight))

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """``(B, N, C)`` -> ``(B, N, C)``; ``hw`` is unused."""
        q, k, v = split_qkv(apply_linear(self.qkv, x), self.num_heads)
        out = performer_attention(q, k, v, self.features).to(v.dtype)
        return apply_linear(self.proj, out.transpose(1, 2).flatten(2))

    def rows(self, x: Tensor, hw: tuple[int, int], queries: Tensor) -> Tensor:
        """Attention weights ``(B, h, M, N)`` of the tokens ``queries``, indices ``(M,)``."""
        q, k, _ = split_qkv(self.qkv(x), self.num_heads)
        return attention_rows(q[:, :, queries], k, self.features)
