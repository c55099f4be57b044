from torch import Tensor, nn

from ...ops import mlp


class MLP(nn.Module):
    """Two linear layers with a GELU in between.

    ``fc1`` and ``fc2`` only hold the weights; :func:`soft_mm.ops.mlp` applies them.

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
        return mlp(
            x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias, self.approximate
        )
