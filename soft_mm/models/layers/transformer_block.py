import torch.nn.functional as F
from torch import Tensor, nn

from .drop_path import DropPath
from .mlp import MLP


class SelfAttention(nn.Module):
    """Multi-head softmax attention over all tokens (arXiv 1706.03762, §3.2.2).

    Args:
        dims (int): channels of the tokens.
        num_heads (int): number of heads; divides ``dims``.
    """

    def __init__(self, dims: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dims, 3 * dims)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, N, C)`` -> ``(B, N, C)``."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Pre-norm transformer block with softmax attention.

    Args:
        dims (int): channels of the tokens.
        num_heads (int): number of heads.
        mlp_ratio (float): hidden channels of the MLP, as a multiple of ``dims``.
        drop_path (float): probability of dropping a residual branch.
        eps (float): of the layer norms.
    """

    def __init__(self, dims: int, num_heads: int, mlp_ratio: float = 4., drop_path: float = 0.,
                 eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dims, eps=eps)
        self.attn = SelfAttention(dims, num_heads)
        self.norm2 = nn.LayerNorm(dims, eps=eps)
        self.mlp = MLP(dims, int(mlp_ratio * dims))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, N, C)`` -> ``(B, N, C)``."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))
