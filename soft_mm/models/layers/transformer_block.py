from torch import Tensor, nn

from .drop_path import DropPath
from .mlp import MLP


class TransformerBlock(nn.Module):
    """Pre-norm transformer block around any attention.

    Args:
        attn (nn.Module): attention; called with the normed tokens and what else the block is given.
        dims (int): channels of the tokens.
        mlp_ratio (int): hidden channels of the MLP, as a multiple of ``dims``.
        drop_path (float): probability of dropping a residual branch.
        eps (float): of the layer norms.
    """

    def __init__(
        self,
        attn: nn.Module,
        dims: int,
        mlp_ratio: int = 4,
        drop_path: float = 0.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dims, eps=eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dims, eps=eps)
        self.mlp = MLP(dims, mlp_ratio * dims)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, *args) -> Tensor:
        """``(B, N, C)`` -> ``(B, N, C)``."""
        x = x + self.drop_path(self.attn(self.norm1(x), *args))
        return x + self.drop_path(self.mlp(self.norm2(x)))
