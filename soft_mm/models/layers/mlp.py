from torch import Tensor, nn


class MLP(nn.Module):
    """Two linear layers with a GELU between them.

    Args:
        dims (int): channels in and out.
        hidden_dims (int): channels between.
        approximate (str): 'none' for the exact GELU, 'tanh' for its tanh approximation.
    """

    def __init__(self, dims: int, hidden_dims: int, approximate: str = 'none') -> None:
        super().__init__()
        self.fc1 = nn.Linear(dims, hidden_dims)
        self.act = nn.GELU(approximate)
        self.fc2 = nn.Linear(hidden_dims, dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dims)`` -> ``(..., dims)``."""
        return self.fc2(self.act(self.fc1(x)))
