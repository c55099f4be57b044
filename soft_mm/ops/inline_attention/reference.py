"""Injective linear attention by its definition, with materialised rows of weights."""

import torch
from torch import Tensor

EPS = 1e-6  # added to the sum that linear attention divides by, which is 0 for a query of zeros


def inline_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q ``(..., M, d)``, k ``(..., N, d)``, v ``(..., N, e)`` -> ``(..., M, e)``."""
    return attention_rows(q, k) @ v


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q ``(..., M, d)``, k ``(..., N, d)``, v ``(..., N, e)`` -> ``(..., M, e)``."""
    return attention_rows(q, k, normalization='division') @ v


def attention_rows(
    q: Tensor, k: Tensor, attended: Tensor | None = None, normalization: str = 'subtraction'
) -> Tensor:
    """Attention weights ``(..., M, N)``; each row sums to 1.

    Args:
        q: queries ``(..., M, d)``.
        k: keys ``(..., N, d)``.
        attended: bool, broadcasts to ``(..., M, N)``: the keys that a query attends to, such as
            those in its window; by default all. The weights of others are 0.
        normalization: 'subtraction' as in InLine, or 'division' as in linear attention.
    """
    scores = q.shape[-1] ** -0.5 * (q @ k.mT)
    attended = torch.ones_like(scores) if attended is None else attended.to(scores)
    number = attended.sum(-1, keepdim=True)
    mean = (scores * attended).sum(-1, keepdim=True) / number
    if normalization == 'division':
        return scores / (number * (mean + EPS)) * attended
    return (scores - mean + 1) / number * attended
