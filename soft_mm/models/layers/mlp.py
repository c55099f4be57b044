from torch import Tensor, nn

from ...ops import mlp


class MLP(nn.Module):
    """Two linear layers with a GELU between them.

    ``fc1`` and ``fc2`` hold the weights and are not called: see :func:`soft_mm.ops.mlp`.

    Args:
        dims (int): channels in and out.
        hidden_dims (int): channels between.
        approximate (str): 'none' for the exact GELU, 'tanh' for its tanh approximation.
    """

    def __init__(self, dims: int, hidden_dims: int, approximate: str = 'none') -> None:
        super().__init__()
        self.fc1 = nn.Linear(dims, hidden_dims)
        self.fc2 = nn.Linear(hidden_dims, dims)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dims)`` -> ``(..., dims)``."""
        return mlp(
            x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias, self.approximate
        )
