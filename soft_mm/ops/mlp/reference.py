"""The MLP of all tokens at once."""

import torch.nn.functional as F
from torch import Tensor


def mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    approximate: str = 'none',
) -> Tensor:
    """x ``(..., C)``, weights ``(H, C)`` and ``(E, H)`` -> ``(..., E)``."""
    hidden = F.gelu(F.linear(x, weight1, bias1), approximate=approximate)
    return F.linear(hidden, weight2, bias2)
