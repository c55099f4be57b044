"""Multiply-adds of the op from the shapes of its arguments."""

from collections import Counter
from math import prod

from ..gaussian_kernel import flops as gaussian_kernel


def formula(q: list[int], k: list[int], v: list[int], *_) -> Counter[str]:
    """Half the kernel matrix, which the papers compute once for two products, and one product."""
    return Counter(
        gaussian_kernel=gaussian_kernel.formula(q, k) // 2, matmul=prod(q[:-1]) * prod(v[-2:])
    )


def executed(q: list[int], k: list[int], v: list[int], *_) -> int:
    """The kernel matrix, from tokens augmented by two channels, and the product."""
    return prod(q[:-1]) * k[-2] * (q[-1] + 2 + v[-1])
