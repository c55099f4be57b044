"""Multiply-adds of the self-attention from the shapes of its arguments."""

from collections import Counter
from math import prod


def formula(
    x: list[int], mean: list[int], weight: list[int], bias: list[int], num_heads: int
) -> Counter[str]:
    """The projection, and for each head the covariance and its product with the queries."""
    per_token = x[0] * x[-1] ** 2 // num_heads
    return Counter(linear=3 * prod(x) * x[-1], matmul=(2 * x[1] + 1) * per_token)


def executed(
    x: list[int], mean: list[int], weight: list[int], bias: list[int], num_heads: int
) -> int:
    """Three products over all tokens, and products of small matrices."""
    batch, num_tokens, dims = x
    return batch * dims**2 * (3 * num_tokens + dims + 2 * dims // num_heads)
