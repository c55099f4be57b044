"""A linear layer for each group of channels."""

from torch import Tensor, nn


class GroupedLinear(nn.Conv1d):
    """Linear layer whose groups of output channels see one group of input channels each.

    A :class:`torch.nn.Conv1d` with kernel size 1, and so with its parameters, as a matrix product.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__(in_channels, out_channels, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels)`` -> ``(B, out_channels)``."""
        weight = self.weight.squeeze(-1).unflatten(0, (self.groups, -1))
        x = x.unflatten(1, (self.groups, -1)).transpose(0, 1)
        return (x @ weight.mT).transpose(0, 1).flatten(1) + self.bias
