"""Nyströmformer's attention (arXiv 2102.03902)."""

from torch import Tensor, nn

from ...ops import nystromformer_attention
from ...ops.nystromformer_attention.reference import attention_rows
from ...ops.shapes import split_qkv
from .heads import check_heads
from .landmarks import Landmarks
from .plain import apply_linear


class NystromformerAttention(nn.Module):
    """Multi-head softmax attention approximated from landmarks of queries and keys.

    Nyströmformer (arXiv 2102.03902). Landmarks are averages over squares of the feature map, as in
    SOFT's comparison (arXiv 2110.11945, Table 2), instead of averages over segments of a text.

    Args:
        dims (int): embed dims of the tokens.
        num_heads (int): number of heads; must divide ``dims``.
        ratio (int), num_landmarks (int, optional): see :class:`Landmarks`.
    """

    def __init__(
        self, dims: int, num_heads: int, ratio: int, num_landmarks: int | None = None
    ) -> None:
        super().__init__()
        check_heads(dims, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dims, 3 * dims)
        self.landmarks = Landmarks(dims // num_heads, ratio, 'avg_pool', num_landmarks)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """``(B, N, C)`` and the feature map's size ``(H, W)``, ``H·W = N`` -> ``(B, N, C)``."""
        q, k, v = split_qkv(apply_linear(self.qkv, x), self.num_heads)
        out = nystromformer_attention(q, k, v, self.landmarks(q, hw), self.landmarks(k, hw))
        return apply_linear(self.proj, out.transpose(1, 2).flatten(2))

    def rows(self, x: Tensor, hw: tuple[int, int], queries: Tensor) -> Tensor:
        """Attention weights ``(B, h, M, N)`` of the tokens ``queries``, indices ``(M,)``."""
        q, k, _ = split_qkv(self.qkv(x), self.num_heads)
        return attention_rows(q[:, :, queries], k, self.landmarks(q, hw), self.landmarks(k, hw))
