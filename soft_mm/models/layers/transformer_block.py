from torch import Tensor, nn

from .drop_path import DropPath
from .mlp import MLP


class TransformerBlock(nn.Module):
    """Pre-norm transformer block with any attention layer.

    Args:
        attn (nn.Module): attention layer, called with the normalised tokens and the block's other
            arguments.
        dims (int): embed dims of the tokens.
        mlp_ratio (int): ratio of the MLP's hidden channels to ``dims``.
        drop_path (float): stochastic depth rate.
        eps (float): epsilon of the layer norms.
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
