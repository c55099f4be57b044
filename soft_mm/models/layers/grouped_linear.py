"""A linear layer for each group of channels."""

import torch
from torch import Tensor, nn


class GroupedLinear(nn.Conv1d):
    """Linear layer whose groups of output channels see one group of input channels each.

    A :class:`torch.nn.Conv1d` with kernel size 1, and so with its parameters, as a matrix product in
    the dtype of the weights.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__(in_channels, out_channels, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """``(groups, B, in_channels / groups)`` -> ``(groups, B, out_channels / groups)``."""
        weight = self.weight.squeeze(-1).unflatten(0, (self.groups, -1))
        return torch.baddbmm(self.bias.view(self.groups, 1, -1), x.to(weight.dtype), weight.mT)
