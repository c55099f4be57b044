"""Dynamic convolution by its definition: a weighted sum of nine shifted maps."""

import torch.nn.functional as F
from torch import Tensor


def dynamic_conv(
    v: Tensor, filters: Tensor, hw: tuple[int, int], bias: Tensor | None = None
) -> Tensor:
    """v ``(B, H·W, C)``, filters ``(B, C, 3, 3)``, bias ``(C,)`` -> ``(B, H·W, C)``."""
    (h, w), maps = hw, F.pad(v.unflatten(1, hw), (0, 0, 1, 1, 1, 1))
    out = sum(
        filters[:, None, None, :, s, t] * maps[:, s : s + h, t : t + w]
        for s in range(3)
        for t in range(3)
    )
    return (out if bias is None else out + bias).flatten(1, 2)
