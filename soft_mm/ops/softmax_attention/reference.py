"""Softmax attention by its definition, with materialised weights."""

import torch
from torch import Tensor

from ..precision import at_least_fp32


@at_least_fp32
def softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0, attended: Tensor | None = None
) -> Tensor:
    """q ``(..., M, d)``, k ``(..., N, d)``, v ``(..., N, e)`` -> ``(..., M, e)``."""
    return attention_rows(q, k, bias, attended) @ v


@at_least_fp32
def attention_rows(
    q: Tensor, k: Tensor, bias: Tensor | float = 0.0, attended: Tensor | None = None
) -> Tensor:
    """Attention weights ``(..., M, N)``; each row sums to 1.

    Args:
        q: queries ``(..., M, d)``.
        k: keys ``(..., N, d)``.
        bias: added to the scores; broadcasts to ``(..., M, N)``.
        attended: bool, broadcasts to ``(..., M, N)``: the keys that a query attends to, such as
            those in its window; by default all. The weights of others are 0.
    """
    scores = q.shape[-1] ** -0.5 * (q @ k.mT) + bias
    if attended is not None:
        scores = scores.masked_fill(attended == 0, -torch.inf)
    return scores.softmax(-1)
