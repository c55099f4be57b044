"""All maps in one convolution of B·C groups."""

import torch.nn.functional as F
from torch import Tensor


def dynamic_conv(x: Tensor, filters: Tensor, hw: tuple[int, int],
                 bias: Tensor | None = None) -> Tensor:
    """x ``(B, H·W, C)``, filters ``(B, C, k, k)`` -> ``(B, H·W, C)``."""
    maps = x.mT.unflatten(-1, hw)
    out = F.conv2d(maps.flatten(0, 1)[None], filters.flatten(0, 1)[:, None],
                   None if bias is None else bias.repeat(len(x)), padding=filters.shape[-1] // 2,
                   groups=filters.shape[0] * filters.shape[1])
    return out.view(maps.shape).flatten(2).mT
