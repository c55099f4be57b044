"""Maps as tokens lie: channels last in memory, so that neither is copied into the other."""

import torch
from torch import Tensor


def channels_last(x: Tensor) -> Tensor:
    """``(B, C, H, W)``, copied only if it lies otherwise."""
    return x.contiguous(memory_format=torch.channels_last)


def as_map(tokens: Tensor, hw: tuple[int, int]) -> Tensor:
    """``(B, H·W, C)`` -> ``(B, C, H, W)``, without a copy."""
    # Split before they move: the other way round, an only image gets a stride by which
    # convolutions take the map for channels first, and copy it.
    return tokens.unflatten(1, hw).movedim(-1, 1)
