"""Performer's attention as the paper writes it, with materialised weights."""

from torch import Tensor

from ..precision import at_least_fp32


@at_least_fp32
def performer_attention(q: Tensor, k: Tensor, v: Tensor, features: Tensor) -> Tensor:
    """q ``(..., M, d)``, k ``(..., N, d)``, v ``(..., N, e)``, features ``(F, d)``.

    Returns:
        ``(..., M, e)``.
    """
    return attention_rows(q, k, features) @ v


@at_least_fp32
def attention_rows(q: Tensor, k: Tensor, features: Tensor) -> Tensor:
    """Attention weights ``(..., M, N)``; each row sums to 1.

    Args:
        q: queries ``(..., M, d)``.
        k: keys ``(..., N, d)``.
        features: directions ``(F, d)`` of the random features.
    """
    scores = positive_features(q, features) @ positive_features(k, features).mT
    return scores / scores.sum(-1, keepdim=True)


def positive_features(x: Tensor, features: Tensor) -> Tensor:
    """``φ(x)_f = exp(w_f·x' − ½‖x'‖²) / √F`` with ``x' = d^-¼·x``: ``(..., N, d)`` -> ``(..., N, F)``."""
    x = x.shape[-1] ** -0.25 * x
    exponents = x @ features.mT - x.square().sum(-1, keepdim=True) / 2
    return exponents.exp() * len(features) ** -0.5
