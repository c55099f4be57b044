import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import mlp
from .plain import is_plain


class MLP(nn.Module):
    """Two linear layers with a GELU in between.

    :func:`soft_mm.ops.mlp` applies the weights of ``fc1`` and ``fc2``, if both are plain.

    Args:
        dims (int): input and output channels.
        hidden_dims (int): hidden channels.
        approximate (str): 'none' for the exact GELU, 'tanh' for its tanh approximation.
    """

    def __init__(self, dims: int, hidden_dims: int, approximate: str = 'none') -> None:
        super().__init__()
        self.fc1 = nn.Linear(dims, hidden_dims)
        self.fc2 = nn.Linear(hidden_dims, dims)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dims)`` -> ``(..., dims)``."""
        fc1, fc2 = self.fc1, self.fc2
        if is_plain(fc1, fc2):
            return mlp(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, self.approximate)
        return fc2(F.gelu(fc1(x), approximate=self.approximate))
