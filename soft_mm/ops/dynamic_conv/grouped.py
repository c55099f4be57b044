"""Dynamic convolution as one grouped convolution: each channel of each map is a group."""

import torch.nn.functional as F
from torch import Tensor


def grouped_dynamic_conv(
    v: Tensor, filters: Tensor, bias: Tensor | None, hw: tuple[int, int]
) -> Tensor:
    """v ``(B, H·W, C)``, filters ``(B, C, 3, 3)``, bias ``(C,)`` -> ``(B, H·W, C)``."""
    maps = v.mT.unflatten(-1, hw)
    bias = None if bias is None else bias.repeat(len(v))
    out = F.conv2d(
        maps.flatten(0, 1)[None],
        filters.flatten(0, 1)[:, None],
        bias,
        padding=1,
        groups=maps.shape[0] * maps.shape[1],
    )
    return out.view(maps.shape).flatten(2).mT
