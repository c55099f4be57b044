"""Channels-last feature maps have the memory layout of tokens, so conversions copy nothing."""

import torch
from torch import Tensor


def channels_last(x: Tensor) -> Tensor:
    """``(B, C, H, W)`` in channels-last memory format, copied only if necessary."""
    return x.contiguous(memory_format=torch.channels_last)


def as_map(tokens: Tensor, hw: tuple[int, int]) -> Tensor:
    """``(B, H·W, C)`` -> ``(B, C, H, W)``, without a copy."""
    # Unflatten before moving the channels: in the opposite order, a batch of one gets a stride that
    # makes convolutions treat the feature map as channels first and copy it.
    return tokens.unflatten(1, hw).movedim(-1, 1)
