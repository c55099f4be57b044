"""Map by map, channels last as the tokens are in memory: nothing is moved around."""

import torch
import torch.nn.functional as F
from torch import Tensor


def dynamic_conv(x: Tensor, filters: Tensor, hw: tuple[int, int],
                 bias: Tensor | None = None) -> Tensor:
    """x ``(B, H·W, C)``, filters ``(B, C, k, k)`` -> ``(B, H·W, C)``."""
    maps = [F.conv2d(one.mT.unflatten(-1, hw)[None], own[:, None], bias,
                     padding=own.shape[-1] // 2, groups=len(own)).flatten(2).mT
            for one, own in zip(x, filters)]
    return torch.cat(maps) if len(maps) > 1 else maps[0]
