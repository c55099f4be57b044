"""Two linear layers with GELU between them."""

import torch
from torch import Tensor

from ..backend import choose_backend
from .reference import mlp as whole_mlp
from .tiled import is_worthwhile, tiled_mlp


def mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    approximate: str = 'none',
    backend: str | None = None,
) -> Tensor:
    """``W2·gelu(W1·x + b1) + b2`` of every token.

    On a CPU, for so many tokens that the hidden channels leave its cache, some tokens at a time,
    and again in the backward pass: faster than making them all, and nothing of them is kept.

    Args:
        x: ``(..., C)``.
        weight1: ``(H, C)``.
        bias1: ``(H,)``.
        weight2: ``(E, H)``.
        bias2: ``(E,)``.
        approximate: of GELU, as PyTorch has it: 'none' or 'tanh'.
        backend: 'torch', or 'reference' or 'standard' for all tokens at once.

    Returns:
        ``(..., E)``.
    """
    arguments = x, weight1, bias1, weight2, bias2, approximate
    if (
        choose_backend(backend, x.device) in ('reference', 'standard')
        or not is_worthwhile(x, weight1)
        or torch.is_autocast_enabled(x.device.type)
    ):
        return whole_mlp(*arguments)
    return tiled_mlp(*arguments)
