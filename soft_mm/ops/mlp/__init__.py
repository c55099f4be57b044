"""Two linear layers with GELU between them."""

import torch
from torch import Tensor

from ..backend import choose_backend
from ..linear import linear, linear_gelu
from .reference import mlp as reference_mlp
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
    """Compute ``W2·gelu(W1·x + b1) + b2`` for every token.

    On a CPU, if the hidden values do not fit in its cache, groups of tokens are processed one after
    another, and the backward pass recomputes the hidden values. This is faster than materialising
    all of them, and saves none for the backward pass.

    Args:
        x: ``(..., C)``.
        weight1: ``(H, C)``.
        bias1: ``(H,)``.
        weight2: ``(E, H)``.
        bias2: ``(E,)``.
        approximate: approximation of GELU, 'none' or 'tanh', as in ``torch.nn.GELU``.
        backend: 'reference' and 'standard' process all tokens at once; all others may use groups of
            tokens.

    Returns:
        ``(..., E)``.

    Raises:
        ValueError: if the backend does not exist.
    """
    arguments = x, weight1, bias1, weight2, bias2, approximate
    if choose_backend(backend, x.device) in ('reference', 'standard'):
        return reference_mlp(*arguments)
    if is_worthwhile(x, weight1) and not torch.is_autocast_enabled(x.device.type):
        return tiled_mlp(*arguments)
    return linear(linear_gelu(x, weight1, bias1, approximate, backend), weight2, bias2, backend)
