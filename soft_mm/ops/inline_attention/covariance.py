"""Injective linear attention in linear time: one d×e covariance for all queries."""

from torch import Tensor

from .reference import EPS


def covariance_inline_attention(
    q: Tensor, k: Tensor, v: Tensor, num_tokens: int | Tensor
) -> Tensor:
    """q ``(..., M, d)``, k ``(..., N, d)``, v ``(..., N, e)`` -> ``(..., M, e)``."""
    k_mean, v_mean = (x.sum(-2, keepdim=True) / num_tokens for x in (k, v))
    covariance = k.mT @ v / num_tokens - k_mean.mT @ v_mean
    return v_mean + q @ (q.shape[-1] ** -0.5 * covariance)


def product_linear_attention(q: Tensor, k: Tensor, v: Tensor, num_tokens: int | Tensor) -> Tensor:
    """Linear attention, with the same arguments: one d×e product for all queries."""
    q = q.shape[-1] ** -0.5 * q
    k_mean = k.sum(-2, keepdim=True) / num_tokens
    return q @ (k.mT @ v / num_tokens) / (q @ k_mean.mT + EPS)
